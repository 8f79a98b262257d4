"""PPO in two processes over gloo: other samples, the same weights, and sums of the whole batch."""

from pathlib import Path

import pytest
import torch

from tests.invariants.gloo import run_two
from tests.invariants.ppo_processes import run

torch.set_num_threads(1)
pytestmark = pytest.mark.slow  # two processes that import torch and train


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    """What each of two processes ended with, by mode."""
    folder: Path = tmp_path_factory.mktemp("two")
    run_two("tests.invariants.ppo_processes", folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_with_the_same_episodes_equal_one(together, tmp_path):
    """Token counts, whitening, KL, gradients and the metrics are those of the whole batch."""
    alone = run(tmp_path / "alone", fixed=True)
    first, second = (process["fixed"] for process in together)
    for other in (first, second):
        for left, right in zip(alone["history"], other["history"], strict=True):
            for name, value in left.items():
                assert right[name] == pytest.approx(value, rel=1e-3, abs=2e-5), name
        for name, value in alone["weights"].items():
            assert (value - other["weights"][name]).abs().max() < 1e-4, name
    assert max(value.abs().max() for name, value in alone["weights"].items() if "lora_B" in name) > 1e-3


def test_two_processes_draw_other_samples_and_stay_one_model(together):
    first, second = (process["free"] for process in together)
    assert first["history"] == second["history"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["responses"].shape == second["responses"].shape == (8, 6)
    assert (first["responses"] != second["responses"]).any(1).all()
