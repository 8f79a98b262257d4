"""A file is hashed once, and again when it is another."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from ajuste.core import hashes


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(file: object, kind: str) -> object:
        read.append(kind)
        return digest(file, kind)

    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", counted)
    path = tmp_path / "weights"

    def write(content: bytes, age: float) -> str:
        path.write_bytes(content)
        os.utime(path, (time.time() - age,) * 2)
        return hashlib.sha256(content).hexdigest()

    first = write(b"one", age=60)
    assert [hashes.sha256_of(path) for _ in range(3)] == [first] * 3 and len(read) == 1
    second = write(b"two", age=50)
    assert [hashes.sha256_of(path) for _ in range(3)] == [second] * 3 and len(read) == 2, "another time of change"
    young = write(b"new", age=0)
    assert [hashes.sha256_of(path) for _ in range(2)] == [young] * 2 and len(read) == 4, "it may still be written"
    with pytest.raises(FileNotFoundError):
        hashes.sha256_of(tmp_path / "none")
