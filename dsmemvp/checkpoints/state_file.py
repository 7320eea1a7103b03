"""state.json and adapter.json, as others may have spoiled them: read, and checked field by field."""

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

Check = Callable[[Any], bool]


class OtherVersion(UserError):
    """What another version of the program has written, and which is whole: no earlier checkpoint may take its place,
    since a run that resumed there would overwrite it."""


def _counts(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_score(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_recipe(value: Any) -> bool:
    """Empty for a file from elsewhere."""
    return isinstance(value, dict) and all(isinstance(value.get(part, {}), dict) for part in ("method", "vision"))


def _are_sums(value: Any) -> bool:
    """{file beside it: [bytes, CRC-32]}"""
    return isinstance(value, dict) and all(
        Path(name).name == name and isinstance(sums, list) and len(sums) == 2 and all(map(_counts, sums))
        for name, sums in value.items()
    )


NEEDED: dict[str, Check] = {
    **dict.fromkeys(("epoch", "step", "updates", "not_finite"), _counts),
    "validation_loss": _is_score,
    "order": lambda value: isinstance(value, dict),
    "recipe": _is_recipe,
    "files": _are_sums,
}
OPTIONAL: dict[str, Check] = {
    "validation_score": _is_score,
    "prompt_format": _counts,
    "base": _is_texts,
    "stage": lambda value: isinstance(value, str),
    "callbacks": lambda value: isinstance(value, list) and all(isinstance(state, dict) for state in value),
}
"""Fields that not every format has."""


def read_fields(path: Path, formats: tuple[int, ...], files: Iterable[str]) -> dict[str, Any]:
    """All that stands in the file, of one of these formats and with checksums of at least these files. Raises OSError,
    or ValueError for a file that is damaged or whose fields are not those of a checkpoint."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint's state: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint's state: it is not an object")
    for key in ("format", "crc32"):
        if key not in content:
            raise UserError(f"{path} is not a checkpoint's state: it has no {key!r}")
    if type(content["format"]) is not int or content["format"] not in formats:
        whole = content["crc32"] == own_sum(content)
        raise (OtherVersion if whole else UserError)(
            f"{path}: checkpoint format {str(content['format'])[:40]}, this version reads"
            f" {' and '.join(map(str, formats))}; use the version of dsmemvp that wrote it"
        )
    if content["crc32"] != own_sum(content):
        raise UserError(f"{path} is damaged: its checksum is not the one it was written with")
    for key, check in {**NEEDED, **OPTIONAL}.items():
        if key not in content:
            if key in NEEDED:
                raise UserError(f"{path} is not a checkpoint's state: it has no {key!r}")
        elif not check(content[key]):
            raise UserError(f"{path} is not a checkpoint's state: {key} is {str(content[key])[:40]!r}")
    for name in files:
        if name not in content["files"]:
            raise UserError(f"{path} is not a checkpoint's state: it has no checksum of {name}")
    return content


def own_sum(content: dict[str, Any]) -> int:
    """The "crc32" of a state.json or adapter.json."""
    rest = {key: value for key, value in content.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def sum_of(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    size = total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]
