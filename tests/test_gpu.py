"""benchmarks/gpu.py: its arithmetic, and the whole script with a tiny model on a CPU."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[1]


def test_the_peak_of_a_device_by_the_name_that_torch_gives_it() -> None:
    names = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12,
             "NVIDIA GeForce RTX 4090": 165e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12, "CPU": None}  # fmt: skip
    assert {name: gpu.peak_of(name) for name in names} == names


def test_mfu_by_hand() -> None:
    """1e9 parameters, 1,000 tokens in half a second: full 6e9 x 2,000 = 1.2e13; LoRA with 1e7 (4e9 + 6e7) x 2,000."""
    found = {"kind": "full", "parameters": 10**9, "trained": 10**9, "units": 1000, "seconds": [0.4, 0.5, 0.9]}
    assert gpu.mfu(found, 1e14) == pytest.approx(0.12)
    assert gpu.mfu({**found, "kind": "lora", "trained": 10**7}, 1e14) == pytest.approx(0.0812)
    assert gpu.mfu(found, None) is None and gpu.mfu({**found, "kind": "ppo"}, 1e14) is None


def test_what_is_not_run_says_why() -> None:
    options = argparse.Namespace(size="1b", device="cuda", steps=8, batch_rows=8, dtype="bfloat16", peak=788.0)
    found = {"kind": "full", "parameters": 10**9, "trained": 10**9, "units": 16384, "seconds": [0.25], "peak_gb": 20.0,
             "device": "NVIDIA H200", "load": 1.0}  # fmt: skip
    text = gpu.report([found], {"qlora": "bitsandbytes is not installed"}, options)
    assert "| SFT, QLoRA | not run: bitsandbytes is not installed |" in text
    assert "| SFT, full | 0.250 | 0.250 to 0.250 | 65,536.0 tokens | 49.9% | 20.0 |" in text and "788 TFLOP/s" in text


@pytest.mark.slow
def test_every_training_runs_on_a_cpu(tmp_path: Path) -> None:
    kept = tmp_path / "values"
    command = ["-m", "benchmarks.gpu", "--size", "tiny", "--device", "cpu", "--dtype", "float32", "--steps", "3",
               "--batch-rows", "4", "--threads", "1", "--new-tokens", "8", "--out", tmp_path / "page.md"]  # fmt: skip
    environment = {**os.environ, "AJUSTE_BENCH_VALUES": str(kept), "AJUSTE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment, check=True, capture_output=True)
    page = (tmp_path / "page.md").read_text()
    assert "not run" not in page and all(f"| {name} | " in page for name in gpu.NAMES.values())
    figures = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(figures) == 2 * len(gpu.ALL) and all(figure["median"] > 0 for figure in figures)
