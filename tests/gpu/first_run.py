"""What anybody with one CUDA GPU runs first: `make gpu`, or by hand, needing nothing but torch and this repository,

    python tests/gpu/first_run.py [--wheels FOLDER]

Stages from small to large, each a process of its own with a time limit: one that fails, crashes or hangs is told, and
the next one runs. Ends in a table, and in a block of Markdown for benchmarks/RESULTS.md; the whole output of every
stage lies in gpu-report/. The exit code is 0 if all stages passed, 1 if not, 2 if there is no CUDA device.

`--device cpu` runs the same stages on the CPU, at tiny sizes: a test of the stages themselves.
"""

import argparse
import datetime
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 480.0
"""Seconds for all stages together."""
REPORTED = ("20", "recompute", "decoding", "answers", "step")
"""Beginnings of the names of stages whose output stands in the report."""
LAST_WORDS = 5.0
"""Seconds that a stage has to print its stacks when its time is over."""
CHECK = "import torch; print(torch.cuda.is_available(), torch.__version__, torch.version.cuda)"
ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Failed|UserError)\b.*")


@dataclass(frozen=True)
class Stage:
    name: str
    limit: float
    """Seconds."""
    command: tuple[str, ...]
    gib: float = 0.0
    """Memory of the GPU without which it is left out."""
    waits: bool = False
    """For every kernel, so that an error is raised where it arises."""


@dataclass(frozen=True)
class Result:
    stage: Stage
    outcome: str
    """ok, failed or left out"""
    seconds: float
    error: str = ""
    """Its first line."""
    said: str = ""
    """Standard output."""


def stages(device: str, work: Path) -> list[Stage]:
    """In the order in which a first run should meet its troubles."""
    here = Path(__file__).parent
    own = (sys.executable, str(here / "stages.py"), "--device", device, "--work", str(work))
    formulas = str(here.parent / "programs" / "kernels_against_formulas.py")
    python, size = sys.executable, "tiny" if device == "cpu" else ""
    marked = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
    step = ("--rounds", "1")
    answers = ("benchmarks/generate.py", "--shape", size or "7b", "--only", "memvp", "--lengths", "32")
    answers += ("--questions", "1", "--batches", "2")
    return [
        Stage("environment", 60, (*own, "environment")),
        *(
            Stage(f"kernel {name}", 60, (python, formulas, device, name), waits=True)
            for name in ("norm", "norm_backward", "rotary", "gated", "slots")
        ),
        Stage("attention", 60, (*own, "attention"), waits=True),
        Stage("frozen layer", 60, (*own, "layer"), waits=True),
        Stage("model beside the CPU", 60, (*own, "model"), waits=True),
        Stage("20 steps, CPU", 60, (*own, "steps", "cpu")),
        Stage("20 steps, replicated", 60, (*own, "steps", "replicated")),
        Stage("20 steps, zero3", 60, (*own, "steps", "zero3")),
        Stage("recompute policies", 60, (*own, "policies")),
        Stage("loader", 60, (python, *marked, "tests/training/test_prefetch.py", "tests/data/test_batch.py")),
        Stage("decoding", 60, (*own, "decoding")),
        Stage("answers, 7B", 60, (python, *answers), gib=22),
        Stage("answers, 7B, no graph", 60, ("env", "DSMEMVP_GRAPHS=0", python, *answers), gib=22),
        Stage("step, 7B", 120, (python, "benchmarks/train_step.py", "--shape", size or "7b", *step), gib=30),
        Stage("step, 13B", 150, (python, "benchmarks/train_step.py", "--shape", size or "13b", *step), gib=44),
    ]


def run(
    todo: Sequence[Stage],
    environment: dict[str, str],
    report: Path,
    gib: float,
    enough: float = ENOUGH,
    tell: Callable[[str], None] = print,
) -> list[Result]:
    """Every stage, whatever became of those before. `gib`: memory of the GPU."""
    report.mkdir(parents=True, exist_ok=True)
    results, end = [], time.monotonic() + enough
    for stage in todo:
        left = end - time.monotonic()
        if stage.gib > gib:
            result = Result(stage, "left out", 0.0, f"needs a GPU of {stage.gib:g} GiB, here are {gib:.0f}")
        elif left < 1:
            result = Result(stage, "failed", 0.0, f"not run: the {enough:.0f} s for all stages are over")
        else:
            result = _run(stage, min(stage.limit, left), environment, report)
        results.append(result)
        tell(f"{stage.name:<22}  {result.outcome:<8}  {result.seconds:5.1f} s  {result.error}".rstrip())
    return results


def _run(stage: Stage, limit: float, environment: dict[str, str], report: Path) -> Result:
    base = report / re.sub(r"\W+", "-", stage.name)
    out, err, began, late = base.with_suffix(".out"), base.with_suffix(".err"), time.monotonic(), False
    environment = environment | ({"CUDA_LAUNCH_BLOCKING": "1"} if stage.waits else {})
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            stage.command, env=environment, cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code, late = _end(process), True
        finally:
            _kill(process)  # what it has started, too
    seconds = time.monotonic() - began
    said, complained = (path.read_text(errors="replace") for path in (out, err))
    if code == 0 and not late:
        return Result(stage, "ok", seconds, said=said)
    return Result(stage, "failed", seconds, first_line(code, limit if late else 0, said + "\n" + complained), said)


