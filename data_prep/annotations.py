"""Reading the files in which data sets are published; what is wrong is reported with file and place."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.plan import Planned
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError

KINDS = {str: "text", int: "a number", list: "a list", dict: "an object"}


def load_json(path: Path, expected: type, layout: str = "") -> Any:
    """The content of a JSON file. Raises UserError, which says what was expected: `layout`."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, expected):
        raise UserError(f"{path} is not {KINDS[expected]}{layout and f' of {layout}'}")
    return content


def plan_lines(path: Path, row: Callable[[Any, str, int], Planned]) -> Iterator[Planned | SampleError]:
    """Of every line of a file of JSON lines that is not empty, what `row` makes of its content, its place in words and
    its number, or the SampleError that `row` raises."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                yield row(_parsed(line, where), where, number)
            except SampleError as error:
                yield error


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SampleError(where, f"is not JSON ({error})") from None


def part(content: Any, name: str, expected: type, where: str) -> Any:
    """content[name], which must be of the expected type. Raises SampleError."""
    if not isinstance(content, dict):
        raise SampleError(where, "is not an object")
    if name not in content:
        raise SampleError(where, f"has no {name!r}")
    value = content[name]
    if not isinstance(value, expected) or isinstance(value, bool):
        raise SampleError(where, f"{name} is not {KINDS[expected]}: {_short(value)}")
    return value


def table(path: Path, name: str) -> list:
    """The list that stands under a name in a JSON file."""
    return part(load_json(path, dict), name, list, str(path))


def texts(values: Sequence[Any], name: str, where: str) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise SampleError(where, f"{name} is not a list of texts")
    return list(values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
