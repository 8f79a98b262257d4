"""ajuste/core/allocator.py: a block that was freed is found again without a page fault, and only where glibc is."""

import os
import subprocess
import sys

import pytest

from ajuste.core import allocator

PROBE = """
import resource, sys
from ajuste.core.allocator import give_back, keep_memory
import torch
torch.set_num_threads(1)
if sys.argv[1] != "plain":
    print(keep_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16_000_000).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(20):  # the heap finds its shape within a few rounds
    faults()
if sys.argv[1] == "back":
    give_back()
print(faults())
"""


def _run(argument: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, argument], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc only")
def test_a_freed_block_is_kept():
    (without,) = _run("plain")
    line, kept = _run("keep")
    assert line == "memory allocator: freed memory is kept"
    assert int(without) > 5000  # 64 MB of 4 kB pages are about 16,000; the control: this is what happens otherwise
    assert int(kept) < 100
    assert int(_run("back")[1]) > 5000


def test_what_the_environment_sets_is_left(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert "left as the environment sets it" in allocator.keep_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert "not glibc" in allocator.keep_memory()
    allocator.give_back()
