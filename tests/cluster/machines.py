"""Machines that are sets of Linux namespaces on this one: with a host name, an address, an interface that counts bytes,
an /etc/hosts, an /etc/ssh, a /run, a /dev/shm and process numbers of their own. All else is shared, as files are on
a cluster.

Nothing outlives the test, even one killed with SIGKILL: the kernel then kills the first process of each machine, with
it all others of that machine, and their interfaces go with the last of them.
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian keeps the daemons, and not every user's PATH has them
NETWORK = "198.18.0"  # from the range set apart for tests (RFC 2544); nobody outside the namespaces sees it

# The first process of a machine. $0: its name, $1: the folder. It stays when all others are killed, and `wait` also
# collects the processes whose parents have ended, as the first process must. Names are looked up in /etc/hosts only:
# no name server can be reached. Each machine has a munged of its own behind the usual path, since a munged decodes
# a credential only once and Slurm sends the same one to several nodes.
FIRST_PROCESS = """
set -e
echo "$0" > /proc/sys/kernel/hostname
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$1/ssh" /etc/ssh
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/munge /run/sshd
ip link set lo up
echo ready
exec > /dev/null
while :; do sleep infinity & wait; done
"""


@dataclass
class Machine:
    """Namespaces, held by `holder`, which waits for the machine's first process."""

    name: str
    address: str
    folder: Path
    holder: subprocess.Popen

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command on this machine, in the folder; it is killed when nsenter is."""
        pid = self.holder.pid
        first = f"--pid=/proc/{pid}/ns/pid_for_children"  # the holder itself is outside
        enter = ["nsenter", f"--target={pid}", "--net", "--uts", "--ipc", "--mount", first]
        return [*enter, "setpriv", "--pdeathsig", "KILL", "env", f"--chdir={self.folder}", *command]

    def network(self, line: str) -> None:
        """Runs `ip` in the machine's network but with the process numbers of this one."""
        call(["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "ip", *line.split()])

    def stop(self) -> None:
        """Kills the first process; the holder ends when no process of the machine is left."""
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children")
        for pid in children.read_text().split() if self.holder.poll() is None else ():
            os.kill(int(pid), signal.SIGKILL)
        try:
            self.holder.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it had not started its first process
            self.holder.kill()
            self.holder.wait()


def start_machine(name: str, address: str, folder: Path) -> Machine:
    # the holder is killed when this thread ends, its child when the holder ends, and the rest with that child
    command = "setpriv --pdeathsig KILL unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc"
    log = folder / f"{name}.start.log"
    with log.open("w") as errors:
        holder = subprocess.Popen(
            [*command.split(), "sh", "-c", FIRST_PROCESS, name, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PATH": PATH},
            start_new_session=True,  # out of reach of the Ctrl-C that ends the test
        )
    machine = Machine(name, address, folder, holder)
    with holder.stdout:
        ready = holder.stdout.readline()
    if ready != "ready\n":
        machine.stop()
        raise RuntimeError(f"machine {name} did not start: {log.read_text()}")
    return machine


def join(head: Machine, *nodes: Machine) -> None:
    """Joins the machines by a bridge on `head`."""
    head.network("link add bridge type bridge")
    head.network(f"address add {head.address}/24 dev bridge")
    head.network("link set bridge up")
    for node in nodes:
        head.network(f"link add {node.name} type veth peer name eth0 netns {node.holder.pid}")
        head.network(f"link set {node.name} master bridge up")
        node.network(f"address add {node.address}/24 dev eth0")
        node.network("link set eth0 up")


def call(command: list[str], timeout: float = 60, **options) -> str:
    """Runs a command and returns its stdout; fails with its stderr."""
    options.setdefault("env", {**os.environ, "PATH": PATH})
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout
