"""Tensors in files -> the frozen parameters of a tower, whole or partitioned.

Every parameter must be in the files in its shape, and the files may hold no other tensor. A partitioned parameter takes
only its own range of elements; nothing is sent between ranks. A weight that is stored in fewer bits is quantised on the
way, a few megabytes at a time: of the parts of its codes and scales that lie here, no more is read than they come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from dsmemvp.backbones.linear import Linear
from dsmemvp.backbones.partitioned import held_pieces, whole_shape
from dsmemvp.backbones.quantized import Layout, quantize
from dsmemvp.backbones.reading import Reader
from dsmemvp.backbones.safetensors_file import StoredTensor, some
from dsmemvp.dtypes import WEIGHTS
from dsmemvp.errors import UserError

AT_ONCE = 1 << 21
"""Elements that are quantised at once, in float32."""
Pieces = list[tuple[int, torch.Tensor]]


@dataclass(frozen=True)
class Quantized:
    """The place of a weight that is stored in fewer bits."""

    codes: torch.Tensor
    scales: torch.Tensor
    layout: Layout


Place = nn.Parameter | Quantized
Pairs = list[tuple[StoredTensor, Place]]


def matched(module: nn.Module, stored: dict[str, StoredTensor], folder: str, key: str) -> Pairs:
    """The place of every weight beside its tensor. Raises UserError listing what is missing, left over, of another
    shape or of a type that is not read."""
    places = _places(module)
    both = sorted(places.keys() & stored.keys())
    shapes = {name: (stored[name].shape, _shape(places[name])) for name in both}
    problems = {
        "missing": sorted(places.keys() - stored.keys()),
        "left over": sorted(stored.keys() - places.keys()),
        "of another shape": [f"{n} {has} instead of {wants}" for n, (has, wants) in shapes.items() if has != wants],
        f"of a type other than {', '.join(WEIGHTS)}": [
            f"{name} ({stored[name].dtype})" for name in both if stored[name].dtype not in WEIGHTS
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{key}: {folder} does not fit its config.json; {listed}")
    return [(stored[name], places[name]) for name in both]


def _places(module: nn.Module) -> dict[str, Place]:
    places: dict[str, Place] = dict(module.named_parameters())  # a tied parameter appears once
    for name, part in module.named_modules():
        if isinstance(part, Linear) and part.layout:
            del places[f"{name}.weight_scale"]
            places[f"{name}.weight"] = Quantized(part.weight, part.weight_scale, part.layout)
    return places


def _shape(place: Place) -> tuple[int, ...]:
    return place.layout.shape if isinstance(place, Quantized) else whole_shape(place)


def fill_from_files(pairs: Pairs, tell: bool) -> int:
    """In the order of the files, each from its beginning to its end -> bytes that were read. With `tell` it says how
    far it is."""
    wanted: list[tuple[StoredTensor, _Plain | _Packed]] = [
        (stored, _Packed(place) if isinstance(place, Quantized) else _Plain(held_pieces(place)))
        for stored, place in pairs
    ]
    wanted.sort(key=lambda each: (each[0].path, each[0].start))
    total = sum(into.elements * WEIGHTS[stored.dtype].itemsize for stored, into in wanted)
    with torch.no_grad(), Reader(total, tell) as reader:
        for stored, into in wanted:
            into.fill(reader, stored)
    return reader.count


class _Plain:
    def __init__(self, pieces: Pieces):
        self.own, *self.inside = pieces
        self.elements = self.own[1].numel()

    def fill(self, reader: Reader, stored: StoredTensor) -> None:
        reader.read(stored, *self.own)
        for piece in self.inside:
            _read_beside(reader, stored, self.own, piece)


class _Packed:
    def __init__(self, place: Quantized):
        self.layout = place.layout
        self.codes, self.scales = held_pieces(place.codes), held_pieces(place.scales)
        self.elements = sum(stop - start for start, stop in self._units()) * self.layout.unit

    def fill(self, reader: Reader, stored: StoredTensor) -> None:
        layout, dtype = self.layout, self.scales[0][1].dtype
        step = max(1, AT_ONCE // layout.unit)
        for begin, end in self._units():
            for first in range(begin, end, step):
                last = min(first + step, end)
                values = torch.empty((last - first) * layout.unit, device=self.codes[0][1].device)
                reader.read(stored, first * layout.unit, values)
                codes, scales = quantize(layout, values.view(-1, layout.unit), dtype)
                _put(self.codes, first * layout.unit_bytes, codes.view(-1))
                _put(self.scales, first, scales)

    def _units(self) -> Iterator[tuple[int, int]]:
        """Runs [start, stop) of the units that something here comes from, each unit once."""
        size = self.layout.unit_bytes
        runs = [(start // size, -(-(start + len(piece)) // size)) for start, piece in self.codes if len(piece)]
        runs += [(start, start + len(piece)) for start, piece in self.scales if len(piece)]
        marks = sorted({mark for run in runs for mark in run})
        for start, stop in pairwise(marks):
            if any(first <= start and stop <= last for first, last in runs):
                yield start, stop


def _put(pieces: Pieces, first: int, values: torch.Tensor) -> None:
    """What pieces have in common with `values`, which begin at element `first`."""
    for start, into in pieces:
        low, high = max(first, start), min(first + len(values), start + len(into))
        if low < high:
            into[low - start : high - start] = values[low - first : high - first]


def _read_beside(
    reader: Reader, stored: StoredTensor, own: tuple[int, torch.Tensor], piece: tuple[int, torch.Tensor]
) -> None:
    """hpZ's second piece: what it has in common with the first, which is there already, is not read again."""
    (held, values), (start, into) = own, piece
    low, high = max(held, start), min(held + len(values), start + len(into))
    if low >= high:
        reader.read(stored, start, into)
        return
    reader.read(stored, start, into[: low - start])
    into[low - start : high - start] = values[low - held : high - held]
    reader.read(stored, high, into[high - start :])
