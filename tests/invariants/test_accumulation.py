"""How a step is cut, into pieces or between processes, changes nothing: rows of unequal length, through our Trainer."""


import pytest
import torch

from ajuste.learning.layers import ragged
from tests.invariants.decoders import conversations, decoder, largest_difference
from tests.invariants.gloo import run_two
from tests.invariants.test_ragged import ours
from tests.invariants.two_processes import one_step

torch.set_num_threads(1)


@pytest.mark.parametrize("lora", [False, True])
def test_8x1_4x2_and_1x8_are_the_same_step(lora):
    rows = conversations()
    assert len(rows) == 8 and len({len(ids) for ids, _ in rows}) == 8
    results = [one_step(rows, pieces, 8 // pieces, lora) for pieces in (8, 4, 1)]
    for result in results[1:]:
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)
        assert largest_difference(results[0]["gradients"], result["gradients"]) < 1e-5
    if not lora:
        expected, expected_gradients = ours(ragged.attach(decoder()), ragged.collate(rows))
        assert results[0]["loss"] == pytest.approx(expected, rel=1e-6)
        assert largest_difference(expected_gradients, results[0]["gradients"]) < 1e-5


def test_a_mean_of_means_would_not_be(monkeypatch):
    """The control: each piece divided by its own items, as if no one counted those of the step."""
    rows = conversations()
    expected = one_step(rows, 8, 1)
    counted = ragged.response_loss
    monkeypatch.setattr(ragged, "response_loss", lambda model, batch, items: counted(model, batch) / 8)
    found = one_step(rows, 1, 8)
    assert abs(found["loss"] / expected["loss"] - 1) > 1e-3
    assert largest_difference(expected["gradients"], found["gradients"]) > 1e-3


@pytest.mark.slow
def test_two_processes_over_gloo_equal_one_with_twice_the_batch(tmp_path):
    run_two("tests.invariants.two_processes", tmp_path / "out.pt")
    together = torch.load(tmp_path / "out.pt", weights_only=True)
    for mode in ("full", "lora"):
        alone = one_step(conversations(), 8, 1, lora=mode == "lora")
        assert together[mode]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert largest_difference(alone["gradients"], together[mode]["gradients"]) < 1e-5
