"""A real Slurm cluster on one machine, for tests of what only a cluster shows: addresses, signals, requeueing, faults.

`head` runs slurmctld, holds the bridge that joins the machines (machines.py), and is where sbatch, srun and scontrol
are called; `node1`, `node2`, ... run one slurmd and one sshd each. Outside of their namespaces there is nothing: no
address, no interface, no mount.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster.machines import NETWORK, PATH, Machine, call, join, start_machine

COMMANDS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sinfo",
    "ip",
    "nsenter",
    "unshare",
    "setpriv",
    "sshd",
    "ssh-keygen",
    "pdsh",
)
PACKAGES = "slurm-wlm munge iproute2 libpmix-dev openssh-server openssh-client pdsh"

# Job states that no job leaves without being requeued by hand
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

# MinJobAge: finished jobs stay visible to scontrol. config_overrides: CPUs are as said here, not as the machine has.
# linuxproc: jobs are followed by their parents, since the machine's cgroups may not be ours to use.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=head({network}.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmctldPidFile=/run/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile=/run/slurmd.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
MinJobAge=3600
SlurmctldTimeout=10
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=10
KillWait=2
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# one key for all: of the machines and of who logs in
SSHD = """\
HostKey {folder}/ssh/key
AuthorizedKeysFile {folder}/ssh/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
"""
SSH = """\
IdentityFile {folder}/ssh/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def missing() -> str:
    """What keeps a cluster from being started here, in one line; empty if nothing does."""
    absent = [name for name in COMMANDS if not shutil.which(name, path=PATH)]
    if absent:
        return f"no {', '.join(absent)} here; on Debian: apt-get install {PACKAGES}"
    return "" if os.geteuid() == 0 else "a cluster on one machine needs root, for its network namespaces"


class Traffic(NamedTuple):
    """Bytes over a node's interface since it was made, headers included."""

    received: int
    sent: int

    def since(self, before: "Traffic") -> "Traffic":
        return Traffic(self.received - before.received, self.sent - before.sent)


