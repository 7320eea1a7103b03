"""What a stage's teacher makes of every caption, stored beside the shards, once for each data set and teacher.

    SHARDS/vectors-0123456789abcdef.npy     [samples, H] float32, in the order of the samples
                                   .json    what they follow from, their number and width, their checksum

The digits in the name tell from what the vectors follow. A sample without a caption that can be read has zeros; it is a
bad sample to those who read it.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsmemvp.atomic_files import flush, replace_file
from dsmemvp.data.captions import CaptionText
from dsmemvp.data.manifest import Manifest
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json


@dataclass(frozen=True)
class CaptionVectors:
    """Of the data sets of a stage, one after another. What travels to workers are the files' names."""

    paths: tuple[Path, ...]

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        """[numbers, H] of the samples with these running numbers; of none, a row of zeros."""
        ends = [0, *np.cumsum([len(part) for part in self._parts])]
        found = np.zeros((max(len(numbers), 1), self._parts[0].shape[1]), dtype=np.float32)
        for row, number in enumerate(numbers):
            part = int(np.searchsorted(ends, number, side="right")) - 1
            found[row] = self._parts[part][number - ends[part]]
        return torch.from_numpy(found)

    @cached_property
    def _parts(self) -> list[np.ndarray]:
        return [np.lib.format.open_memmap(path, mode="r") for path in self.paths]


def follows_from(manifest: Manifest, text: CaptionText, teacher: str) -> dict[str, Any]:
    """`teacher`: a digest of its values."""
    tokenizer = hashlib.sha256(Path(text.tokenizer).read_bytes()).hexdigest()
    return {
        "data": manifest.fingerprint,
        "teacher": teacher,
        "tokenizer": tokenizer,
        "length": text.length,
        "of": text.of,
    }


def vectors_path(folder: Path, known: dict[str, Any]) -> Path:
    digits = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"vectors-{digits}.npy"


def part_path(path: Path, shard: int) -> Path:
    """Where a shard's vectors lie until all are there."""
    return path.with_suffix(".parts") / f"{shard:06d}.f32"


def write_part(path: Path, shard: int, vectors_NH: np.ndarray) -> None:
    part = part_path(path, shard)
    part.parent.mkdir(parents=True, exist_ok=True)
    replace_file(part, vectors_NH.astype(np.float32).tobytes(), shared=True)


def join_parts(path: Path, counts: Sequence[int], width: int, known: dict[str, Any]) -> None:
    """One file of all parts, whole or not there, and the file that describes it; the parts go. Another run that stores
    the same may be first. Raises OSError."""
    if not path.is_file():
        try:
            _join(path, counts, width, known)
        except FileNotFoundError:
            if not path.is_file():
                raise
    shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)


def _join(path: Path, counts: Sequence[int], width: int, known: dict[str, Any]) -> None:
    partial, digest = path.with_name(f"partial-{uuid.uuid4().hex}-{path.name}"), hashlib.sha256()
    try:
        with partial.open("wb") as file:
            shape = {"descr": "<f4", "fortran_order": False, "shape": (sum(counts), width)}
            np.lib.format.write_array_header_1_0(file, shape)
            for shard in range(len(counts)):
                content = part_path(path, shard).read_bytes()
                digest.update(content)
                file.write(content)
        flush(partial)
        about = {"follows_from": known, "samples": sum(counts), "width": width, "sha256": digest.hexdigest()}
        replace_file(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode(), shared=True)
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def check_vectors(path: Path, samples: int) -> None:
    """Raises UserError if the file is not as it was written."""
    about = read_json(path.with_suffix(".json"))
    if not isinstance(about, dict) or not {"width", "sha256"} <= about.keys():
        raise UserError(f"{path.with_suffix('.json')} does not say what {path.name} holds; delete both")
    try:
        vectors_NH = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"{path} holds no vectors ({error}); delete it") from None
    if vectors_NH.shape != (samples, about["width"]) or vectors_NH.dtype != np.float32:
        raise UserError(f"{path} does not hold the vectors of {samples} samples; delete it")
    digest = hashlib.sha256()
    for start in range(0, samples, 4096):
        digest.update(vectors_NH[start : start + 4096].tobytes())
    if digest.hexdigest() != about["sha256"]:
        raise UserError(f"{path} is damaged: its checksum is not the one it was written with; delete it")
