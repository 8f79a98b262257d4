"""Two processes train a reward model as one does on the batch of both."""

from pathlib import Path

import pytest
import torch

from tests.invariants.gloo import run_two
from tests.invariants.reward_processes import one_step
from tests.made.tiny_rlhf import whole
from tests.tasks.test_reward import comparisons


@pytest.mark.slow
def test_two_processes_equal_one_with_a_batch_of_both(base: Path, tmp_path: Path) -> None:
    """Rankings of two and of three: each comparison counts once, wherever it is."""
    comparisons(whole(base, tmp_path / "instruct", 3), tmp_path / "encoded", "rankings")
    one = one_step(tmp_path, 1)
    run_two("tests.invariants.reward_processes", tmp_path)
    two = torch.load(tmp_path / "2.pt", weights_only=True)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        assert torch.allclose(two["gradients"][name], gradient, atol=1e-6), name
    assert max(gradient.abs().max() for gradient in one["gradients"].values()) > 1e-3
