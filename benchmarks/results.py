"""The figures of a measurement as JSON: what `make bench` keeps beside the page that people read.

    in a script      value("SFT, Ajuste", "trained tokens/s", [529.1, 531.0])     a figure and its runs
    {"name": "SFT, Ajuste", "unit": "trained tokens/s", "runs": [529.1, 531.0], "median": 530.05,
     "spread": [529.1, 531.0]}

spread: the lowest and the highest run. Figures are written only where $AJUSTE_BENCH_VALUES names a file, a line each:
benchmarks/suite.py names one. `machine` says what they were measured on.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ajuste.tracking.again.hardware import cpu

VALUES = "AJUSTE_BENCH_VALUES"
OF_CPU = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")  # instructions that decide how fast a CPU is here


def value(name: str, unit: str, runs: Sequence[float]) -> None:
    """Keep a figure: one number for each time that it was measured. Raises ValueError without a number."""
    numbers = [float(number) for number in runs]
    if not numbers:
        raise ValueError(f"figure {name!r} has no run")
    path = os.environ.get(VALUES)
    if path:
        line = {"name": name, "unit": unit, "runs": numbers, "median": median(numbers),
                "spread": [min(numbers), max(numbers)]}  # fmt: skip
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def values(results: Sequence[dict], units: dict[str, str], *by: str) -> None:
    """Keep the figures of many runs: of each figure that `units` names those runs together that agree in all of `by`.

    values([{"side": "ours", "peak_mb": 3019}], {"peak_mb": "MB"}, "side")      keeps "ours, peak_mb"
    """
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(", ".join(str(result[key]) for key in by), []).append(result)
    for group, some in groups.items():
        for figure, unit in units.items():
            value(f"{group}, {figure}", unit, [result[figure] for result in some])


def read(path: Path) -> list[dict]:
    """The figures that a script kept."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def machine() -> dict:
    """Processor, its cores and instructions, memory, GPU (None where none answers), Python."""
    name, flags = cpu()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": name, "cores": os.cpu_count(), "flags": [flag for flag in OF_CPU if flag in flags],
        "memory_gb": round(pages / 1e9, 1), "gpu": gpu(), "python": platform.python_version(),
    }  # fmt: skip


def gpu() -> str | None:
    """The name of the first GPU, asked without torch."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
