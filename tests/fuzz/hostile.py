"""Files that are made to take memory or time, by the names of their readers (examples.py); all must be refused."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

DEEP = b"[" * 200_000
Hostile = tuple[str, dict[str, bytes], Callable[[Path], object]]


def _fifo(name: str) -> Hostile:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return f"a FIFO for {name}", {}, spoil


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compressobj(9)
    content = b"".join(rows.compress(b"\0" * (1 + width // 8)) for _ in range(height)) + rows.flush()
    about = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def _zipped(pickled: bytes, method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in more.items():
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def _bombs(script: bytes | None = None) -> list[tuple[str, bytes]]:
    """Pickles that make much of little; with `script`, in a TorchScript archive."""
    more = {} if script is None else {"constants.pkl": script}
    memory = b"\x80\x02c__builtin__\nbytearray\n(J\x00\x00\x00\x7ftR."
    doubled = b"\x80\x02](" + b"".join(b"q%cK\x01h%c" % (i, i) for i in range(60)) + b"e."
    hashed = b"\x80\x02})" + b"".join(b"q\x00h\x00\x86" for _ in range(80)) + b"K\x01s."
    copied = b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01(" + b"K\x01" * 50_000 + b"e"
    copied += b"h\x00h\x01\x85R" * 30_000 + b"."
    memo = b"\x80\x02Nr\xff\xff\xff\x7f."
    objects = pickle.dumps([{} for _ in range(3_000_000)], protocol=2)
    return [
        ("an inflated pickle", _zipped(b"\x80\x02(" + b"N" * 290_000_000 + b"t.", zipfile.ZIP_DEFLATED, **more)),
        ("a large pickle", _zipped(objects, **more)),
        *((f"pickle {i}", _zipped(bomb, **more)) for i, bomb in enumerate((memory, doubled, hashed, copied, memo))),
        ("a pickle that nests", _zipped(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", **more)),
    ]


def _safetensors(shape: str = "[4]", size: int | None = None, dtype: str = "F32") -> bytes:
    header = b'{"a":{"dtype":"%s","shape":%s,"data_offsets":[0,16]}}' % (dtype.encode(), shape.encode())
    return struct.pack("<Q", len(header) if size is None else size) + header + b"\0" * 16


def _headers(name: str) -> list[Hostile]:
    contents = [
        _safetensors(size=1 << 40),
        _safetensors(f"[{10**18},{10**18},{10**18}]"),
        _safetensors("[" + ",".join(["9" * 4000] * 2000) + "]"),
        _safetensors("[" + "1," * 4_000_000 + "4]"),
        struct.pack("<Q", len(DEEP)) + DEEP,
    ]
    return [(f"header {i}", {name: content}, bool) for i, content in enumerate(contents)]


def _with(file: str, **changed: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changed))

    return spoil


CHECKPOINT = "checkpoints/step-00000003/"


def _resealed(without: str, **changed: object) -> Callable[[Path], object]:
    """A state with a right checksum, but not of a checkpoint."""

    def spoil(folder: Path) -> None:
        path = folder / CHECKPOINT / "state.json"
        content = json.loads(path.read_bytes()) | changed
        content = {key: value for key, value in content.items() if key not in (without, "crc32")}
        content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        path.write_text(json.dumps(content))

    return spoil


HOSTILE: dict[str, list[Hostile]] = {
    "config": [
        ("deep", {"language/config.json": DEEP}, bool),
        _fifo("language/config.json"),
        *(
            (f"{key} {number}", {}, _with(f"{folder}/config.json", **{key: number}))
            for folder, keys in (
                ("language", ("num_hidden_layers", "hidden_size", "vocab_size", "head_dim", "intermediate_size")),
                ("vision", ("num_hidden_layers", "hidden_size", "image_size", "intermediate_size")),
            )
            for key in keys
            for number in (900, 10**6, 10**9, 10**18)
        ),
    ],
    "weights": [*_headers("language/model.safetensors"), _fifo("language/model.safetensors")],
    "safetensors source": [*_headers("source.safetensors"), _fifo("source.safetensors")],
    "sentencepiece": [_fifo("tokenizer.model"), ("large", {"tokenizer.model": b"\0" * (70 << 20)}, bool)],
    "tokenizer.json": [
        _fifo("tokenizer.json"),
        ("deep", {"tokenizer.json": b'{"a":' * 200_000}, bool),
        ("deep beside", {"tokenizer_config.json": DEEP}, bool),
    ],
    "tar": [_fifo("000000.tar")],
    "sample": [("deep", {"a.json": DEEP}, bool), ("large", {"a.json": b"[" + b"[]," * (8 << 20) + b"[]]"}, bool)],
    "PNG": [
        ("wide", {"image": _png(50_000_000, 1)}, bool),
        ("high", {"image": _png(1, 50_000_000 // 8)}, bool),
    ],
    "checkpoint": [
        ("deep", {CHECKPOINT + "state.json": DEEP}, bool),
        *((f"no {key}", {}, _resealed(key)) for key in ("recipe", "step", "files", "order", "format")),
        ("a recipe of texts", {}, _resealed("", recipe={"method": "x"})),
        ("files elsewhere", {}, _resealed("", files={"../../x": [1, 1]})),
        ("a step in words", {}, _resealed("", step="three")),
        _fifo(CHECKPOINT + "state.json"),
        _fifo(CHECKPOINT + "trained.safetensors"),
    ],
    "exported": [("deep", {"adapter.json": DEEP}, bool), _fifo("adapter.json"), _fifo("trained.safetensors")],
    "predictions": [("deep", {"p.jsonl": DEEP + b"\n"}, bool), _fifo("p.jsonl")],
    "params.json": [
        ("deep", {"params.json": DEEP}, bool),
        ("layers", {}, _with("params.json", n_layers=10**9)),
        ("width", {}, _with("params.json", dim=2 * 10**18)),
    ],
    "published": [(name, {"source.pth": bomb}, bool) for name, bomb in _bombs()],
    "CLIP": [(name, {"source.pt": bomb}, bool) for name, bomb in _bombs(b"")],
    "bin's config": [("layers", {}, _with("config.json", num_hidden_layers=10**9))],
}
