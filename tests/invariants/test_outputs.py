"""What must not matter to an answer (the batch, the padding), and closed forms of the loss and of calibration."""

import math

import numpy as np
import pytest
import torch

from ajuste.learning import batching
from ajuste.learning.losses.cross_entropy import weighted_cross_entropy
from ajuste.learning.statistics.calibration import bins_of, calibration_error, plain_error
from ajuste.models import classifier
from tests.invariants.shapes import ENCODERS, FAMILIES, VOCABULARY, base_model
from tests.made.tiny_classifiers import tiny_adapter, tiny_base

torch.set_num_threads(1)


def ragged_rows(n=9, seed=0):
    """Rows of unlike length, as real texts are."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 30, (n,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def padded(model, row, left=0, right=0):
    pad = model.config.pad_token_id
    ids = torch.tensor([[pad] * left + row + [pad] * right])
    mask = torch.tensor([[0] * left + [1] * len(row) + [0] * right])
    return model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("family", ENCODERS)
def test_padding_on_the_right_changes_nothing(family):
    model = base_model(family)
    for row in ragged_rows():
        alone = padded(model, row).logits
        for right in (1, 7, 40):
            assert torch.allclose(padded(model, row, right=right).logits, alone, atol=1e-5)


def test_padding_on_the_left_changes_no_hidden_state_where_positions_are_counted_from_the_text():
    """RoBERTa numbers the tokens that are no padding. BERT numbers columns, so padding on its left moves the text, and
    the heads of both read the first column: that is why ajuste.models.classifier.pad pads on the right."""
    roberta, bert = base_model("roberta").roberta, base_model("bert").bert
    moved = 0.0
    for row in ragged_rows():
        right, left = (padded(roberta, row, left=n).last_hidden_state[:, n:] for n in (0, 7))
        assert torch.allclose(left, right, atol=1e-5)
        right, left = (padded(bert, row, left=n).last_hidden_state[:, n:] for n in (0, 7))
        moved = max(moved, (left - right).abs().max().item())
    assert moved > 1e-2
    ids, mask = batching.pad([[5, 6], [7]], 0)
    assert ids.tolist() == [[5, 6], [7, 0]] and mask.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ENCODERS])
def test_padding_behind_a_causal_model_changes_nothing_before_it(family):
    model = base_model(family)
    for row in ragged_rows(4):
        alone = padded(model, row).logits[0]
        assert torch.allclose(padded(model, row, right=9).logits[0, :len(row)], alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_row_gets_the_same_answer_alone_and_in_any_batch(pooling, adapted, tmp_path):
    base = tiny_base(tmp_path / "base")
    if adapted:
        adapter = tiny_adapter(base, tmp_path / "adapter", pooling=pooling)
        model, _, _ = classifier.load_adapter(base, adapter)
    else:
        torch.manual_seed(0)
        model = classifier.build(base, ["a", "b", "c"], pooling=pooling).eval()
    rows = [[2, *(5 + token % 20 for token in row), 3] for row in ragged_rows(12)]
    alone = torch.cat([classifier.logits_of(model, [row]) for row in rows])
    assert (alone - alone[0]).abs().max() > 1e-2, "all rows get one answer: this test could not fail"
    for batch_rows in (1, 2, 5, 12):
        assert torch.allclose(classifier.logits_of(model, rows, batch_rows), alone, atol=1e-5)
    backwards = classifier.logits_of(model, rows[::-1], 5)
    assert torch.allclose(backwards.flip(0), alone, atol=1e-5)


@pytest.mark.parametrize("classes, expected", [(2, math.log(2)), (3, math.log(3)), (50257, 10.8249)])
def test_uniform_logits_cost_ln_C(classes, expected):
    labels = torch.arange(8) % classes
    for constant in (0.0, 3.0):
        loss = weighted_cross_entropy(torch.full((8, classes), constant), labels).item()
        assert loss == pytest.approx(expected, abs=1e-4)


def test_calibration_error_of_calibrated_answers_is_near_zero_and_of_boasting_ones_is_not():
    generator = np.random.default_rng(0)
    n = 200_000
    confidence = generator.uniform(0.5, 1.0, n)
    calibrated = bins_of(confidence, generator.uniform(size=n) < confidence)  # right as often as it is promised
    assert plain_error(calibrated) < 0.005 and calibration_error(calibrated)["high"] < 0.008
    boasting = bins_of(np.full(1000, 0.9), np.arange(1000) % 10 < 7)
    assert plain_error(boasting) == pytest.approx(0.2)
    assert calibration_error(boasting)["value"] == pytest.approx(0.2, abs=0.002)
