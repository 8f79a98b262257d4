"""What rows share goes through the model once, and it is the same training: losses and gradients, in float32.

The plain way is the model as transformers makes it over padded rows.
"""

import pytest
import torch
from torch.nn import functional as F

from ajuste.learning.layers import active, shared_prefix
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


def naive(q, k, v, lengths, scale, window):
    """One product over all tokens, and every token sees those of its own row before it, and the prefix."""
    P, n = lengths[0], q.shape[1] // k.shape[1]
    owner = [0] * P + [row for row, length in enumerate(lengths[1:], 1) for _ in range(length)]
    position = list(range(P)) + [P + t for length in lengths[1:] for t in range(length)]
    every = list(zip(owner, position, strict=True))
    sees = [[other in (0, row) and 0 <= own - there < (window or 10**6) for other, there in every]
            for row, own in every]  # fmt: skip
    k, v = (x.repeat_interleave(n, dim=1) for x in (k, v))
    weights = (scale * q @ k.transpose(2, 3)).masked_fill(~torch.tensor(sees), -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("window", [None, 3, 7])
@pytest.mark.parametrize("lengths", [(3, 2, 4), (0, 5, 1, 3), (6, 1), (0, 4), (2, 30, 31, 1, 2), (33, 2, 1)], ids=str)
def test_attention_is_that_of_each_token_alone(lengths, window, by_hand, monkeypatch):
    monkeypatch.setattr(shared_prefix, "BY_HAND", 512 if by_hand else 0)
    torch.manual_seed(0)
    qkv = [torch.randn(1, heads, sum(lengths), 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    expected = naive(*qkv, lengths, 0.7, window)
    found = shared_prefix.prefix_attention(*qkv, lengths, 0.7, window=window)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn_like(expected)
    pairs = (torch.autograd.grad((out * weights).sum(), qkv) for out in (expected, found))
    for one, other in zip(*pairs, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("most, dropout, by_hand", [(7, 0.0, True), (6, 0.0, False), (512, 0.5, False)])
def test_the_longest_row_with_its_prefix_and_dropout_say_who_does_it(most, dropout, by_hand, monkeypatch):
    monkeypatch.setattr(shared_prefix, "BY_HAND", most)
    torch.manual_seed(0)
    qkv = [torch.randn(1, heads, 9, 4, requires_grad=True) for heads in (4, 2, 2)]
    found = shared_prefix.prefix_attention(*qkv, (3, 2, 4), 0.7, dropout)
    assert ("_ByHand" in type(found.grad_fn).__name__) is by_hand


def test_dropout_is_torchs_own():
    """One row without a prefix: the same product, the same random numbers."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 5, 4) for heads in (4, 2, 2))
    hidden = torch.ones(5, 32, dtype=torch.bool).triu(1)
    torch.manual_seed(3)
    found = shared_prefix.prefix_attention(q, k, v, (0, 5), 0.7, 0.4)
    torch.manual_seed(3)
    k, v = (torch.cat([x, x[:, :, :1].expand(-1, -1, 27, -1)], 2) for x in (k, v))  # filled up to 32 keys
    expected = F.scaled_dot_product_attention(q, k, v, ~hidden, 0.4, scale=0.7, enable_gqa=True).transpose(1, 2)
    assert torch.equal(found, expected)


def test_the_models_own_dropout_and_window_are_handed_on(monkeypatch):
    asked = []
    monkeypatch.setattr(shared_prefix, "prefix_attention", lambda *args: asked.append(args[3:]))
    shared_prefix._attention(active.Plain(0.7, 0.4, 5), None, None, None, torch.tensor([[[[2, 3]]]]))
    assert asked == [((2, 3), 0.7, 0.4, 5)]


def test_blocks_are_rows_whose_keys_fill_the_same_width():
    """A prefix of 2; rows of 3 and 5 in one block of 32 keys, one of 40 in a block of 64."""
    prefix, short, long = shared_prefix._blocks((2, 3, 40, 5), None, torch.device("cpu"))
    assert (prefix.prefix, short.prefix, long.prefix) == (0, 2, 2)
    assert [tuple(block.hidden.shape) for block in (prefix, short, long)] == [(2, 32), (5, 32), (40, 64)]
    assert prefix.tokens.tolist() == [0, 1] and prefix.keys[0, :2].tolist() == [0, 1]
    assert short.tokens.tolist() == [2, 3, 4, 45, 46, 47, 48, 49] and short.own.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert short.real.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert short.keys[:, :7].tolist() == [[0, 1, 2, 3, 4, 2, 2], [0, 1, 45, 46, 47, 48, 49]]
    assert short.queries.tolist() == [[2, 3, 4, 2, 2], [45, 46, 47, 48, 49]]
    assert (~short.hidden).sum(1).tolist() == [3, 4, 5, 6, 7]
    assert long.tokens.tolist() == list(range(5, 45))
    (banded,) = shared_prefix._blocks((0, 4), 2, torch.device("cpu"))
    assert (~banded.hidden)[:, :4].long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert (~banded.hidden).sum() == 7


def test_what_does_not_fit_or_is_not_there_is_refused_in_full():
    q, k = torch.zeros(1, 4, 9, 4), torch.zeros(1, 2, 9, 4)
    twice = q.repeat(2, 1, 1, 1)
    for tensors, lengths, rows in (((q, k, k), (3, 2, 3), 1), ((q, k[:, :, 1:], k), (3, 2, 4), 1),
                                   ((twice, k, k), (3, 2, 4), 2)):  # fmt: skip
        said = rf"^rows of {sum(lengths)} tokens do not fit a batch of \[{rows}, 4, 9, 4\]$"
        with pytest.raises(ValueError, match=said):
            shared_prefix.prefix_attention(*tensors, lengths, 0.7)
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="^a batch needs at least one row, and every row at least one token$"):
            shared_prefix.collate(rows)
    said = "^this model takes no rows behind a prefix: call layers.shared_prefix.attach first$"
    model = decoder()
    with pytest.raises(ValueError, match=said):
        shared_prefix.hidden(model, shared_prefix.collate([[1, 2], [1, 3]]))
    assert not shared_prefix.takes_shared(model)
    assert shared_prefix.attach(model) is model and shared_prefix.takes_shared(model)
    assert shared_prefix.detach(model) is model and not shared_prefix.takes_shared(model)


def test_what_rows_share_leaves_each_a_token_of_its_own():
    for rows, shared_tokens in (
        ([[1, 2, 3]], 0), ([[1, 2, 3], [1, 2, 3]], 2), ([[1, 2, 3], [1, 2, 4], [1, 5]], 1), ([[1], [1, 2]], 0),
        ([[4, 2], [3, 2]], 0), ([(1, 2, 3, 9), [1, 2, 3, 4, 5]], 3),
    ):  # fmt: skip
        assert shared_prefix._common(rows) == shared_tokens
        batch = shared_prefix.collate(rows)
        assert batch.lengths.tolist() == [shared_tokens, *(len(row) - shared_tokens for row in rows)]
        assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
        for i, row in enumerate(rows):
            places = batch.places(torch.tensor(i), torch.arange(len(row)))
            assert batch.input_ids[0, places].tolist() == list(row)
            assert batch.position_ids[0, places].tolist() == list(range(len(row)))


def test_what_the_trunk_is_asked():
    model, asked = shared_prefix.attach(decoder()), []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    h = shared_prefix.hidden(model, shared_prefix.collate([[1, 2, 3], [1, 4]]))
    (one,) = asked
    assert set(one) == {"input_ids", "attention_mask", "position_ids", "use_cache"} and one["use_cache"] is False
    assert one["attention_mask"].tolist() == [[[[1, 2, 1]]]] and one["position_ids"].tolist() == [[0, 1, 2, 1]]
    assert h.shape == (4, 48)