def _end(process: subprocess.Popen) -> int:
    """ABRT makes Python print the stacks of all threads (PYTHONFAULTHANDLER)."""
    process.send_signal(signal.SIGABRT)
    try:
        return process.wait(LAST_WORDS)
    except subprocess.TimeoutExpired:
        _kill(process)
        return process.wait()


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def first_line(code: int, limit: float, text: str) -> str:
    """What went wrong, in a line: the error that a traceback ends in, where it stood, or its last words."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if limit:
        at = next((line.strip() for line in lines if re.match(r'\s+File ".*", line \d+ in ', line)), "")
        return f"no end after {limit:.0f} s" + (f": {at}" if at else "")
    errors = [line for line in lines if ERROR.fullmatch(line)]
    said = errors[-1] if errors else lines[-1] if lines else ""
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else "" if said else f"exit code {code}"
    return ": ".join(part for part in (ended, said[:300]) if part)


def table(results: Sequence[Result]) -> list[str]:
    rows = [f"| {r.stage.name} | {r.outcome} | {r.seconds:.1f} | {_cell(r.error)} |" for r in results]
    return ["| stage | result | s | first line of the error |", "|---|---|---:|---|", *rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(results: Sequence[Result], date: str, command: str) -> list[str]:
    """To be pasted into benchmarks/RESULTS.md."""
    about = next((r.said.strip() for r in results if r.stage.name == "environment" and r.said.strip()), "unknown")
    lines = [f"### First run on a GPU, {date}", "", *about.splitlines(), "", f"`{command}`", "", *table(results)]
    for result in results:
        said = result.said.strip()
        if said and result.outcome == "ok" and result.stage.name.startswith(REPORTED):
            lines += ["", f"{result.stage.name}:", "", *said.splitlines()]
    return lines


def install(wheels: Path, into: Path) -> None:
    """What a folder of wheels has and this Python has not, without a registry."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(into)]
    missing = [str(wheel) for wheel in sorted(wheels.glob("*.whl")) if not _installed(wheel.name.partition("-")[0])]
    if missing:
        subprocess.run([*command, *missing], check=True)


def _installed(name: str) -> bool:
    asked = f"import importlib.metadata as m; m.version({name!r})"
    return subprocess.run([sys.executable, "-c", asked], stderr=subprocess.DEVNULL).returncode == 0


def environment_of(device: str, extra: Path) -> dict[str, str]:
    """Of the stages."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    paths = [str(ROOT), str(ROOT / "tests"), str(extra), clean.get("PYTHONPATH", "")]
    clean |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        return clean | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return clean


def gpu_memory() -> float:
    """GiB of the first GPU; raises SystemExit in one line if torch has none."""
    asked = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    if asked.returncode:
        sys.stderr.write(f"make gpu: torch cannot be imported: {first_line(asked.returncode, 0, asked.stderr)}\n")
        raise SystemExit(2)
    there, torch, cuda = asked.stdout.split()
    if there != "True":
        why = "built without CUDA" if cuda == "None" else f"built for CUDA {cuda}"
        sys.stderr.write(f"make gpu: torch finds no CUDA device here (torch {torch}, {why})\n")
        raise SystemExit(2)
    asked_for = "import torch; print(torch.cuda.get_device_properties(0).total_memory / 2**30)"
    return float(subprocess.run([sys.executable, "-c", asked_for], stdout=subprocess.PIPE, text=True).stdout or 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--wheels", type=Path, help="a folder with wheels of what is not installed, such as DeepSpeed")
    parser.add_argument("--report", type=Path, default=ROOT / "gpu-report")
    parser.add_argument("--only", nargs="+", help="beginnings of the names of stages")
    given = parser.parse_args()
    gib = gpu_memory() if given.device == "cuda" else float("inf")
    work = given.report.absolute() / "work"
    work.mkdir(parents=True, exist_ok=True)
    if given.wheels:
        install(given.wheels, work / "site-packages")
    todo = [s for s in stages(given.device, work) if not given.only or s.name.startswith(tuple(given.only))]
    results = run(todo, environment_of(given.device, work / "site-packages"), given.report.absolute(), gib)
    date = datetime.date.today().isoformat()
    block = markdown(results, date, shlex.join(["python", "tests/gpu/first_run.py", *sys.argv[1:]]))
    (given.report / "RESULTS-block.md").write_text("\n".join(block) + "\n")
    print("", *table(results), "", f"for benchmarks/RESULTS.md ({given.report / 'RESULTS-block.md'}):", "", sep="\n")
    print(*block, sep="\n")
    failed = sum(r.outcome == "failed" for r in results)
    print(f"\n{len(results) - failed} of {len(results)} stages without failure; all output is in {given.report}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
