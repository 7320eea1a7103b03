"""How GPUs and nodes are joined, and whether ranks would find the first one."""

import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from dsmemvp.counting import counted
from dsmemvp.doctor.finding import Finding, Here, fail, ok, warning

TOPOLOGY = ["nvidia-smi", "topo", "-m"]
SLOW = ("PHB", "NODE", "SYS")
"""Of nvidia-smi's names those of ways through the CPU: its host bridge, between bridges, between sockets."""


def gpu_links(here: Here) -> list[Finding]:
    if not here.on_gpus:
        return []
    try:
        asked = subprocess.run(TOPOLOGY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [warning("GPU links", f"nvidia-smi does not say ({error})", "look at the driver")]
    return links_of(asked.stdout)


def links_of(topology: str) -> list[Finding]:
    """From the table of `nvidia-smi topo -m`: a row per GPU, a column per GPU and network card."""
    rows = [line.split() for line in topology.splitlines()]
    table = [row for row in rows if row and re.fullmatch(r"GPU\d+", row[0]) and "X" in row]
    links = {link for row in table for link in row[1 : 1 + len(table)] if link != "X"}
    if not links:
        return [ok("GPU links", "one GPU")] if len(table) == 1 else []
    text = f"{', '.join(sorted(links))} between {counted(len(table), 'GPU')}"
    if all(link.startswith("NV") for link in links):
        return [ok("GPU links", f"NVLink: {text}")]
    if links & set(SLOW):
        todo = "ZeRO-3 gathers the base over it twice per micro-step; replicate the base if it fits"
        return [warning("GPU links", f"{text}, through the CPU", todo)]
    return [ok("GPU links", text)]


def infiniband(root: Path = Path("/sys/class/infiniband")) -> list[Finding]:
    """Ports of InfiniBand and RoCE cards; none at all is no finding."""
    up, down = [], []
    for port in sorted(root.glob("*/ports/*")):
        try:
            state, rate = ((port / name).read_text().strip() for name in ("state", "rate"))
        except OSError:
            continue
        name = f"{port.parts[-3]}:{port.name}"
        if state.endswith("ACTIVE"):
            up.append(f"{name} {rate}")
        else:
            down.append(f"{name} {state.partition(': ')[2] or state}")
    findings = [ok("InfiniBand", ", ".join(up))] if up else []
    if down:
        findings.append(warning("InfiniBand", f"not active: {', '.join(down)}", "look at cable and subnet manager"))
    return findings


def interfaces(environment: Mapping[str, str]) -> list[Finding]:
    stats = {name: (stat.isup, stat.speed) for name, stat in psutil.net_if_stats().items()}
    return named_interfaces(stats, environment)


def named_interfaces(stats: dict[str, tuple[bool, int]], environment: Mapping[str, str]) -> list[Finding]:
    """`stats`: whether an interface is up, and its Mb/s (0: it does not say)."""
    up = {name: speed for name, (is_up, speed) in stats.items() if is_up and name != "lo"}
    findings = [_named(stats, variable, environment[variable]) for variable in VARIABLES if environment.get(variable)]
    wrong = [finding for finding in findings if finding is not None]
    text = ", ".join(f"{name} {speed / 1000:g} Gb/s" if speed > 0 else name for name, speed in sorted(up.items()))
    return [ok("network", text or "no interface is up"), *wrong]


VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def _named(stats: dict[str, tuple[bool, int]], variable: str, value: str) -> Finding | None:
    """NCCL takes beginnings of names, and those to leave out behind a ^; gloo takes names."""
    if value.startswith("^"):
        return None
    names = value.removeprefix("=").split(",")
    whole = variable.startswith("GLOO") or value.startswith("=")
    fitting = [n for n, (up, _) in stats.items() if up and any(n == w if whole else n.startswith(w) for w in names)]
    if fitting and (len(fitting) >= len(names) or not whole):
        return None
    return fail("network", f"{variable}={value} names no interface that is up", f"here are {', '.join(sorted(stats))}")


def rendezvous(here: Here, own: str, environment: Mapping[str, str]) -> list[Finding]:
    """Whether the first rank's host is found by its name, its port is free there, and, on several nodes, this node
    knows itself (`own`, its name) under an address that others can reach: also beside GPUs ranks talk over gloo."""
    addresses = _addresses(own)
    if not here.several_nodes:
        found = (
            [] if addresses else [warning("rendezvous", f"{own}, this host's name, has no address", "see /etc/hosts")]
        )
        return [*found, *_port(here, environment)] or [ok("rendezvous", "on this node")]
    wanted = _addresses(here.address)
    if not wanted:
        return [
            fail("rendezvous", f"the first rank's host {here.address} has no address here", "see DNS or /etc/hosts")
        ]
    if not environment.get("GLOO_SOCKET_IFNAME") and only_local(addresses):
        text = f"{own}, this host's name, has {'the address ' + addresses[0] if addresses else 'no address'}"
        todo = (
            "gloo tells it to other nodes; set GLOO_SOCKET_IFNAME to the interface that joins them, or mend /etc/hosts"
        )
        return [fail("rendezvous", text, todo)]
    return _port(here, environment) or [ok("rendezvous", f"{here.address} ({wanted[0]}), port {here.port}")]


def only_local(addresses: list[str]) -> bool:
    """Whether other nodes could reach none of them."""
    return all(address.startswith("127.") or address == "::1" for address in addresses)


def _port(here: Here, environment: Mapping[str, str]) -> list[Finding]:
    if here.rank or not here.port or environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return []  # torchrun itself listens there
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", here.port))
        except OSError as error:
            return [fail("rendezvous", f"port {here.port}: {error.strerror}", "set MASTER_PORT to a free one")]
    return []


def _addresses(host: str) -> list[str]:
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None)})
    except OSError:
        return []
