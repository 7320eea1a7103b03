"""The cluster of the tests is one: addresses, traffic, signals, faults; and nothing of it is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster.slurm import cluster

pytestmark = pytest.mark.cluster

# Sends, from the second task to the first by the name of its node, more than anything else on the bridge amounts to
SENT = 5_000_000
SEND = f"""
import os, socket, time
port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server(("", port)) as server:
        connection, (address, _) = server.accept()
        got = 0
        while part := connection.recv(1 << 20):
            got += len(part)
    print(address, got)
else:
    for _ in range(100):
        try:
            connection = socket.create_connection(("node1", port))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    connection.sendall(bytes({SENT}))
"""

SIGNALLED = """#!/bin/sh
trap 'echo signal; exit 0' USR2
echo ready
sleep 300 & wait
"""


def test_nodes_have_names_and_addresses_of_their_own(slurm):
    shown = slurm.run(
        "srun", "--nodes=2", "sh", "-c", "echo $(hostname) $(getent hosts $(hostname)) $(ip -o -4 address)"
    )
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert sorted(lines) == slurm.nodes == ["node1", "node2"]
    addresses = {name: line.split()[1] for name, line in lines.items()}
    assert addresses == {name: slurm.machines[name].address for name in slurm.nodes}
    assert all(f"eth0 inet {addresses[name]}/" in line for name, line in lines.items())
    assert slurm.exec("node2", "hostname") == "node2\n"
    assert "node1" not in Path("/etc/hosts").read_text()


def test_bytes_between_nodes_are_counted(slurm):
    before = {node: slurm.traffic(node) for node in slurm.nodes}
    shown = slurm.run("srun", "--nodes=2", sys.executable, "-c", SEND)
    assert shown.split() == [slurm.machines["node2"].address, str(SENT)]
    one, two = (slurm.traffic(node).since(before[node]) for node in slurm.nodes)
    assert SENT <= two.sent < 1.1 * SENT and SENT <= one.received < 1.1 * SENT
    assert one.sent < 0.1 * SENT and two.received < 0.1 * SENT


def test_a_signal_reaches_the_batch_script(slurm, tmp_path):
    (tmp_path / "job.sh").write_text(SIGNALLED)
    out = tmp_path / "out"
    job = slurm.sbatch(f"--output={out}", tmp_path / "job.sh")
    _until(lambda: out.exists() and out.read_text() == "ready\n")
    slurm.run("scancel", "--signal=USR2", "--batch", job)
    slurm.wait_for(job, "COMPLETED", 30)
    assert out.read_text() == "ready\nsignal\n"


def test_a_cable_is_cut_and_mended(slurm):
    ping = [sys.executable, "-c", "import socket; socket.create_connection(('head', 6817), timeout=1)"]
    slurm.exec("node2", *ping)
    slurm.cut("node2")
    with pytest.raises(RuntimeError, match=r"timed out|No route"):
        slurm.exec("node2", *ping)
    slurm.exec("node1", *ping)
    slurm.mend("node2")
    slurm.exec("node2", *ping)


def test_a_job_whose_node_dies_goes_on_when_the_node_is_back(slurm, tmp_path):
    out = tmp_path / "out"
    wait = 'echo "start ${SLURM_RESTART_COUNT:-0}"; test "$SLURM_RESTART_COUNT" || exec srun sleep 300'
    job = slurm.sbatch("--nodes=2", "--requeue", "--open-mode=append", f"--output={out}", "--wrap", wait)
    _until(lambda: _sleeping(slurm, "node2"))
    slurm.kill_node("node2")
    assert not _sleeping(slurm, "node2") and _sleeping(slurm, "node1")
    slurm.wait_for(job, "PENDING", 90)  # slurmctld has missed the node
    slurm.start_node("node2")
    assert slurm.wait_for(job, "COMPLETED", 90)["Restarts"] == "1"
    assert "start 0\n" in out.read_text() and out.read_text().endswith("start 1\n")


def test_a_cluster_whose_test_is_killed_leaves_nothing(tmp_path):
    program = f"""
import time
from pathlib import Path
from cluster.slurm import cluster
with cluster(Path({str(tmp_path)!r}), nodes=1) as running:
    job = running.sbatch("--wrap", "setsid sleep 300 & setsid sleep 300")
    running.wait_for(job, "RUNNING", 30)
    print("running", flush=True)
    time.sleep(300)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout.readline() == "running\n"
        seen = len(_processes_of(tmp_path))
        test.send_signal(signal.SIGKILL)
    assert seen > 5
    _until(lambda: not _processes_of(tmp_path))


def test_a_cluster_that_ends_leaves_nothing(tmp_path):
    before = _outside()
    with cluster(tmp_path, nodes=1) as running:
        job = running.sbatch("--wrap", "setsid sleep 300 & setsid sleep 300")
        running.wait_for(job, "RUNNING", 30)
        assert len(_processes_of(tmp_path)) > 5
        assert _outside() == before
    assert not _processes_of(tmp_path)


def _sleeping(slurm, node: str) -> bool:
    return "sleep 300" in slurm.exec(node, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; exit 0")


def _processes_of(folder: Path) -> set[str]:
    """The processes that have the folder in their command or, as all jobs and daemons do, in their SLURM_CONF."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # it has ended since, or is the machine's own and closed even to root
            continue
        if os.fsencode(folder) in text and process.name != str(os.getpid()):
            found.add(process.name)
    return found


def _outside() -> tuple[set[str], str]:
    """The interfaces and mounts that every process of this machine sees."""
    interfaces = {line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]}
    return interfaces, Path("/proc/self/mounts").read_text()


def _until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
