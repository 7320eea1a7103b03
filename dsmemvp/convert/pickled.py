"""What a pickle of torch's holds, without unpickling: nothing in it is run or looked up.

It is read opcode by opcode, and only those are known that torch writes (pickle's protocol 2, as in torch's own
weights-only mode). Every opcode adds at most one small object, so memory and time are bounded by the pickle's length;
what could copy or hash a large object is not known here.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST = 4 << 20
"""Bytes of a pickle that are read: an entry of a state dictionary takes about 150."""
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
"""Opcodes that hold a number or a text."""
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(Exception):
    """What a pickle holds that is not read, or that it is damaged."""


@dataclass(frozen=True)
class Made:
    """Stands for a function or a class that a pickle names: what calling it with the pickle's arguments gives."""

    make: Callable[..., Any]


@dataclass(eq=False, slots=True)
class Object:
    """Stands for an object of any class: its attributes alone."""

    attributes: dict[str, Any] = field(default_factory=dict)


def unpickled(content: bytes, named: Callable[[str, str], Any], stored: Callable[[Any], Any]) -> Any:
    """The value in a pickle of at most MOST bytes. `named(module, name)` says what a name stands for, a Made if it
    may be called; `stored` what a persistent id does; both may raise PickleError. Raises PickleError."""
    machine = _Machine(named, stored)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.take(opcode.name, argument)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise PickleError(f"its list of tensors is damaged: {' '.join(str(error).split())[:200]}") from None
    raise PickleError("its list of tensors is cut off")


class _Machine:
    def __init__(self, named: Callable[[str, str], Any], stored: Callable[[Any], Any]):
        self._named, self._stored = named, stored
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def take(self, opcode: str, argument: Any) -> None:
        """Raises PickleError, and the errors of a stack that has not what is asked for."""
        stack = self.stack
        if opcode in VALUES:
            stack.append(argument)
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "MARK":
            self._marks.append(len(stack))
        elif opcode == "TUPLE":
            stack.append(tuple(self._after_mark()))
        elif opcode in TUPLES:
            stack.append(tuple(self._popped(TUPLES[opcode])))
        elif opcode == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif opcode == "BINPERSID":
            stack.append(self._stored(stack.pop()))
        elif opcode in ("REDUCE", "NEWOBJ"):
            function, arguments = self._popped(2)
            stack.append(_called(function, arguments))
        elif opcode in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            self._fill(opcode)
        elif opcode != "PROTO":
            raise PickleError(f"it holds the opcode {opcode}, which torch does not write")

    def _fill(self, opcode: str) -> None:
        """Give the object on top of the stack what stands behind it."""
        count = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}.get(opcode)
        given = self._after_mark() if count is None else self._popped(count)
        onto = self.stack[-1]
        if opcode.startswith("APPEND") and type(onto) is list:
            onto.extend(given)
        elif opcode.startswith("SETITEM") and type(onto) is dict:
            for key, value in zip(given[::2], given[1::2], strict=True):
                # a text or a number: a nest of tuples can take for ever to hash
                if not isinstance(key, str | int | float):
                    raise PickleError(f"a key in it is of the type {type(key).__name__}")
                onto[key] = value
        elif opcode == "BUILD" and isinstance(onto, Object) and isinstance(given[0], dict):
            onto.attributes.update({name: value for name, value in given[0].items() if isinstance(name, str)})
        elif opcode != "BUILD" or not isinstance(onto, dict | list):  # attributes of a dictionary, such as _metadata
            raise PickleError(f"it gives a {type(onto).__name__} what that does not take")

    def _popped(self, count: int) -> list[Any]:
        if len(self.stack) - (self._marks[-1] if self._marks else 0) < count:
            raise IndexError("values are missing")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _after_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Made) or type(arguments) is not tuple:
        raise PickleError(f"it calls a {type(function).__name__}")
    return function.make(*arguments)
