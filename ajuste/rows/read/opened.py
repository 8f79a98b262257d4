"""The bytes of a file as a person means them: a compressed file, or a zip of one file, is the file inside.

    open_bytes("train.jsonl.gz").readline()     gz, bz2, xz, zst; told by the first bytes, not by the name
    inner_name("export.zip")                    "rows.csv": the name that says the format

A file that is cut off or damaged inside its packing is a DataError, wherever in the file it shows.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from ajuste.core.errors import DataError

PACKINGS = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst", ".zip": "zip"}
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst", b"PK\x03\x04": "zip"}
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def packing(path: Path) -> str | None:
    """How a file is packed, by its first bytes; None if it is not."""
    with path.open("rb") as file:
        head = file.read(10)
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    return None if found == "bz2" and head[4:] != b"1AY&SY" else found


def inner_name(path: Path) -> str:
    """The name of the file inside: without the ending of its packing, of a zip the name of its one file."""
    if path.suffix.lower() not in PACKINGS:
        return path.name
    if path.suffix.lower() == ".zip" and path.is_file() and packing(path) == "zip":
        return Path(_only_member(path)).name
    return path.name[: -len(path.suffix)]


def open_bytes(path: Path) -> BinaryIO:
    """The file, unpacked as it is read. Raises DataError for a zip of several files."""
    how = packing(path)
    if how is None:
        return path.open("rb")
    return io.BufferedReader(_Unpacked(path, how), 1 << 16)


class _Unpacked(io.RawIOBase):
    """Raw bytes out of a packed file; what is wrong with the packing is a DataError that names the file."""

    def __init__(self, path: Path, how: str) -> None:
        self._path = path
        try:
            self._inner = _opened(path, how)
        except BROKEN as error:
            raise self._damaged(error) from None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            part = self._inner.read(len(buffer))
        except BROKEN as error:
            raise self._damaged(error) from None
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_inner"):
            self._inner.close()
        super().close()

    def _damaged(self, error: Exception) -> DataError:
        words = " ".join(str(error).split())[:120] or type(error).__name__
        return DataError(f"{self._path} cannot be unpacked: {words}: is the file cut off?")


def _opened(path: Path, how: str):
    if how == "zip":
        return zipfile.ZipFile(path).open(_only_member(path))
    if how == "zst":
        import pyarrow as pa

        return pa.input_stream(str(path), compression="zstd")
    return {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[how](path, "rb")


def _only_member(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()
                     if not info.is_dir() and not info.filename.startswith("__MACOSX/")]  # fmt: skip
    except BROKEN as error:
        raise DataError(f"{path} cannot be unpacked: {error}: is the file cut off?") from None
    if len(names) != 1:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise DataError(f"{path} is a zip of {len(names)} files ({shown}), not of one: unpack it, add one by one")
    return names[0]
