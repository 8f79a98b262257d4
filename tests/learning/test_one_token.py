"""Attention of one token against torch's own, over rows of unequal length, with shared key heads and windows."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from ajuste.learning.layers import one_token
from ajuste.learning.layers.one_token import attention
from tests.invariants.decoders import decoder


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("shared", [1, 3])
def test_it_is_torchs_attention_under_the_mask_of_the_rows(shared, window):
    generator = torch.Generator().manual_seed(0)
    B, G, L, d = 4, 2, 11, 8
    q = torch.randn(B, G * shared, 1, d, generator=generator)
    K, V = torch.randn(2, B, G, L, d, generator=generator)
    lengths = torch.tensor([0, 3, 10, 7])
    seen = torch.zeros(B, 1, 1, L, dtype=torch.bool)
    for b, length in enumerate(lengths.tolist()):
        for column in range(L):
            back = L - 1 - column
            seen[b, 0, 0, column] = back <= length and (window is None or back < window)
    repeated = [x.repeat_interleave(shared, 1) for x in (K, V)]
    expected = F.scaled_dot_product_attention(q, *repeated, attn_mask=seen, scale=0.3).transpose(1, 2)
    room = torch.randn(2, B + 3, G, L + 20, d, generator=generator)        # a view, as the server has it
    room[:, :B, :, 5:5 + L] = torch.stack([K, V])
    K, V = room[:, :B, :, 5:5 + L]
    torch.testing.assert_close(attention(q, K, V, lengths, 0.3, window), expected)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_step_of_a_model_is_that_of_each_row_alone(family):
    """Rows of 9 and 3 tokens: all but the last are read with padding on the left, the last by one step of both. The
    window of the Mistral is 5 tokens, shorter than the first row."""
    model = decoder(family).eval()
    rows = [[5, 17, 33, 8, 61, 90, 4, 12, 77], [40, 3, 29]]
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
        assert not one_token.attached(model)
        assert one_token.attach(model) is True and one_token.attached(model) is True
        before = torch.tensor([rows[0][:-1], [0] * 6 + rows[1][:-1]])
        mask = torch.tensor([[1] * 8, [0] * 6 + [1] * 2])
        cache, lengths = DynamicCache(), mask.sum(1)
        model(before, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache)
        last = torch.tensor([row[-1:] for row in rows])
        places, lengths = lengths[:, None], lengths[None, None, None]
        step = model(last, attention_mask=lengths, position_ids=places, past_key_values=cache)
    torch.testing.assert_close(step.logits[:, 0], expected, atol=1e-4, rtol=1e-4)
    one_token.detach(model)
    assert not one_token.attached(model)


def test_a_model_that_takes_no_attention_from_outside():
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="its own"))
    assert one_token.attach(model) is False
    assert one_token.attached(model) is False
