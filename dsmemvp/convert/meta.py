"""A folder of LLaMA as Meta hands it out: consolidated.NN.pth, one file per tensor-parallel piece, and params.json.

Which dimension a tensor is cut along follows from fairscale's layers that Meta's code is built of: ColumnParallelLinear
(wq, wk, wv, w1, w3, output) along its rows, RowParallelLinear (wo, w2) along its columns, embeddings along the width
(LLaMA-1 and 2) or the vocabulary (LLaMA-3); norms stand whole in every piece. With more pieces than key/value heads
each of these heads stands in several pieces, one after another. rope.freqs is computed, not read.
"""

import re
from pathlib import Path

import torch
from transformers import LlamaConfig

from dsmemvp.convert.files import tensors_in
from dsmemvp.convert.lazy import LazyTensor, Tensors, concatenated
from dsmemvp.convert.llama import LAYER, WHOLE, language_tensors, layer_and_part
from dsmemvp.convert.meta_config import language_config, read_params
from dsmemvp.counting import counted
from dsmemvp.errors import UserError

ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
COLUMNS = ("wo", "w2")
NORMS = ("attention_norm", "ffn_norm", "norm")


def is_meta_folder(folder: Path) -> bool:
    return (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth"))


def meta_language_model(folder: Path) -> tuple[Tensors, LlamaConfig]:
    """Raises UserError if pieces are missing, or are not of one model."""
    params = read_params(folder / "params.json")
    files = _piece_files(folder)
    pieces = [_known(tensors_in(path), path) for path in files]
    for path, piece in zip(files, pieces, strict=True):
        if other := sorted(piece.keys() ^ pieces[0].keys()):
            raise UserError(f"{path} and {files[0].name} are not pieces of one model: only one has {other[0]}")
    heads = params["n_heads"]
    head_dim = params["dim"] // heads
    kv_rows = (params.get("n_kv_heads") or heads) * head_dim
    whole = {name: _whole(name, [p[name] for p in pieces], params["dim"], kv_rows) for name in pieces[0]}
    if "tok_embeddings.weight" not in whole:
        raise UserError(f"{folder}: consolidated.*.pth hold no tok_embeddings.weight; is it a LLaMA of Meta's?")
    tied = _tied(whole)
    if tied:
        whole.pop("output.weight", None)
    config = language_config(params, whole["tok_embeddings.weight"].shape[0], tied)
    return language_tensors(whole, head_dim), config


def _piece_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("consolidated.*.pth"))
    wanted = [folder / f"consolidated.{i:02d}.pth" for i in range(max(1, len(files)))]
    for path in wanted:
        if path not in files:
            raise UserError(f"{path} does not exist; the folder holds {counted(len(files), 'piece')}")
    return files


def _known(tensors: Tensors, path: Path) -> Tensors:
    tensors = {name: t for name, t in tensors.items() if name != "rope.freqs" and not name.endswith(".rope.freqs")}
    for name in tensors:
        layer, part = layer_and_part(name)
        if part not in (WHOLE if layer is None else LAYER):
            raise UserError(f"{path} holds {name}, which is no tensor of a LLaMA in Meta's layout")
    return tensors


def _whole(name: str, pieces: list[LazyTensor], dim: int, kv_rows: int) -> LazyTensor:
    part = name.removesuffix(".weight").rpartition(".")[2]
    if part in NORMS:
        return pieces[0]
    if any(len(piece.shape) != 2 for piece in pieces):
        raise UserError(f"{name} has shapes {[piece.shape for piece in pieces]}, none of a matrix")
    if part == "tok_embeddings":
        # a piece that is as wide as the model holds some of the vocabulary
        return concatenated(pieces, 0 if pieces[0].shape[1] == dim else 1)
    if part in ("wk", "wv"):
        pieces = _without_repeats(name, pieces, kv_rows)
    return concatenated(pieces, 1 if part in COLUMNS else 0)


def _without_repeats(name: str, pieces: list[LazyTensor], kv_rows: int) -> list[LazyTensor]:
    """Each key/value head once. Raises UserError if what should be copies is not."""
    rows = sum(piece.shape[0] for piece in pieces)
    times = rows // kv_rows
    if rows % kv_rows or times < 2 or len(pieces) % times:
        return pieces

    def same(first: LazyTensor, *others: LazyTensor) -> LazyTensor:
        def read() -> torch.Tensor:
            tensor = first.read()
            if not all(torch.equal(tensor, other.read()) for other in others):
                raise UserError(f"{name}: {times} pieces in a row should hold copies of a key/value head, and do not")
            return tensor

        return LazyTensor(first.shape, first.dtype, read)

    return [same(*pieces[i : i + times]) for i in range(0, len(pieces), times)]


def _tied(whole: Tensors) -> bool:
    """Whether input and output embeddings are one tensor (Llama 3.2 1B and 3B)."""
    output, embeddings = whole.get("output.weight"), whole["tok_embeddings.weight"]
    if output is None:
        return True
    return output.shape == embeddings.shape and torch.equal(output.read(), embeddings.read())


def tokenizer_of(folder: Path) -> tuple[Path | None, str]:
    """The sentencepiece model that belongs to the folder (LLaMA-1 and 2 keep it there or one above) and, if there is
    none, a word to the user."""
    for path in (folder / "tokenizer.model", folder.resolve().parent / "tokenizer.model"):
        if path.is_file():
            with path.open("rb") as file:
                first = file.readline(200)
            if re.fullmatch(rb"[A-Za-z0-9+/=]+ \d+\s*", first):
                return (
                    None,
                    f"{path} is tiktoken's and not copied; take the tokenizer.json that Hugging Face has",
                )
            return path, ""
    return None, "no tokenizer.model lies beside it; a recipe needs one"
