"""What rows share goes through the model once, and it is the same training: losses and gradients, in float32.

The plain way is the model as transformers makes it over padded rows.
"""

import pytest
import torch
from torch.nn import functional as F

from ajuste.learning.layers import shared_prefix
from tests.invariants.decoders import FAMILIES, VOCABULARY, decoder, gradients, largest_difference
from tests.invariants.test_ragged import with_lora

torch.set_num_threads(1)
TOLERANCE = 1e-5
PREFIX = [1, 40, 41, 42, 43, 44, 45]
ROWS = {
    "prefix": [[*PREFIX, *rest] for rest in ([5, 6], [7], range(50, 73), [8, 9, 10, 11], range(7, 49))],
    "no prefix": [[5, 6, 7], [8, 9, 10, 11, 12], [6]],
    "one row": [[5, 6, 7, 8]],
    "a row inside another": [[1, 5, 6], [1, 5, 6, 7, 8], [1, 5, 6]],
    "long": [[*range(1, 36)] + [60], [*range(1, 36)] + [61, 62, 63]],
}


def loss_of(log_p, rows):
    """A weighted sum over every row's predicted tokens; log_p(i) -> [L - 1, V], the prediction of tokens 1, 2, ..."""
    total = 0.0
    for i, row in enumerate(rows):
        if len(row) > 1:
            picked = log_p(i).gather(1, torch.tensor(row[1:])[:, None])[:, 0]
            total = total + (picked * torch.linspace(0.5, 1.5 + i, len(picked))).sum()
    return total / sum(map(len, rows))


def plain(model, rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True).long()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    loss = loss_of(lambda i: F.log_softmax(logits[i, : len(rows[i]) - 1], -1), rows)
    loss.backward()
    return loss.item(), gradients(model)


def shared(model, rows, batch=None):
    batch = shared_prefix.collate(rows) if batch is None else batch
    h = shared_prefix.hidden(shared_prefix.attach(model), batch)
    head = model.get_output_embeddings() if not hasattr(model, "get_base_model") else model.get_base_model().lm_head

    def log_p(i):
        places = batch.places(torch.tensor(i), torch.arange(len(rows[i]) - 1))
        return F.log_softmax(head(h[places]), -1)

    loss = loss_of(log_p, rows)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_plain(family, name):
    rows = ROWS[name]
    expected, expected_gradients = plain(decoder(family), rows)
    found, found_gradients = shared(decoder(family), rows)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_by_torch_equals_plain_too(family, monkeypatch):
    """The way of long rows and of GPUs."""
    monkeypatch.setattr(shared_prefix, "BY_HAND", 0)
    rows = ROWS["prefix"]
    expected, expected_gradients = plain(decoder(family), rows)
    found, found_gradients = shared(decoder(family), rows)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


def test_under_peft():
    rows = ROWS["prefix"]
    expected, expected_gradients = plain(with_lora(decoder()), rows)
    found, found_gradients = shared(with_lora(decoder()), rows)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert largest_difference(expected_gradients, found_gradients) < TOLERANCE


@pytest.mark.parametrize("wrong", ["positions", "prefix of another row"])
def test_what_is_not_exact_shows(wrong):
    """The control: positions that start anew behind the prefix, or rows that share less than is said."""
    rows = ROWS["prefix"]
    expected, expected_gradients = plain(decoder(), rows)
    batch = shared_prefix.collate(rows)
    if wrong == "positions":
        positions, P = batch.position_ids, len(PREFIX)
        batch = batch._replace(position_ids=torch.where(positions >= P, positions - P, positions))
    else:
        ids = batch.input_ids.clone()
        ids[0, 3] = 90
        batch = batch._replace(input_ids=ids)
    found, found_gradients = shared(decoder(), rows, batch)
    assert abs(found - expected) > 100 * TOLERANCE
    assert largest_difference(expected_gradients, found_gradients) > 100 * TOLERANCE


def test_the_prefix_goes_through_once():
    rows = ROWS["prefix"]
    batch = shared_prefix.collate(rows)
    assert batch.lengths.tolist() == [7, 2, 1, 23, 4, 42]
    assert batch.input_ids.shape == batch.position_ids.shape == (1, 7 + 2 + 1 + 23 + 4 + 42)
    for i, row in enumerate(rows):
        places = batch.places(torch.tensor(i), torch.arange(len(row)))
        assert batch.input_ids[0, places].tolist() == row
        assert batch.position_ids[0, places].tolist() == list(range(len(row)))


def test_backward_against_finite_differences():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    attend = lambda q, k, v: shared_prefix.prefix_attention(q, k, v, (3, 2, 4), 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_bfloat16_prefix_gradients_are_summed_in_float32():
    """40 rows behind one prefix: rounding stays that of a single product."""
    torch.manual_seed(0)
    lengths = (6, *[5] * 40)
    exact = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (4, 2, 2)]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    weights = torch.randn(1, sum(lengths), 4, 8)
    for inputs in (exact, half):
        (shared_prefix.prefix_attention(*inputs, lengths, 0.35) * weights).sum().backward()
    for x, y in zip(exact, half, strict=True):
        assert (x.grad[:, :, :6] - y.grad[:, :, :6].float()).abs().max() < 0.02 * x.grad[:, :, :6].abs().max()


def test_a_model_must_be_attached_and_generation_is_untouched():
    with pytest.raises(ValueError, match="attach"):
        shared_prefix.hidden(decoder(), shared_prefix.collate([[1, 2], [1, 3]]))
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one"):
            shared_prefix.collate(rows)
    prompt, mask = torch.tensor([[5, 6, 7, 8], [3, 3, 9, 10]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 3}
    expected = decoder().generate(prompt, **options)
    assert torch.equal(shared_prefix.attach(decoder()).generate(prompt, **options), expected)
    assert VOCABULARY > max(max(row) for rows in ROWS.values() for row in rows)
