"""What this machine has left for a training, and what a process of it takes before its first tensor.

    CPU     the least of what the system calls available and what the control group of this process allows
    GPU     what `nvidia-smi` says is free on the first one that is visible

A stage runs on the GPU when `compute.device` is cuda, or auto and there is one. Everything is asked without torch.
"""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

PROCESS = 0.75e9  # bytes of Python, torch, transformers and PEFT once imported: docs/measured/plan.md
GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Room(NamedTuple):
    """bytes that are free, of a device; process: bytes of them that the imports take."""

    device: str
    bytes: float
    process: float


def room(device: str) -> Room:
    """Of `compute.device`: auto, cpu or cuda. A GPU that does not answer counts as none."""
    free = None if device == "cpu" else _gpu()
    if free is not None:
        return Room("cuda", free, 0.0)
    return Room("cpu", _cpu(), PROCESS)


def _cpu() -> float:
    free = [float(psutil.virtual_memory().available)]
    for limit, used in GROUPS:
        try:
            free.append(float(Path(limit).read_text()) - float(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or `max`: no limit
            continue
    return max(0.0, min(free))


def _gpu() -> float | None:
    """Free bytes of the first visible GPU, None where there is none."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    if first in ("", "-1"):
        return None
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return float(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
