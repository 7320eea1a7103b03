import socket

import pytest

from dsmemvp.doctor.finding import Here
from dsmemvp.doctor.network import infiniband, interfaces, links_of, named_interfaces, only_local, rendezvous

# the form of `nvidia-smi topo -m`; its first line is underlined
TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\t{0}\tPIX\t0-51\t0\t\tN/A
GPU1\tNV18\t X \t{0}\tSYS\t0-51\t0\t\tN/A
GPU2\t{0}\t{0}\t X \tSYS\t52-103\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""


@pytest.mark.parametrize(
    ("link", "level", "found"),
    [
        ("NV18", "ok", "NVLink: NV18 between 3 GPUs"),
        ("SYS", "warning", "NV18, SYS between 3 GPUs, through the CPU"),
        ("PXB", "ok", "NV18, PXB between 3 GPUs"),
    ],
)
def test_links_between_gpus(link, level, found):
    (finding,) = links_of(TOPOLOGY.format(link))
    assert (finding.level, finding.found) == (level, found)


def test_one_gpu_and_none():
    one = "\tGPU0\tNIC0\tCPU Affinity\nGPU0\t X \tSYS\t0-15\n"
    assert [f.found for f in links_of(one)] == ["one GPU"] and links_of("") == []


def test_infiniband_s_ports(tmp_path):
    assert infiniband(tmp_path / "none") == []
    for card, port, state, rate in [("mlx5_0", 1, "4: ACTIVE", "400 Gb/sec (4X NDR)"), ("mlx5_1", 1, "1: DOWN", "10")]:
        folder = tmp_path / card / "ports" / str(port)
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"{state}\n")
        (folder / "rate").write_text(f"{rate}\n")
    assert [(f.level, f.found) for f in infiniband(tmp_path)] == [
        ("ok", "mlx5_0:1 400 Gb/sec (4X NDR)"),
        ("warning", "not active: mlx5_1:1 DOWN"),
    ]


STATS = {"lo": (True, 0), "eth0": (True, 100_000), "ib0": (False, 0), "veth1": (True, 0)}


def test_interfaces_and_their_speed():
    assert [f.found for f in named_interfaces(STATS, {})] == ["eth0 100 Gb/s, veth1"]
    assert [f.level for f in interfaces({})] == ["ok"]


@pytest.mark.parametrize(
    ("variable", "value", "fails"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", False),
        ("GLOO_SOCKET_IFNAME", "eth0,veth1", False),
        ("GLOO_SOCKET_IFNAME", "eth", True),
        ("GLOO_SOCKET_IFNAME", "eth0,eth1", True),
        ("GLOO_SOCKET_IFNAME", "ib0", True),  # it is down
        ("NCCL_SOCKET_IFNAME", "eth", False),
        ("NCCL_SOCKET_IFNAME", "=eth", True),
        ("NCCL_SOCKET_IFNAME", "ens,eth", False),
        ("NCCL_SOCKET_IFNAME", "ib", True),
        ("NCCL_SOCKET_IFNAME", "^docker,lo", False),
    ],
)
def test_an_interface_that_is_named_must_be_there(variable, value, fails):
    levels = [f.level for f in named_interfaces(STATS, {variable: value})]
    assert levels == (["ok", "FAIL"] if fails else ["ok"])


def test_the_first_rank_s_host_must_have_an_address():
    far = Here(1, 2, 0, 1, "no-such-host.invalid", 12_345)
    (found,) = rendezvous(far, socket.gethostname(), {})
    assert found.level == "FAIL" and "no-such-host.invalid has no address" in found.found
    near = Here(1, 2, 0, 1, "127.0.0.1", 12_345)
    assert [f.level for f in rendezvous(near, socket.gethostname(), {"GLOO_SOCKET_IFNAME": "eth0"})] == ["ok"]


@pytest.mark.parametrize("on_gpus", [False, True])
def test_a_host_that_knows_itself_as_local_cannot_be_reached_with_gloo(on_gpus):
    assert only_local(["127.0.1.1"]) and only_local(["127.0.0.1", "::1"]) and only_local([])
    assert not only_local(["10.0.0.1", "127.0.0.1"])
    here = Here(1, 2, 0, 1, "127.0.0.1", 1, on_gpus)
    (found,) = rendezvous(here, "localhost", {})
    assert found.level == "FAIL" and "GLOO_SOCKET_IFNAME" in found.todo
    assert [f.level for f in rendezvous(here, "localhost", {"GLOO_SOCKET_IFNAME": "eth0"})] == ["ok"]


NAMED = {"GLOO_SOCKET_IFNAME": "eth0"}


def test_a_port_that_is_taken_would_fail_on_the_first_rank_s_host():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        first = Here(0, 2, 0, 1, "127.0.0.1", port, on_gpus=True)
        (found,) = rendezvous(first, socket.gethostname(), NAMED)
        assert found.level == "FAIL" and f"port {port}" in found.found and "MASTER_PORT" in found.todo
        other_rank, served = Here(1, 2, 0, 1, "127.0.0.1", port, on_gpus=True), {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        assert [f.level for f in rendezvous(other_rank, "localhost", NAMED)] == ["ok"]
        assert [f.level for f in rendezvous(first, socket.gethostname(), NAMED | served)] == ["ok"]
    assert [f.level for f in rendezvous(first, socket.gethostname(), NAMED)] == ["ok"]
