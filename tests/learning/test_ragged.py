"""ajuste/learning/layers/ragged.py's parts: batches, the cross-entropy whose gradient overwrites the logits, losses by
row."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional as F

from ajuste.learning.layers import ragged
from tests.invariants.decoders import IGNORED, conversations, decoder

torch.set_num_threads(1)


def test_collate_lays_rows_end_to_end():
    batch = ragged.collate([([5, 6, 7], [5, -100, 7]), ([8, 9], [8, 9])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9]]  # a first token has nothing before it
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["lengths"].tolist() == [3, 2]


def test_padded_on_either_side():
    rows = [([5, 6, 7], [5, -100, 7]), ([8, 9], [8, 9])]
    right, left = ragged.padded(rows, 1), ragged.padded(rows, 1, left=True)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 1]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [1, 8, 9]]
    assert left["labels"].tolist() == [[-100, -100, 7], [-100, -100, 9]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert left["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]


@pytest.mark.parametrize("rows", [[], [([], [])], [([1, 2], [1])]])
def test_bad_rows_are_refused(rows):
    with pytest.raises(ValueError, match="row"):
        ragged.collate(rows)


def test_a_ragged_batch_needs_attach():
    with pytest.raises(ValueError, match="attach"):
        ragged.response_loss(decoder(), ragged.collate(conversations()))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-7), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_cross_entropy_and_its_gradient(dtype, tolerance, upstream):
    torch.manual_seed(0)
    logits, targets = torch.randn(150, 31).to(dtype), torch.randint(0, 31, (150,))
    expected = logits.clone().requires_grad_()
    F.cross_entropy(expected.float(), targets, reduction="sum").div(70).mul(upstream).backward()
    found = logits.clone().requires_grad_()
    loss = ragged._CrossEntropy.apply(found * 1, targets, 1 / 70)
    (loss * upstream).backward(retain_graph=True)
    assert loss.item() == pytest.approx(F.cross_entropy(logits.float(), targets, reduction="sum").item() / 70, rel=1e-6)
    assert (found.grad - expected.grad).abs().max() < tolerance
    with pytest.raises(RuntimeError, match="already used"):
        loss.backward()


def test_without_gradients_the_logits_stay():
    logits, targets = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 4])
    before = logits.clone()
    ragged._CrossEntropy.apply(logits, targets, 1.0)
    assert torch.equal(logits, before)


def test_a_batch_with_nothing_to_train_costs_nothing():
    model = ragged.attach(decoder())
    loss = ragged.response_loss(model, ragged.collate([([3, 4, 5], [IGNORED] * 3)]))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("virtual", [None, PrefixTuningConfig, PromptTuningConfig])
def test_row_losses_do_not_depend_on_the_batches(virtual):
    rows = conversations()
    model = decoder()
    if virtual:
        model = get_peft_model(model, virtual(task_type="CAUSAL_LM", num_virtual_tokens=4))
    ragged.attach(model).train()
    assert ragged.takes_ragged(model) is (virtual is None)
    alone = torch.cat([ragged.row_losses(model, [row], 1) for row in rows])
    for tokens in (1, 40, 10_000):
        assert torch.allclose(ragged.row_losses(model, rows, tokens), alone, atol=1e-4)
    assert model.training
    trained = [sum(label != IGNORED for label in labels[1:]) for _, labels in rows]
    assert alone[:, 1].tolist() == trained and (alone[:, 0] > 0).tolist() == [n > 0 for n in trained]
    batch = ragged.collate(rows) if virtual is None else ragged.padded(rows, 0)
    expected = ragged.response_loss(model.eval(), batch).item()
    assert alone[:, 0].sum().item() / sum(trained) == pytest.approx(expected, rel=1e-6)


def test_batches_hold_at_most_the_tokens_asked_for():
    batches = ragged.batches([5, 17, 1, 9, 30, 2], 20)
    assert batches == [[2, 5, 0], [3], [1], [4]]
