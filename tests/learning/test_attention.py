"""ajuste/learning/layers/attention.py against torch's own attention, row by row, and its backward pass against finite
differences."""

import pytest
import torch
from torch.nn import functional as F

from ajuste.learning.layers import attention
from ajuste.learning.layers.attention import row_attention

torch.set_num_threads(1)
LENGTHS = [3, 1, 17, 8]


def inputs(H, G, d, dtype, seed=0):
    """query, key and value as a model gives them: views of one [T, heads, d] block."""
    torch.manual_seed(seed)
    block = torch.randn(sum(LENGTHS), H + 2 * G, d, dtype=dtype, requires_grad=True)
    return block, block[None].transpose(1, 2).split([H, G, G], dim=1)


def by_torch(query, key, value, scale):
    """Each row through SDPA with the heads of K and V repeated."""
    n = query.shape[1] // key.shape[1]
    outs = []
    for q, k, v in zip(*(tensor.split(LENGTHS, dim=2) for tensor in (query, key, value)), strict=True):
        k, v = k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1)
        outs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
    return torch.cat(outs, dim=2).transpose(1, 2)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("H, G", [(6, 2), (4, 4), (3, 1), (8, 2), (6, 3)])  # rows as long as there are heads, too
def test_equals_sdpa_forward_and_backward(H, G, dtype, tolerance, by_hand, monkeypatch):
    monkeypatch.setattr(attention, "BY_HAND", 512 if by_hand else 0)
    block, qkv = inputs(H, G, 8, dtype)
    expected = by_torch(*qkv, 0.3)
    found = row_attention(*qkv, LENGTHS, 0.3)
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), block, retain_graph=True)
    (found_gradient,) = torch.autograd.grad((found * weights).sum(), block)
    assert found.shape == expected.shape and found.is_contiguous() is by_hand
    assert (found - expected).abs().max() < tolerance
    assert (found_gradient - expected_gradient).abs().max() < tolerance


def test_backward_against_finite_differences():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 6, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    assert torch.autograd.gradcheck(lambda q, k, v: row_attention(q, k, v, [2, 4], 0.7), (q, k, v))


def test_gradients_lie_as_the_projections_want_them():
    """[1, T, heads, d] in one piece, also where what came in lay as [1, heads, T, d]."""
    torch.manual_seed(0)
    qkv = [torch.randn(1, heads, sum(LENGTHS), 8, requires_grad=True) for heads in (4, 2, 2)]
    found = torch.autograd.grad(row_attention(*qkv, LENGTHS, 0.3).sum(), qkv)
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in found)


def test_bfloat16_is_as_near_to_float32_as_sdpa_is():
    _, qkv = inputs(6, 2, 64, torch.float32)
    exact = by_torch(*qkv, 0.125)
    half = [tensor.bfloat16() for tensor in qkv]
    ours = (row_attention(*half, LENGTHS, 0.125) - exact).abs().mean()
    theirs = (by_torch(*half, 0.125) - exact).abs().mean()
    assert ours < 3 * theirs


def test_a_window_is_kept():
    block, qkv = inputs(4, 2, 8, torch.float64)
    found = row_attention(*qkv, LENGTHS, 0.3, window=4)
    assert torch.allclose(row_attention(*qkv, LENGTHS, 0.3, window=17), row_attention(*qkv, LENGTHS, 0.3))
    start = 0
    for length in LENGTHS:
        for t in range(length):
            first = start + max(0, t - 3)
            q, k, v = qkv[0][:, :, start + t : start + t + 1], *(x[:, :, first : start + t + 1] for x in qkv[1:])
            alone = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
            assert torch.allclose(found[:, start + t], alone[:, :, 0])
        start += length


def test_lengths_that_do_not_fill_the_batch_are_refused():
    _, qkv = inputs(4, 2, 8, torch.float32)
    with pytest.raises(ValueError, match="rows of 28 tokens do not fit"):
        row_attention(*qkv, [20, 8], 0.3)


def test_what_does_not_fit_is_refused_in_full():
    _, (q, k, v) = inputs(4, 2, 8, torch.float32)
    twice = q.repeat(2, 1, 1, 1)
    for wrong, lengths in (((q, k, v), [20, 8]), ((q, k[:, :, 1:], v), LENGTHS), ((twice, k, v), LENGTHS)):
        said = rf"^rows of {sum(lengths)} tokens do not fit a batch of \[{len(wrong[0])}, 4, 29, 8\]$"
        with pytest.raises(ValueError, match=said):
            row_attention(*wrong, lengths, 0.3)


@pytest.mark.parametrize(
    "most, window, by_hand", [(17, None, True), (16, None, False), (512, 17, True), (512, 16, False)]
)
def test_the_longest_row_and_the_window_say_who_does_it(most, window, by_hand, monkeypatch):
    """Ours leaves its result as [1, T, H, d] lies in memory; torch's is a view of [1, H, T, d]."""
    monkeypatch.setattr(attention, "BY_HAND", most)
    _, qkv = inputs(4, 2, 8, torch.float32)
    assert row_attention(*qkv, LENGTHS, 0.3, window=window).is_contiguous() is by_hand


@pytest.mark.parametrize("window", [None, 4])
def test_dropout_is_torchs_own_row_after_row(window):
    _, qkv = inputs(4, 2, 8, torch.float32)
    torch.manual_seed(5)
    found = row_attention(*qkv, LENGTHS, 0.3, 0.4, window)
    torch.manual_seed(5)
    expected = []
    for q, k, v in zip(*(tensor.split(LENGTHS, dim=2) for tensor in qkv), strict=True):
        t = torch.arange(q.shape[2])
        seen = (t[:, None] >= t) & (t[:, None] - t < (window or 99))
        mask = seen if window else None
        expected.append(F.scaled_dot_product_attention(q, k, v, mask, 0.4, not window, scale=0.3, enable_gqa=True))
    assert torch.equal(found, torch.cat(expected, dim=2).transpose(1, 2))
    assert not torch.allclose(found, row_attention(*qkv, LENGTHS, 0.3, window=window))


def test_rows_are_filled_up_to_a_multiple_of_32():
    assert [attention._wide(length) for length in (1, 31, 32, 33, 64, 65)] == [32, 32, 32, 64, 64, 96]
    x = torch.arange(2 * 3 * 2.0).view(2, 3, 2)
    filled = attention._filled(x)
    assert filled.shape == (2, 32, 2) and torch.equal(filled[:, :3], x) and not filled[:, 3:].any()
    assert attention._filled(filled).shape == filled.shape
    heads = torch.arange(4 * 3 * 2.0).view(4, 3, 2)
    stacked = attention._stacked(heads, 2, 0.5)
    assert torch.equal(stacked, torch.stack([torch.cat([heads[0], heads[1]]), torch.cat([heads[2], heads[3]])]) / 2)
