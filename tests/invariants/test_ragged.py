"""Rows without padding are the same training as rows with it: losses and gradients, in float32.

The plain way is the model as transformers makes it, its own loss over padded rows and full logits.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from ajuste.learning.batching import LengthGroupedSampler
from ajuste.learning.layers import fused, ragged
from tests.invariants.decoders import (
    FAMILIES,
    IGNORED,
    VOCABULARY,
    conversations,
    decoder,
    gradients,
    largest_difference,
)

torch.set_num_threads(1)
TOLERANCE = 1e-5


def plain(model, rows):
    """transformers' own loss and gradients over right-padded rows."""
    batch = ragged.padded(rows, pad_id=0)
    batch.pop("position_ids")
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), gradients(model)


def ours(model, batch, items=None):
    model.zero_grad()
    loss = ragged.response_loss(model, batch, items)
    loss.backward()
    return loss.item(), gradients(model)


def with_lora(model, **options):
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules="all-linear", **options)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted.train()


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_equals_plain(family):
    rows = conversations()
    expected, expected_gradients = plain(decoder(family), rows)
    found, found_gradients = ours(ragged.attach(decoder(family)), ragged.collate(rows))
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_equals_plain(family):
    rows = conversations()
    expected, expected_gradients = plain(decoder(family), rows)
    for left in (False, True):
        for model in (decoder(family), ragged.attach(decoder(family))):
            found, found_gradients = ours(model, ragged.padded(rows, pad_id=3, left=left))
            assert found == pytest.approx(expected, abs=TOLERANCE)
            assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


@pytest.mark.parametrize("mask", ["all ones", "cache"])
@pytest.mark.parametrize("family", FAMILIES)
def test_naive_packing_is_another_model(family, mask):
    """The control: positions count from 0 in each row, but one causal triangle over all of them."""
    rows = conversations()
    expected, expected_gradients = plain(decoder(family), rows)
    batch = ragged.collate(rows)
    batch.pop("lengths")
    model = decoder(family)
    if mask == "all ones":
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    loss = model(**batch, use_cache=mask == "cache").loss
    loss.backward()
    assert abs(loss.item() - expected) > 100 * TOLERANCE
    assert largest_difference(expected_gradients, gradients(model)) > 100 * TOLERANCE


def test_a_row_does_not_see_its_neighbours():
    """Another first row, of another length, changes no bit of the second row's losses."""
    model = ragged.attach(decoder())
    row, (other, longer) = conversations((9,))[0], conversations((6, 15), seed=7)
    alone = ragged.row_losses(model, [row], 1)[0]
    for neighbour in (other, longer):
        assert ragged.row_losses(model, [neighbour, row], 100)[1, 0].item() == pytest.approx(alone[0].item(), abs=1e-5)


def test_only_trained_tokens_reach_the_head_and_the_loss_is_the_plain_one():
    rows = conversations()
    model = decoder().eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, labels in rows:
            log_p = F.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
            for t in range(1, len(ids)):
                if labels[t] != IGNORED:
                    total, count = total - log_p[t - 1, ids[t]].item(), count + 1
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    found = ragged.response_loss(ragged.attach(model), ragged.collate(rows))
    assert found.item() == pytest.approx(total / count, abs=TOLERANCE)
    assert seen == [(1, count, VOCABULARY)]


@pytest.mark.parametrize("family", FAMILIES)
def test_under_peft_and_gradient_checkpointing(family):
    rows = conversations()
    expected, expected_gradients = plain(with_lora(decoder(family)), rows)
    for attached_first in (True, False):
        model = decoder(family)
        model = with_lora(ragged.attach(model)) if attached_first else ragged.attach(with_lora(model))
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            found, found_gradients = ours(model, ragged.collate(rows))
            assert found == pytest.approx(expected, abs=TOLERANCE)
            assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


def test_length_sorted_batches_are_the_plain_ones_in_another_order():
    rows = conversations((5, 17, 1, 9, 30, 2, 12, 8, 3, 22, 11, 6))
    items = sum(label != IGNORED for _, labels in rows for label in labels[1:])
    lengths = [len(ids) for ids, _ in rows]
    sampler = LengthGroupedSampler(lengths, 3, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows))) and order != sorted(order)
    results = []
    for numbers in (list(range(len(rows))), order):
        model = ragged.attach(decoder())
        loss = 0.0
        for start in range(0, len(rows), 3):
            piece = ragged.response_loss(model, ragged.collate([rows[i] for i in numbers[start : start + 3]]), items)
            piece.backward()
            loss += piece.item()
        results.append((loss, gradients(model)))
    (expected, expected_gradients), (found, found_gradients) = results
    assert found == pytest.approx(expected, rel=1e-6)
    assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_lora_at_the_start_is_the_base_bit_for_bit(family):
    batch = ragged.collate(conversations())
    base = ragged.attach(decoder(family))
    expected = ragged.response_loss(base, batch)
    adapted = ragged.attach(
        get_peft_model(decoder(family), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    )
    assert torch.equal(ragged.response_loss(adapted, batch), expected)
    assert fused.fuse(adapted) == 21
    assert torch.equal(ragged.response_loss(adapted, batch), expected)


def test_two_models_at_once_do_not_mix_their_rows():
    """The lengths travel with the batch: a second model that runs in between changes nothing."""
    one, two = ragged.attach(decoder(seed=0)), ragged.attach(decoder(seed=1))
    rows, others = conversations(), conversations((4, 3), seed=5)
    expected, expected_gradients = ours(one, ragged.collate(rows))
    one.zero_grad()
    loss = ragged.response_loss(one, ragged.collate(rows))
    ragged.response_loss(two, ragged.collate(others)).backward()
    loss.backward()
    assert loss.item() == expected
    assert largest_difference(expected_gradients, gradients(one)) == 0


def test_generation_is_untouched():
    prompt = torch.tensor([[5, 6, 7, 8], [3, 3, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 3}
    expected = decoder().generate(prompt, **options)
    assert torch.equal(ragged.attach(decoder()).generate(prompt, **options), expected)


def test_nothing_of_it_is_saved(tmp_path):
    decoder().save_pretrained(tmp_path / "plain")
    ragged.attach(decoder()).save_pretrained(tmp_path / "attached")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "attached" / name).read_bytes()
