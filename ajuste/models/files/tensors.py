"""The tensors of a safetensors file, one at a time: what is not held takes no memory.

    weights = Tensors(Path("model.safetensors"))
    weights["lm_head.weight"]                       read now, and forgotten with its last use
    stored_dtype(Path("model.safetensors"))         torch.bfloat16: what the file's floating weights are

Files are read, not mapped: of a mapped file all that was touched counts as the process's memory until it is closed.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class Tensors(Mapping):
    """Name -> tensor of a safetensors file, read anew each time."""

    def __init__(self, file: Path) -> None:
        self._file = safe_open(str(file), framework="pt", backend="pread")
        self._names = {name: None for name in self._file.keys()}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def stored_dtype(file: Path) -> torch.dtype:
    """The dtype in which most floating weights of a file are kept, float32 where there are none."""
    kinds: Counter = Counter()
    for kind, number in _kinds(file):
        kinds[kind] += number * (kind in FLOATS)
    most = max(kinds, key=lambda kind: (kinds[kind], kind), default="F32")
    return FLOATS.get(most, torch.float32)


def size_in(file: Path, dtype: torch.dtype) -> int:
    """Bytes that the tensors of a file take when its floating ones are in `dtype`."""
    return sum(number * (dtype.itemsize if kind in FLOATS else 8) for kind, number in _kinds(file))


def _kinds(file: Path) -> Iterator[tuple[str, int]]:
    """(kind, numbers) of every tensor."""
    with safe_open(str(file), framework="pt") as opened:
        for name in opened.keys():
            piece = opened.get_slice(name)
            yield piece.get_dtype(), math.prod(piece.get_shape())
