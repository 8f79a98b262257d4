"""Attention of one token against torch's own, over rows of unequal length, with shared key heads and windows."""

import pytest
import torch
from torch.nn import functional as F

from ajuste.learning.layers.one_token import attention


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
