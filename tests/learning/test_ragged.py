"""ajuste/learning/layers/ragged.py's parts: batches, the cross-entropy whose gradient overwrites the logits, losses by
row."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from ajuste.learning.layers import ragged
from ajuste.learning.layers.active import Plain
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
@pytest.mark.parametrize("upstream", [1.0, 2.0, 3.0])
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


@pytest.mark.parametrize("rows", [[], [([], [])], [([1, 2], [1])]])
def test_padded_refuses_the_same_rows(rows):
    with pytest.raises(ValueError, match="row"):
        ragged.padded(rows, 0)


def test_a_ragged_batch_without_attach_in_full():
    said = "^this model takes no ragged batch: call layers.ragged.attach first, or pad the rows$"
    with pytest.raises(ValueError, match=said):
        ragged.response_loss(decoder(), ragged.collate(conversations()))


def test_items_divide_the_sum_whatever_their_kind():
    model, batch = ragged.attach(decoder()), ragged.collate(conversations())
    logits, targets, owners = ragged.trained(model, batch)
    total = F.cross_entropy(logits, targets, reduction="sum").item()
    for items in (7, torch.tensor(7), 7.0):
        assert ragged.response_loss(model, batch, items).item() == pytest.approx(total / 7, rel=1e-5)
    assert ragged.response_loss(model, batch).item() == pytest.approx(total / len(targets), rel=1e-5)
    counts = [sum(label != IGNORED for label in labels[1:]) for _, labels in conversations()]
    assert torch.bincount(owners, minlength=len(counts)).tolist() == counts


def test_what_a_model_is_asked():
    """Ragged: the lengths as mask and each row's positions; with virtual tokens: no positions. Logits where needed."""
    rows = [([5, 6, 7], [5, -100, 7]), ([8, 9], [8, 9])]
    asked: list[dict] = []

    def watch(model):
        model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
        return model

    ragged.trained(watch(ragged.attach(decoder())), ragged.collate(rows))
    one = asked.pop()
    assert one["attention_mask"].tolist() == [[[[3, 2]]]] and one["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert one["logits_to_keep"].tolist() == [-4, -2] and one["use_cache"] is False  # they predict places 2 and 4 of 5
    logits, targets, owners = ragged.trained(watch(decoder()), ragged.padded(rows, 0))
    one = asked.pop()
    assert one["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]] and one["logits_to_keep"].tolist() == [-3, -2]
    assert targets.tolist() == [7, 9] and owners.tolist() == [0, 1] and logits.shape == (2, 97)
    virtual = get_peft_model(decoder(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert ragged.puts_tokens_before(virtual) and not ragged.puts_tokens_before(decoder())
    ragged.trained(watch(virtual), ragged.padded(rows, 0))
    assert asked.pop()["position_ids"] is None


def test_attach_gives_the_model_back_and_detach_undoes_it():
    model = decoder()
    assert ragged.attach(model) is model and ragged.takes_ragged(model)
    assert ragged.detach(model) is model and not ragged.takes_ragged(model)
    assert ragged.trunk(model) is model.model


def test_the_gradient_of_many_logits_is_written_in_pieces():
    """130 rows are pieces of 64, 64 and 2; a second use of the same loss has nothing left."""
    torch.manual_seed(0)
    logits, targets = torch.randn(130, 5), torch.randint(0, 5, (130,))
    held = (logits * 1).requires_grad_()
    loss = ragged._CrossEntropy.apply(held.clone(), targets, 0.5)
    assert loss.dtype == torch.float32
    loss.backward()
    expected = 0.5 * (logits.softmax(1) - F.one_hot(targets, 5))
    assert torch.allclose(held.grad, expected, atol=1e-6)


def test_rows_of_other_whole_numbers_and_refusals_in_full():
    batch = ragged.collate([(torch.tensor([5, 6], dtype=torch.int32), torch.tensor([5, 6], dtype=torch.int32))])
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    with pytest.raises(ValueError, match="^a batch needs at least one row$"):
        ragged.collate([])
    loss = ragged._CrossEntropy.apply(torch.randn(2, 3, requires_grad=True) * 1, torch.tensor([0, 1]), 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="^the gradient of this loss was already used: compute the loss again$"):
        loss.backward()


def test_the_attentions_own_scale_dropout_and_window_are_handed_on():
    """Two rows of 5 and 3 tokens, a window of 2: each token sees itself and the one before it, by hand. Dropout of 1
    leaves nothing."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    lengths = torch.tensor([5, 3]).view(1, 1, 1, 2)
    found = ragged._attention(Plain(0.3, 0.0, 2), q, k, v, lengths)
    for head in range(2):
        for t in range(8):
            seen = [t] if t in (0, 5) else [t - 1, t]
            weights = torch.softmax(0.3 * (k[0, head, seen] @ q[0, head, t]), dim=0)
            assert torch.allclose(found[0, t, head], weights @ v[0, head, seen], atol=1e-6)
    assert not ragged._attention(Plain(0.3, 1.0, None), q, k, v, lengths).any()


def test_the_model_inside_its_wrappers_and_the_layers_below_its_output():
    model = decoder()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped = object.__new__(nn.parallel.DistributedDataParallel)  # as DDP is, without its processes
    nn.Module.__init__(wrapped)
    wrapped.module = adapted
    assert ragged._base(wrapped) is ragged._base(adapted) is ragged._base(model) is model
    ours, theirs = SimpleNamespace(base_model="by its prefix", model="by name"), SimpleNamespace(model="by name")
    theirs.base_model = theirs  # whose prefix names nothing
    assert (ragged.trunk(ours), ragged.trunk(theirs)) == ("by its prefix", "by name")


def test_one_trained_token_is_divided_by_one():
    model, batch = ragged.attach(decoder()), ragged.collate([([5, 6, 7], [-100, -100, 7])])
    logits, targets, _ = ragged.trained(model, batch)
    assert targets.tolist() == [7]
    assert ragged.response_loss(model, batch).item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)


def test_how_rows_are_laid_out_for_their_losses():
    """End to end where the model takes that, else padded with 0."""
    rows = [([5, 6, 7], [5, -100, 7]), ([8, 9], [8, 9])]
    for model, ids, mask in (
        (ragged.attach(decoder()), [[8, 9, 5, 6, 7]], [[[[2, 3]]]]),
        (decoder(), [[8, 9, 0], [5, 6, 7]], [[1, 1, 0], [1, 1, 1]]),
    ):
        asked: list[dict] = []
        hook = model.register_forward_pre_hook(lambda _, args, kwargs, to=asked: to.append(kwargs), with_kwargs=True)
        ragged.row_losses(model, rows, 100)
        hook.remove()
        assert [one["input_ids"].tolist() for one in asked] == [ids]
        assert [one["attention_mask"].tolist() for one in asked] == [mask]


def test_a_batch_may_be_full_to_the_token():
    assert ragged.batches([10, 10, 10], 20) == [[0, 1], [2]]
