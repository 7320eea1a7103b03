"""Runs converters, in this process or on MPI ranks, and reads what they wrote."""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from launch import mpirun
from PIL import Image

from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import Sample, read_sample
from dsmemvp.data.stream import read_all

REPOSITORY = Path(__file__).resolve().parents[2]


def samples(folder: Path) -> list[Sample]:
    return [read_sample(entry) for entry in read_all(read_manifest(folder))]


def keys(folder: Path) -> list[str]:
    return [sample.where.rpartition("sample ")[2] for sample in samples(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def here(converter, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Runs a converter's main() in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", [converter.__name__, *map(str, arguments)])
    code = converter.main()
    return code, *capsys.readouterr()


def start(name: str, *arguments, ranks: int = 1, largest_file: int = 0, **environment: str) -> subprocess.Popen:
    """Starts `python -m data_prep.NAME`, or a text of Python, under mpirun where there are to be several ranks."""
    program = ["-c", name] if "\n" in name else ["-m", f"data_prep.{name}"]
    command = [sys.executable, *program, *map(str, arguments)]
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))) if largest_file else None
    if ranks > 1:
        command = [mpirun(), "--oversubscribe", "--allow-run-as-root", "-n", str(ranks), *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, cwd=REPOSITORY, text=True, stdout=pipe, stderr=pipe, preexec_fn=limit)


def run(name: str, *arguments, **how) -> tuple[int, str, str]:
    """start(), waited for: (exit code, stdout, stderr)."""
    process = start(name, *arguments, **how)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, out, err


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, to the launcher and to all that it started."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()


def write_scienceqa(folder: Path, number: int) -> Path:
    """`number` problems of "train" and one of "val" in the official layout. Two in three have an image, in turns PNG,
    JPEG under the name of a PNG, palette with a transparent colour, grey, and with transparency."""
    problems = {str(i): problem(i, "train") for i in range(1, number + 1)} | {"9000": problem(9000, "val")}
    for name, row in problems.items():
        if row["image"]:
            path = folder / "images" / row["split"] / name / "image.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(_image(int(name)))
    splits = {"train": [n for n in problems if n != "9000"], "val": ["9000"], "minival": ["9000"]}
    captions = {"captions": {name: f"caption {name}" for name, row in problems.items() if row["image"]}}
    for name, content in (("problems", problems), ("pid_splits", splits), ("captions", captions)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def problem(number: int, split: str) -> dict[str, Any]:
    return {
        "question": f"Which number is {number}?",
        "choices": ["none", str(number), "all"][: 2 + number % 2],
        "answer": number % 2,
        "hint": "Count." if number % 4 == 0 else "",
        "image": "image.png" if number % 3 else None,
        "task": "closed choice",
        "grade": f"grade{number % 12 + 1}",
        "subject": ("natural science", "language science", "social science")[number % 3],
        "topic": "numbers",
        "category": "Counting",
        "skill": "Count",
        "lecture": "One, two, three. " * 5,
        "solution": "Counting shows it.",
        "split": split,
    }


def _image(number: int) -> bytes:
    size = (40 + number % 7, 30 + number % 5)
    image = Image.linear_gradient("L").resize(size)
    out = io.BytesIO()
    match number // 3 % 5:
        case 0:
            Image.merge("RGB", (image, image, image.rotate(90).resize(size))).save(out, "PNG")
        case 1:
            image.convert("RGB").save(out, "JPEG")
        case 2:
            image.convert("P").save(out, "PNG", transparency=number % 256)
        case 3:
            image.save(out, "PNG")
        case _:
            Image.merge("RGBA", (image, image, image, image)).save(out, "PNG")
    return out.getvalue()
