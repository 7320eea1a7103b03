"""Tensors in files -> the frozen parameters of a tower, whole or partitioned.

Every parameter must be in the files in its shape, and the files may hold no other tensor. A partitioned parameter takes
only its own range of elements; nothing is sent between ranks.
"""

import torch
from torch import nn

from dsmemvp.backbones.partitioned import held_pieces, whole_shape
from dsmemvp.backbones.reading import Reader
from dsmemvp.backbones.safetensors_file import StoredTensor, some
from dsmemvp.dtypes import WEIGHTS
from dsmemvp.errors import UserError

Pairs = list[tuple[StoredTensor, nn.Parameter]]


def matched(module: nn.Module, stored: dict[str, StoredTensor], folder: str, key: str) -> Pairs:
    """Every parameter beside its tensor. Raises UserError listing what is missing, left over, of another shape or of a
    type that is not read."""
    parameters = dict(module.named_parameters())  # a tied parameter appears once
    both = sorted(parameters.keys() & stored.keys())
    shapes = {name: (stored[name].shape, whole_shape(parameters[name])) for name in both}
    problems = {
        "missing": sorted(parameters.keys() - stored.keys()),
        "left over": sorted(stored.keys() - parameters.keys()),
        "of another shape": [f"{n} {has} instead of {wants}" for n, (has, wants) in shapes.items() if has != wants],
        f"of a type other than {', '.join(WEIGHTS)}": [
            f"{name} ({stored[name].dtype})" for name in both if stored[name].dtype not in WEIGHTS
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{key}: {folder} does not fit its config.json; {listed}")
    return [(stored[name], parameters[name]) for name in both]


def fill_from_files(pairs: Pairs, tell: bool) -> int:
    """In the order of the files, each from its beginning to its end -> bytes that were read. With `tell` it says how
    far it is."""
    wanted = [(stored, held_pieces(parameter)) for stored, parameter in pairs]
    wanted.sort(key=lambda each: (each[0].path, each[0].start))
    total = sum(pieces[0][1].numel() * WEIGHTS[stored.dtype].itemsize for stored, pieces in wanted)
    with torch.no_grad(), Reader(total, tell) as reader:
        for stored, (own, *inside) in wanted:
            reader.read(stored, *own)
            for piece in inside:
                _read_beside(reader, stored, own, piece)
    return reader.count


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
