"""GRPO and RLOO in two processes over gloo: groups, means, gradients and figures are those of the whole batch."""

from pathlib import Path

import pytest
import torch

from tests.invariants.gloo import run_two
from tests.invariants.group_processes import METHODS, run

torch.set_num_threads(1)
pytestmark = pytest.mark.slow  # two processes that import torch and train


def test_two_processes_with_the_same_episodes_equal_one(tmp_path: Path) -> None:
    run_two("tests.invariants.group_processes", tmp_path)
    together = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for method in METHODS:
        alone = run(tmp_path / f"alone-{method}", method)
        for other in (process[method] for process in together):
            for left, right in zip(alone["history"], other["history"], strict=True):
                for name, value in left.items():
                    assert right[name] == pytest.approx(value, rel=1e-3, abs=2e-5), (method, name)
            for name, value in alone["weights"].items():
                assert (value - other["weights"][name]).abs().max() < 1e-4, (method, name)
        moved = max(value.abs().max() for name, value in alone["weights"].items() if "lora_B" in name)
        assert moved > 1e-3 and 0 < alone["history"][0]["grad_norm"]