@dataclass
class Cluster:
    """What a test sees. `environment` is that of all commands, and so of jobs; a test may add to it."""

    folder: Path
    environment: dict[str, str]
    machines: dict[str, Machine] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)

    @property
    def nodes(self) -> list[str]:
        return [name for name in self.machines if name != "head"]

    def run(self, *command: str | Path, timeout: float = 120) -> str:
        """Runs a command (srun, sbatch, ...) on `head` and returns its stdout; fails with its stderr."""
        return self.exec("head", *command, timeout=timeout)

    def exec(self, machine: str, *command: str | Path, timeout: float = 120) -> str:
        """Runs a command on a machine, outside of any job."""
        inside = self.machines[machine].inside(*map(str, command))
        return call(inside, timeout=timeout, env=self.environment)

    def sbatch(self, *arguments: str | Path) -> str:
        """Submits a job and returns its number."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, job: str) -> dict[str, str]:
        """What scontrol shows of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(part.split("=", 1) for part in shown if "=" in part)

    def wait_for(self, job: str, states: str | set[str], seconds: float) -> dict[str, str]:
        """What scontrol shows of the job as soon as its JobState is one of the states. A requeued job, which Slurm
        keeps back for two minutes, is let go after two seconds: nodes refuse a credential made in the second in which
        they ended the job ("Job credential revoked")."""
        states = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + seconds
        let_go = "0"
        while True:
            shown = self.job(job)
            state, reason = shown["JobState"], shown["Reason"]
            if state in states:
                return shown
            if time.monotonic() > end or state in FINAL:
                raise AssertionError(f"job {job} is {state} ({reason}), not {states}\n{self.logs()}")
            if state == "PENDING" and reason == "BeginTime" and shown["Restarts"] != let_go:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
                let_go = shown["Restarts"]
            time.sleep(0.1)

    def traffic(self, node: str) -> Traffic:
        """From /proc/net/dev: /sys shows the interfaces of another namespace."""
        lines = Path(f"/proc/{self.machines[node].holder.pid}/net/dev").read_text().splitlines()
        [counters] = [line.split(":")[1].split() for line in lines if line.strip().startswith("eth0:")]
        return Traffic(int(counters[0]), int(counters[8]))

    def cut(self, node: str) -> None:
        """Takes the node's cable out: what is sent to it or by it is lost, and nobody is told."""
        self.cut_off.add(node)
        self.machines["head"].network(f"link set {node} down")

    def mend(self, node: str) -> None:
        self.machines["head"].network(f"link set {node} up")
        self.cut_off.discard(node)

    def kill_node(self, node: str) -> None:
        """As if its power had failed: all its processes are gone, and no connection is closed."""
        self.cut(node)
        self.dead.add(node)
        self.exec(node, "sh", "-c", "kill -KILL -1; rm -rf /dev/shm/*")  # of the namespace, but for the first process

    def start_node(self, node: str) -> None:
        """Starts a node that was killed, and returns when Slurm can use it."""
        self.mend(node)
        self._start_daemons(node)
        self.dead.discard(node)
        self._until_idle({node})

    def reset(self) -> None:
        """No jobs, all nodes up and joined: as a test finds the cluster."""
        self.run("scancel", "--state=PENDING")
        self.run("scancel", "--state=RUNNING")
        self.run("scancel", "--state=SUSPENDED")
        for node in list(self.cut_off):
            self.start_node(node) if node in self.dead else self.mend(node)
        self._until_idle(set(self.nodes))

    def logs(self) -> str:
        """The last lines of every log."""
        tails = {path: path.read_text(errors="replace").splitlines()[-15:] for path in self.folder.glob("*.log")}
        return "\n".join(f"--- {path}\n" + "\n".join(lines) for path, lines in sorted(tails.items()) if lines)

    def _start_daemons(self, machine: str) -> None:
        """Each returns as soon as it waits for requests, and ends with its machine."""
        # --force: the folder of a test is closed to other users, which munged takes for a mistake
        munged = ["munged", "--force", f"--key-file={self.folder}/munge.key", "--seed-file=/run/munge/seed"]
        self.exec(machine, *munged, f"--log-file={self.folder}/{machine}.munged.log")
        self.exec(machine, "slurmctld" if machine == "head" else "slurmd")
        if machine != "head":
            self.exec(machine, str(shutil.which("sshd", path=PATH)))  # it wants its whole path

    def _until_idle(self, nodes: set[str], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not nodes <= self._idle():
            if time.monotonic() > end:
                raise TimeoutError(f"{nodes - self._idle()} not idle within {seconds} s\n{self.logs()}")
            time.sleep(0.05)

    def _idle(self) -> set[str]:
        command = self.machines["head"].inside("sinfo", "--noheader", "--Node", "--format=%N %T")
        shown = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return {line.split()[0] for line in shown.stdout.splitlines() if line.split()[1] == "idle"}


@contextmanager
def cluster(folder: Path, nodes: int = 2, cpus: int = 4) -> Iterator[Cluster]:
    """A running cluster with all its files below the folder. Enter it from a thread that lives as long as it."""
    folder = folder.resolve()
    addresses = {"head": f"{NETWORK}.1"} | {f"node{i}": f"{NETWORK}.{i + 1}" for i in range(1, nodes + 1)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    started = Cluster(folder, environment | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")})
    _write_files(folder, addresses, cpus)
    with ExitStack() as stack:
        for name, address in addresses.items():
            started.machines[name] = machine = start_machine(name, address, folder)
            stack.callback(machine.stop)
        join(*started.machines.values())
        for name in started.machines:
            started._start_daemons(name)
        started._until_idle(set(started.nodes))
        yield started


def _write_files(folder: Path, addresses: dict[str, str], cpus: int) -> None:
    names = [name for name in addresses if name != "head"]
    for name in ("state", "ssh", *names):
        (folder / name).mkdir(parents=True, exist_ok=True)
    hosts = [f"{address} {name}" for name, address in addresses.items()]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    lines = [f"NodeName={name} NodeAddr={addresses[name]} CPUs={cpus} RealMemory=4096 State=UNKNOWN" for name in names]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, network=NETWORK, nodes="\n".join(lines)))
    (folder / "mpi.conf").write_text("PMIxCliTmpDirBase=/run\n")  # nodes would meet in /tmp, which they share
    call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/ssh/key"])
    (folder / "ssh" / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "ssh" / "ssh_config").write_text(SSH.format(folder=folder))
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
