"""Loss and gradients of a reward model are those of TRL's RewardTrainer on the same weights and pairs.

TRL is no dependency. What its 1.16 gave for this model is written down here, and where TRL can be imported the test
below runs it: `PYTHONPATH=<folder with trl> python -m pytest tests/invariants/test_trl_reward.py`. At full size,
benchmarks/reward.py does the same before it measures anything.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.reward import write_pairs
from benchmarks.sides.reward import check
from tests.made.tiny_rlhf import whole
from tests.tasks.test_reward import comparisons

TOLERANCE = 1e-6
# TRL 1.16.0, transformers 5.23.0, peft 0.21.2, torch 2.13.0, one thread: loss, and the norm of each kind's gradients
RECORDED = {"loss": 0.96765596, "lora_A": 0.68727891, "lora_B": 3.10736071, "score": 2.10693076}


@pytest.fixture(scope="module")
def options(base: Path, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """Four pairs and a reward model whose B is not zero, as benchmarks/reward.py makes them."""
    folder = tmp_path_factory.mktemp("trl")
    sft = whole(base, folder / "instruct", 3)
    (folder / "work").mkdir()
    pad_id = write_pairs(comparisons(sft, folder / "encoded"), sft, folder / "work", 4)
    return argparse.Namespace(
        work=folder / "work", base=sft, pad_id=pad_id, threads=1, dtype="float32", batch_pairs=4, lr=1e-4, seed=0
    )


def gradients(options: argparse.Namespace, side: str) -> dict[str, torch.Tensor]:
    check(argparse.Namespace(**{**vars(options), "side": side}))
    return load_file(options.work / f"{side}.safetensors")


def kinds(found: dict[str, torch.Tensor]) -> dict[str, float]:
    """The loss, and by kind of weight the norm of its gradients."""
    norms = {
        kind: torch.stack([g.double().square().sum() for name, g in found.items() if kind in name]).sum().sqrt().item()
        for kind in ("lora_A", "lora_B", "score")
    }
    return {"loss": found["loss"].item(), **norms}


def test_loss_and_gradients_are_what_trl_gave(options: argparse.Namespace) -> None:
    found = kinds(gradients(options, "ours"))
    assert found == {name: pytest.approx(value, rel=TOLERANCE) for name, value in RECORDED.items()}


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_loss_and_every_gradient_are_what_trl_gives(options: argparse.Namespace) -> None:
    ours, theirs = gradients(options, "ours"), gradients(options, "plain")
    assert ours.keys() == theirs.keys() and len(ours) == 57 + 1
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=TOLERANCE), name
    assert kinds(theirs) == {name: pytest.approx(value, rel=TOLERANCE) for name, value in RECORDED.items()}
