"""The zip files that torch writes (torch.save, TorchScript): their records, read by their place and compared with their
checksums.

Torch writes one record after another and the directory at the end. All of that is compared when an archive is opened:
each record's own header, that the records fill the file without a gap or an overlap, and that nothing follows. A byte
that was inserted, lost or doubled anywhere is found there. A byte that was changed is found by the record's CRC-32: the
first read of a record passes all of it once, in constant memory; later reads of it take only what is asked for.
"""

import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dsmemvp.errors import UserError

LOCAL_HEADER, END = 30, 22
"""Bytes of a record's own header before its name, and of the end of the directory (PKWARE's APPNOTE, 4.3.7, 4.3.16)."""
DESCRIBED_LATER = 0x08
"""Flag: CRC-32 and sizes stand behind the record, and zeros in its own header (APPNOTE, 4.4.4)."""
ENCRYPTED = 0x01
DESCRIPTOR = b"PK\x07\x08"
CHUNK = 1 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Record:
    name: str
    start: int
    """Byte of the file at which its content begins."""
    size: int
    crc32: int
    plain: bool
    """Whether it is stored as it is; TorchScript compresses its code."""


class Archive:
    def __init__(self, path: Path):
        """Raises UserError for what is no whole zip file, OSError."""
        self.path = path
        self._intact: set[str] = set()
        """Names of records whose checksum was compared."""
        try:
            with zipfile.ZipFile(path) as directory, path.open("rb") as file:
                self.records = _records(directory, file, path.stat().st_size)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} cannot be read as weights: it is cut off, or not a file that torch (1.6 or later) has written"
                f" ({error})"
            ) from None
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}; get the file again") from None
        self._checksums = any(record.crc32 for record in self.records.values())
        if not self._checksums:
            warnings.warn(
                f"{path} was written without checksums (torch.serialization.set_crc32_options(False)): values in it"
                " that were changed cannot be told",
                stacklevel=2,
            )

    def read(self, record: Record, start: int = 0, size: int | None = None) -> bytearray:
        """`size` bytes of a record's content from `start` on; None: all that follow. Raises UserError if the
        record is compressed or does not have its checksum, OSError."""
        if not record.plain:
            raise UserError(f"{self.path}: its record {record.name!r} is compressed, as torch does not write it")
        wanted = bytearray(record.size - start if size is None else size)
        view = memoryview(wanted)
        with self.path.open("rb", buffering=0) as file:
            if record.name in self._intact or not self._checksums:
                file.seek(record.start + start)
                self._through(file, view, 0)
                return wanted
            file.seek(record.start)
            crc32 = self._past(file, start, 0)
            crc32 = self._through(file, view, crc32)
            crc32 = self._past(file, record.size - start - len(wanted), crc32)
        if crc32 != record.crc32:
            raise UserError(
                f"{self.path} is damaged: the content of {record.name!r} does not have its checksum; get the file again"
            )
        self._intact.add(record.name)
        return wanted

    def _past(self, file, size: int, crc32: int) -> int:
        """The CRC-32 after the next `size` bytes of the file."""
        chunk = memoryview(bytearray(min(size, CHUNK)))
        while size:
            part = chunk[: min(size, CHUNK)]
            crc32 = self._through(file, part, crc32)
            size -= len(part)
        return crc32

    def _through(self, file, into: memoryview, crc32: int) -> int:
        """Fill `into` with the next bytes of the file; returns their CRC-32, begun with `crc32`."""
        for begin in range(0, len(into), CHUNK):
            part = rest = into[begin : begin + CHUNK]
            while rest:
                read = file.readinto(rest)
                if not read:
                    raise UserError(f"{self.path} ends within its tensors; get the file again")
                rest = rest[read:]
            crc32 = zlib.crc32(part, crc32)
        return crc32


def _records(directory: zipfile.ZipFile, file: BinaryIO, whole: int) -> dict[str, Record]:
    """The records by name, compared with the bytes around them. Raises UserError."""
    found: dict[str, Record] = {}
    end = 0
    for info in sorted(directory.infolist(), key=lambda info: info.header_offset):
        if info.header_offset != end:
            raise UserError(
                f"{info.filename!r} begins at byte {info.header_offset}, the record before it ends at {end}"
            )
        if info.filename in found:
            raise UserError(f"{info.filename!r} stands in it twice")
        start = end + _local_header(file, info)
        end = start + info.compress_size
        if info.flag_bits & DESCRIBED_LATER:
            end += _descriptor(file, info, end)
        plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        found[info.filename] = Record(info.filename, start, info.file_size, info.CRC, plain)
    if end != directory.start_dir:
        raise UserError(f"its last record ends at byte {end}, its directory begins at {directory.start_dir}")
    file.seek(max(0, whole - END))
    if directory.comment or not file.read(END).startswith(b"PK\x05\x06"):
        raise UserError("bytes follow the end of its directory")
    return found


def _local_header(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Bytes of a record's own header, which must say what the directory says. Raises UserError."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    flags, method, name_size, extra_size = (int.from_bytes(header[i : i + 2], "little") for i in (6, 8, 26, 28))
    crc32, packed, size = (int.from_bytes(header[i : i + 4], "little") for i in (14, 18, 22))
    name = file.read(name_size)
    found = (header[:4], name, flags, method)
    # orig_filename is the name as it stands in the directory
    wanted = (b"PK\x03\x04", _encoded(info), info.flag_bits, info.compress_type)
    later = info.flag_bits & DESCRIBED_LATER
    sizes = (0, 0, 0) if later else (info.CRC, min(info.compress_size, 0xFFFFFFFF), min(info.file_size, 0xFFFFFFFF))
    in_extra = not later and packed == size == 0xFFFFFFFF  # zip64, whose sizes the directory has
    if found != wanted or (not in_extra and (crc32, packed, size) != sizes) or info.flag_bits & ENCRYPTED:
        raise UserError(f"the header of {info.filename!r} is not what the directory says")
    return LOCAL_HEADER + name_size + extra_size


def _encoded(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _descriptor(file: BinaryIO, info: zipfile.ZipInfo, start: int) -> int:
    """Bytes of what stands behind a record's content: signature, CRC-32, sizes of 4 bytes or, in zip64, of 8. Raises
    ValueError if it is not what the directory says."""
    file.seek(start)
    found = file.read(24)
    for width in (4, 8):
        if max(info.compress_size, info.file_size) < 1 << 8 * width:
            sizes = info.compress_size.to_bytes(width, "little") + info.file_size.to_bytes(width, "little")
            wanted = DESCRIPTOR + info.CRC.to_bytes(4, "little") + sizes
            if found.startswith(wanted):
                return len(wanted)
    raise UserError(f"what stands behind {info.filename!r} is not what the directory says")
