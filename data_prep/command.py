"""The part of the command line that all converters have.

    mpirun -n 16 python -m data_prep.NAME ...      srun --mpi=pmix python -m data_prep.NAME ...

A converter is a file of its own with main(), which names its options, and a generator of planned rows; folder.py is
the short example.
"""

import argparse
import textwrap
from collections.abc import Iterable
from pathlib import Path

from data_prep.plan import Planned
from data_prep.prepare import Job, run
from data_prep.progress import say
from data_prep.ranks import find_ranks, speaks_for_all
from dsmemvp.config.recipe import Vision
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError

RANKS = """
Runs in one process or in several: `mpirun -n 16 python -m data_prep.NAME ...` or `srun --mpi=pmix ...`; the same bytes
come out. Interrupted at any moment, the same command resumes with the shards that are not finished, on any number of
processes; if its options or input files have changed since, it begins anew. Images are not compared: after changing
them under a preparation that is not finished, remove OUT/preparing. A folder with dataset.json is complete; the
command then prepares it again, and shards that stand there are replaced."""


def converter_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of all converters; `description` is the converter's docstring."""
    parser = argparse.ArgumentParser(
        description=f"{textwrap.dedent(description).strip()}\n{RANKS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--split", default="", help="name of the split (default: the name of --out)")
    parser.add_argument("--per-shard", type=int, default=2000, help="samples per shard (default: %(default)s)")
    parser.add_argument(
        "--on-bad-row",
        choices=("fail", "skip"),
        default="fail",
        help="what to do with a row that cannot be used: end with a message, or leave it out and list it at the end",
    )
    parser.add_argument(
        "--resize",
        type=int,
        metavar="N",
        help="store images as N x N pixels, squashed as training squashes them: with N = the vision tower's input size"
        " training sees the same and reads less (default: images are stored as they are, and not looked into)",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg"),
        default="png",
        help="of resized images; png loses nothing, jpg takes about a third of the space (default: %(default)s)",
    )
    parser.add_argument("--quality", type=int, default=95, help="of jpg (default: %(default)s)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=Vision().max_pixels,
        help="an image with more is not resized but refused (default: %(default)s, that of recipes)",
    )
    return parser


def convert(
    converter: str,
    given: argparse.Namespace,
    images: Path,
    inputs: Iterable[Path],
    rows: Iterable[Planned | SampleError],
) -> int:
    """Prepare the shards of `rows`, whose images lie below `images`; another result is expected if one of the files
    `inputs` or an option changes. Returns the exit code."""
    try:
        _check(given)
        ranks = find_ranks()
    except ValueError as error:
        if speaks_for_all():
            say(converter, f"error: {error}", error=True)
        return 1
    return run(Job(converter, given, images, tuple(inputs), rows), ranks)


def _check(given: argparse.Namespace) -> None:
    for name in ("per_shard", "resize", "max_pixels"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be positive, is {getattr(given, name)}")
    if not 1 <= given.quality <= 100:
        raise UserError(f"--quality: must be 1 to 100, is {given.quality}")
    if given.out.exists() and not given.out.is_dir():
        raise UserError(f"--out: {given.out} is not a folder")
