"""What kind of processor computes here: equal bytes are promised for one kind alone (docs/reproducibility.md)."""

import os
import platform
from functools import cache
from pathlib import Path

SETS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")  # instructions that torch's libraries choose their kernels by
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # with which a person narrows them


def cpu() -> tuple[str, list[str]]:
    """The processor's name and all the instructions that it says it has; none where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return facts.get("model name") or platform.processor() or platform.machine(), facts.get("flags", "").split()


@cache
def cpu_kind() -> str:
    """"Intel(R) Xeon(R) Gold 6348, avx2 avx512f": the model's name and its vector instructions, nothing of this machine
    alone."""
    name, flags = cpu()
    words = [word for word in SETS if word in flags]
    words += [f"{key}={os.environ[key]}" for key in LIMITS if key in os.environ]
    return ", ".join([name, " ".join(words)] if words else [name])


def hardware(device: str) -> str:
    """What a result was made on: "cpu: <kind>" or "cuda: <kind>"."""
    return f"{device}: {cpu_kind()}"
