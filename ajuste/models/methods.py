"""One switch: which weights of a decoder learn.

    full         every weight
    lora         h = W0 x + (alpha/r) B A x            A and B beside frozen matrices (ajuste/learning/lora.py)
    rslora       h = W0 x + (alpha/sqrt r) B A x       so that a larger r does not learn less
    dora         W = m (W0 + (alpha/r) B A) / ||.||    direction and length m of each row apart
    qlora        lora beside a base in 4 bits          NF4 with double quantisation (ajuste/models/quantize.py)
    qlora8       lora beside a base in 8 bits
    prefix       n keys and values of its own in every layer stand before each row
    prompt       n embeddings of its own stand before each row
    bottleneck   h + W_up gelu(W_down h) behind each attention and MLP block (ajuste/learning/layers/bottleneck.py)

The lora kinds change a matrix and can be merged into it; prefix, prompt and bottleneck cannot and stay adapters.
Trainable weights: r (d + k) a matrix for LoRA, d more for DoRA; n * layers * 2 * kv width for prefix; n * d for prompt.

    model = load_base(Path("artifacts/base/decoder"), "lora", torch.bfloat16)
    model = attach(model, Settings(method="lora", r=8, alpha=16, ...))

What learns is float32 whatever the base is, since small steps would vanish in bfloat16. So full fine-tuning has a
float32 model; in bfloat16 arithmetic it runs under autocast.

Differs from the papers: prefix tuning starts from keys and values of random tokens of the vocabulary and not through an
MLP (Li and Liang, 2021, find real words a good start), prompt tuning from their embeddings (Lester et al., 2021).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ajuste.learning.layers import bottleneck
from ajuste.models import decoder, experts, quantize
from ajuste.models.folder import quiet

LORA = ("lora", "rslora", "dora", "qlora", "qlora8")
VIRTUAL = ("prefix", "prompt")
METHODS = ("full", *LORA, *VIRTUAL, "bottleneck")
MERGEABLE = frozenset(LORA)
QUANTISATION = {"qlora": "nf4", "qlora8": "int8"}


class Settings(NamedTuple):
    """A method and its sizes; a method takes those that it knows."""

    method: str
    r: int = 8
    alpha: float = 16
    lora_dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)  # last names of the adapted layers
    virtual_tokens: int = 16
    bottleneck_width: int = 32


def load_base(base: Path, method: str, dtype: torch.dtype) -> nn.Module:
    """The base as `method` needs it: quantised, in `dtype`, or for `full` in float32, because every weight takes steps.

    Raises ValueError for a base that is missing, or bitsandbytes that is.
    """
    if method in QUANTISATION:
        return quantize.load(base, QUANTISATION[method], dtype)
    return decoder.load_base(base, torch.float32 if method == "full" else dtype)[0]


def attach(model: nn.Module, settings: Settings) -> nn.Module:
    """The model with the method's weights trainable and all others frozen, in training mode. New weights are drawn
    from torch's generator: seed it first.

    model: from `load_base`. Raises ValueError for an unknown method or a target layer that the model does not have.
    """
    method = settings.method
    if method not in METHODS:
        raise ValueError(f"method {method!r} does not exist: {', '.join(METHODS)}")
    if method == "full":
        return model.requires_grad_(True).train()
    if method == "bottleneck":
        return bottleneck.attach(model, settings.bottleneck_width).train()
    start = _prefix_of_random_tokens(model, settings.virtual_tokens) if method == "prefix" else None
    with quiet():
        import peft  # takes seconds

    if method in LORA:
        fused = method in ("lora", "rslora") and not settings.lora_dropout
        targets = experts.targets_of(model, settings.targets, fused)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets.modules,
            target_parameters=targets.parameters or None,
            use_rslora=method == "rslora",
            use_dora=method == "dora",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 keeps W0 transposed
        )
    elif method == "prefix":
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=settings.virtual_tokens)
    else:
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=settings.virtual_tokens,
            prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB,
        )
    with quiet():
        adapted = peft.get_peft_model(model, config)
    if start is not None:
        with torch.no_grad():
            adapted.prompt_encoder["default"].embedding.weight.copy_(start)
    return adapted.train()


def count_parameters(model: nn.Module) -> dict:
    """{"total", "trainable", "share"}: weights, however many bits each has. Tied ones count once."""
    sizes = [(quantize.numel(p), p.requires_grad) for p in model.parameters()]
    total, trainable = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    return {"total": total, "trainable": trainable, "share": trainable / total}


@torch.no_grad()
def _prefix_of_random_tokens(model: nn.Module, n: int) -> torch.Tensor:
    """Keys and values of n tokens of the vocabulary in every layer, as PEFT keeps them: [n, layers * 2 * kv width]."""
    ids = torch.randint(model.config.vocab_size, (1, n))
    cache = model(input_ids=ids.to(model.device), use_cache=True).past_key_values
    pairs = [
        tensor[0].transpose(0, 1).reshape(n, -1) for layer in cache.layers for tensor in (layer.keys, layer.values)
    ]
    return torch.cat(pairs, dim=1).float()
