"""Small stand-ins of what others publish, in the very layout: ScienceQA, LLaMA as Meta's files, CLIP as OpenAI's."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor


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


def write_meta_llama(
    folder: Path, tokenizer: Path, pieces: int, dim: int = 32, layers: int = 2, heads: int = 2
) -> None:
    """A random LLaMA-2 in `pieces` of tensor parallelism, its tokenizer one folder up (Meta's llama/model.py says
    which layers are column-parallel and which row-parallel)."""
    hidden, vocabulary = 64, SentencePieceProcessor(str(tokenizer)).GetPieceSize()
    folder.mkdir(parents=True)
    shutil.copy(tokenizer, folder.parent / "tokenizer.model")
    params = {"dim": dim, "multiple_of": 32, "n_heads": heads, "n_layers": layers, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    generator = torch.Generator().manual_seed(0)
    files: list[dict[str, torch.Tensor]] = [{} for _ in range(pieces)]

    def put(name: str, *shape: int, cut: int | None) -> None:
        whole = torch.ones(shape) if len(shape) == 1 else 0.1 * torch.randn(shape, generator=generator)
        parts = [whole] * pieces if cut is None else whole.chunk(pieces, cut)
        for file, part in zip(files, parts, strict=True):
            file[f"{name}.weight"] = part.clone().half()

    put("tok_embeddings", vocabulary, dim, cut=1)
    put("output", vocabulary, dim, cut=0)
    put("norm", dim, cut=None)
    for i in range(layers):
        for name in ("wq", "wk", "wv"):
            put(f"layers.{i}.attention.{name}", dim, dim, cut=0)
        put(f"layers.{i}.attention.wo", dim, dim, cut=1)
        put(f"layers.{i}.feed_forward.w1", hidden, dim, cut=0)
        put(f"layers.{i}.feed_forward.w3", hidden, dim, cut=0)
        put(f"layers.{i}.feed_forward.w2", dim, hidden, cut=1)
        for name in ("attention_norm", "ffn_norm"):
            put(f"layers.{i}.{name}", dim, cut=None)
    for i, file in enumerate(files):
        torch.save(file | {"rope.freqs": torch.ones(dim // heads // 2)}, folder / f"consolidated.{i:02d}.pth")
