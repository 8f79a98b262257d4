"""Tiny random decoders of three families, and conversations of unequal length for them."""

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

VOCABULARY = 97
IGNORED = -100
# llama: grouped heads, tied head. gpt2: absolute positions, Conv1D. mistral: a sliding window shorter than the rows
FAMILIES = ("llama", "gpt2", "mistral")


def decoder(family: str = "llama", seed: int = 0) -> nn.Module:
    """A float32 model with seeded weights large enough that a wrong mask shows."""
    torch.manual_seed(seed)
    shared = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1}
    if family == "gpt2":
        none = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=64, **none, **shared))
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(intermediate_size=96, head_dim=8, sliding_window=5, **sizes, **shared))
    return LlamaForCausalLM(LlamaConfig(intermediate_size=96, tie_word_embeddings=True, **sizes, **shared))


def conversations(lengths: tuple[int, ...] = (5, 17, 1, 9, 30, 2, 12, 8), seed: int = 0) -> list[tuple[list, list]]:
    """Rows (ids, labels): a prompt, an answer, now and then a second turn; one row has nothing to train."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels = [IGNORED if t < length // 2 or t == length - 2 else ids[t] for t in range(length)]
        rows.append((ids, labels))
    return rows


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """max |left - right| over all tensors; the two must name the same ones."""
    assert left.keys() == right.keys() and left
    return max((left[name] - right[name]).abs().max().item() for name in left)
