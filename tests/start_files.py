"""Start files of slurm/ run by bash, with srun, scontrol and squeue in their places."""

import os
import signal
import subprocess
import time
from pathlib import Path

# every srun writes its words to calls, then does what the file named after dsmemvp's command says
SRUN = """#!/bin/bash
printf '%s|' srun "$@" >> calls; echo >> calls
for word; do [ -e "do-$word" ] && source "./do-$word"; done
exit 0
"""


# the real srun passes USR2 on to all ranks and goes on waiting for them
LONG = "touch running; for _ in {1..1000}; do sleep 0.02; done\n"


UNTIL_TOLD = 'trap "echo told >> calls; exit 75" USR2; ' + LONG


class Job:
    """A folder in which start files run as Slurm's batch job 4321."""

    def __init__(self, folder: Path, files: Path):
        self.folder, self.files = folder, files
        self.environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "4321", "SLURM_CPUS_PER_TASK": "3"}
        self.environment |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
        (folder / "bin").mkdir()
        self.program("srun", SRUN)
        self.program("scontrol", '#!/bin/bash\necho "scontrol|$*" >> calls\n')
        self.program("squeue", "#!/bin/bash\necho RUNNING\n")

    def program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def on(self, command: str, text: str) -> None:
        """What srun does when it runs dsmemvp's `command`."""
        (self.folder / f"do-{command}").write_text(text)

    def start(self, name: str = "train.sbatch", *arguments: str) -> subprocess.Popen:
        return self.start_bash(str(self.files / name), *(arguments or ("r.yaml", "seed=1 2")))

    def start_bash(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, name: str = "train.sbatch", *arguments: str) -> int:
        return self.end(self.start(name, *arguments))

    def end(self, process: subprocess.Popen) -> int:
        try:
            self.log, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it and what it has started
            raise
        return process.returncode

    def wait_for(self, file: str) -> None:
        until = time.monotonic() + 20
        while not (self.folder / file).exists():
            assert time.monotonic() < until, f"{file} never came"
            time.sleep(0.01)

    @property
    def calls(self) -> list[str]:
        """dsmemvp's commands that were run, the signals they were told, and requeues."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        words = [line.split("|") for line in lines]
        return [w[w.index("dsmemvp") + 1] if w[0] == "srun" else line for w, line in zip(words, lines, strict=True)]


REQUEUED = "scontrol|requeue 4321"
