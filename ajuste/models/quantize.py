"""A base with its matrices in 4 or 8 bits (bitsandbytes), for QLoRA: frozen and small, with an adapter that learns.

    nf4    W ~ c[q] * a      per 64 weights: q 4-bit numbers into the 16 levels c of a normal distribution (NF4), and
                             the largest |weight| a, itself kept in 8 bits (double quantisation). 4.13 bits a weight
    int8   W ~ q * a / 127   per output row: q 8-bit numbers, a the largest |weight| of the row. 8 bits a weight

Embeddings, output layer and norms stay as they are. Quantising is a function of the base alone: the codes are the
same whatever the dtype that the base is loaded in, so nothing quantised is ever stored.

Merging: what was trained is W + (alpha/r) B A with W the *quantised* base, so the update belongs into
`dequantised_base` and not into the base that it came from. In float32 the merged model then equals the trained one.

Two habits of bitsandbytes on a CPU are switched off, because a model must compute one function:
    nf4    where the processor has AVX512_BF16, an evaluation repacks each layer in place, and gradients afterwards are
           wrong without a word
    int8   in evaluation the activations are rounded to 8 bits too, in training they are not; here they never are
           (on a GPU they always are: LLM.int8)

Differs from the paper (Dettmers et al., 2023): no paged optimiser.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ajuste.models.folder import quiet

KINDS = ("nf4", "int8")


def load(base: Path, kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The base folder's model quantised as `kind`, frozen, in eval mode; products and other weights in `dtype`.

    Raises ValueError for a kind that does not exist, a missing base, and where bitsandbytes is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"quantisation {kind!r} does not exist: {' or '.join(KINDS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("bitsandbytes is not installed, which quantised bases (qlora, qlora8) need: pip install it")
    if not (base / "model.safetensors").is_file():
        raise ValueError(f"{base / 'model.safetensors'} is missing: run stage `base_decoder`")
    if kind == "nf4":
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    else:
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, quantization_config=how, dtype=dtype, local_files_only=True)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        elif is_int8(module):
            module.register_forward_pre_hook(_round_weights_only)
    return model.requires_grad_(False).eval()


def dequantised_base(base: Path, kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The ordinary model whose matrices are exactly those that `load(base, kind)` computes with, rounded to `dtype`.

    It differs from the base by the rounding of the quantisation; it has no trace of bitsandbytes and saves as usual.
    """
    model = load(base, kind, torch.float32)
    with quiet():
        model = model.dequantize(dtype=torch.float32)
    return model.to(dtype).requires_grad_(False).eval()


def dequantised_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """{name: W} of the quantised matrices, as the model computes with them and by the base's own names.

    model: from `load`, alone or with a PEFT adapter on it.
    """
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    found = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # PEFT's layers answer with that of the one they hold
        if type(weight).__name__ in ("Params4bit", "Int8Params"):
            layer = name.removeprefix("base_model.model.").removesuffix(".base_layer")
            found[f"{layer}.weight"] = dequantize_bnb_weight(weight, getattr(module, "state", None))
    return found


def is_int8(module: nn.Module) -> bool:
    """True for a layer of 8 bits, told without importing bitsandbytes."""
    return type(module).__name__ == "Linear8bitLt"


def numel(parameter: nn.Parameter) -> int:
    """Weights that a parameter stands for: a 4-bit one packs two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def _round_weights_only(module: nn.Module, args: tuple) -> None:
    if module.weight.device.type == "cpu":
        module.training = True  # which arithmetic it takes; nothing else of the layer looks at it
