"""Bottleneck adapters: two small matrices after attention and after the MLP of every layer of a frozen decoder.

        h  [d]                    h' = h + W_up gelu(W_down h + b_down) + b_up
        |------------+
        |       W_down  d x w          w is the bottleneck's width, much smaller than d
        |         gelu
        |        W_up   w x d          starts at zero, so that the model starts as its base, bit for bit
        |------------+
        h'                        trainable: 2 n layers * (2 d w + w + d)

They stand behind the last linear layer of each attention and MLP block, before the residual sum. Because of the gelu
they cannot be folded into the base's matrices, unlike LoRA: a model with them is always served as base and adapter.

**PEFT has no such adapter and cannot load one.** A folder holds bottleneck.json, which says so, and
bottleneck.safetensors; `ajuste.models.decoder.load(folder, base)` reads it.

Differs from the paper (Houlsby et al., 2019): the layer norms stay frozen, and W_up starts at exactly zero.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG, WEIGHTS = "bottleneck.json", "bottleneck.safetensors"
NAME = "bottleneck"
# the last linear layer of attention and of the MLP: Llama and kin, GPT-2, OPT, GPT-NeoX and Falcon
BLOCK_ENDS = ("o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense", "dense_4h_to_h")


class Bottleneck(nn.Module):
    """What is added to h [..., d]: W_up gelu(W_down h + b_down) + b_up, computed and kept in float32 by default."""

    def __init__(self, d: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(d, width), nn.Linear(width, d)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        # under autocast the products are in its dtype
        x = h if torch.is_autocast_enabled(h.device.type) else h.to(self.down.weight.dtype)
        return self.up(F.gelu(self.down(x))).to(h.dtype)


def parameters(blocks: int, d: int, width: int) -> int:
    """Trainable parameters of `blocks` adapters (two a layer): W_down, b_down, W_up, b_up of each."""
    return blocks * (2 * d * width + width + d)


def attach(model: nn.Module, width: int) -> nn.Module:
    """Freeze `model` and put an adapter of `width` behind each block, in place. Draws W_down from torch's generator.

    Raises ValueError for an architecture in which no block's end is known.
    """
    ends = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in BLOCK_ENDS]
    if not ends:
        raise ValueError(f"no layer of the base is named {', '.join(BLOCK_ENDS)}: its blocks' ends are not known")
    model.requires_grad_(False)
    device, d = next(model.parameters()).device, model.config.hidden_size
    for name in ends:
        linear = model.get_submodule(name)
        linear.add_module(NAME, Bottleneck(d, width).to(device))
        linear.register_forward_hook(_add)
    return model


def _add(linear: nn.Module, args: tuple, h: Tensor) -> Tensor:
    return h + linear.get_submodule(NAME)(h)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by name, and nothing of the base."""
    return {name: p.detach().cpu() for name, p in model.named_parameters() if f".{NAME}." in name}


def save(model: nn.Module, out: Path, base_id: str) -> None:
    """Write the adapters of a model from `attach` into the existing folder `out`."""
    weights = {name: p.contiguous() for name, p in state(model).items()}
    width = next(p.shape[0] for name, p in weights.items() if name.endswith("down.weight"))
    config = {
        "method": "bottleneck adapters: h + W_up gelu(W_down h + b_down) + b_up behind each attention and MLP block",
        "base_model_name_or_path": base_id,
        "width": width,
        "note": "PEFT has no such adapter and cannot load this folder: ajuste.models.decoder.load(folder, base) does",
    }
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(weights, out / WEIGHTS)


def load(model: nn.Module, folder: Path) -> nn.Module:
    """The saved adapters on `model`, their base, frozen. Raises ValueError for weights that do not fit it."""
    width = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["width"]
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten at once
        attach(model, width)
    weights = load_file(folder / WEIGHTS)
    own = {name: p for name, p in model.named_parameters() if f".{NAME}." in name}
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in weights.items()}:
        raise ValueError(f"adapter {folder} does not fit its base: {len(weights)} tensors, {len(own)} places for them")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return model.requires_grad_(False)
