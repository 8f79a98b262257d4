"""Memory that a training step frees stays with the process, so that the next step finds it without asking the kernel.

Activations and logits are tens of megabytes each. glibc's malloc maps such a block anew every time and unmaps it when
it is freed, and the kernel clears every page of it again: on a CPU up to a third of a training step. `keep_memory`
makes one heap of it that only grows. Peak memory reads higher; no number changes.

    keep_memory()          at the start of a stage that trains, before its model is loaded
    give_back()            where what follows is no training

Blocks of ever other sizes, as an evaluation's logits are, would each find the heap's gaps too small or in use by a
little something, and lie beside one another: 12 GB in place of 4 after some dozen batches.

Documentation: mallopt(3). Does nothing on other C libraries, nor where the environment already sets malloc. Huge pages
(MADV_HUGEPAGE over the heap) were tried: no faster once touched, six times slower the first time.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}  # mallopt(3)
SETTINGS = {
    M_MMAP_MAX: 0,  # no block is mapped apart
    M_TRIM_THRESHOLD: -1,  # the heap is never cut
    M_TOP_PAD: 512 << 20,  # bytes that it grows by
}


def keep_memory() -> str:
    """Let malloc keep what it is given; returns what was done, as a line for people."""
    if _set_by_hand():
        return "memory allocator: left as the environment sets it"
    libc = _glibc()
    if libc is None:
        return "memory allocator: left alone, this is not glibc"
    refused = [name for name, value in SETTINGS.items() if not libc.mallopt(name, value)]
    return "memory allocator: glibc refused the settings" if refused else "memory allocator: freed memory is kept"


def give_back() -> None:
    """Undo `keep_memory`: malloc maps large blocks apart again, and what is free now goes to the kernel."""
    libc = _glibc()
    if libc is not None and not _set_by_hand():
        for name, value in USUAL.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


def _set_by_hand() -> bool:
    return any(name.startswith("MALLOC_") for name in os.environ)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
