"""YAML that others may have written: every fault in it is a ValueError of one line, and the work for it is bounded."""

import reprlib
from typing import Any

import yaml

from dsmemvp.errors import UserError

MOST = 256 << 10
"""Bytes of a text; PyYAML reads some 100 kB per second."""
DEPTH = 16
"""Most mappings and lists inside one another."""
MOST_NODES = 10_000
"""Most values, those of an alias counted wherever it stands."""
MOST_CHARACTERS = 10_000
"""Of one key or value."""


def compose_yaml(text: str) -> yaml.Node | None:
    """The root of one YAML document, None if it is empty. Raises UserError without saying where the text is from."""
    if len(text.encode(errors="surrogatepass")) > MOST:
        raise UserError(f"is longer than {MOST:,} bytes")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise UserError(f"is nested deeper than {DEPTH} levels") from None
    except yaml.YAMLError as error:
        raise UserError(f"is not YAML: {yaml_problem(error)}") from None
    if root is not None and _size(root, {}, 0) > MOST_NODES:
        raise UserError(f"holds more than {MOST_NODES:,} keys and values")
    return root


def plain_value(node: yaml.Node) -> Any:
    """What a node of `compose_yaml` stands for, in Python's types. Raises UserError."""
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(yaml_problem(error)) from None
    except (LookupError, AttributeError, TypeError):  # PyYAML's own, of a value that its tag does not go with
        raise UserError(f"{shown(node.value)} cannot be read as {node.tag.rpartition(':')[2]}") from None


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Nodes in it when aliases are written out; `known` holds those of the nodes below, 0 for one that holds itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise UserError(f"holds an alias of itself (line {node.start_mark.line + 1})")
        return known[id(node)]
    if depth > DEPTH:
        raise UserError(f"is nested deeper than {DEPTH} levels (line {node.start_mark.line + 1})")
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > MOST_CHARACTERS:
            raise UserError(f"has a value of {len(node.value):,} characters (line {node.start_mark.line + 1})")
        return 1
    known[id(node)] = 0
    inside = [n for pair in node.value for n in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
    known[id(node)] = 1 + sum(_size(each, known, depth + 1) for each in inside)
    return known[id(node)]


def yaml_problem(error: Exception) -> str:
    """An error of the YAML reader in one line."""
    mark = getattr(error, "problem_mark", None)
    text = " ".join(str(getattr(error, "problem", None) or error).split())[:300]
    return f"{text} (line {mark.line + 1})" if mark else text


def shown(value: Any) -> str:
    """A value in a message, as Python writes it but never long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
