"""What of a base LoRA adapts and what it cannot: linear layers, and experts that stand fused in one parameter.

    W_e <- W_e + (alpha/r) B_e A_e          for each expert e of W [E, d, k]; A [r E, k] and B [d, r E] hold all E pairs

transformers keeps the experts of a mixture as two parameters a layer, `experts.gate_up_proj` and `experts.down_proj`,
which are no linear layers. PEFT adapts them by name (`target_parameters`) for LoRA and rsLoRA without dropout on x;
each forward then adds B_e A_e to every expert's matrix, in the matrix's own type. Where it cannot (DoRA, quantised
bases, dropout) they stay frozen, and `told` says how many weights those are.

No loss on the router is added: with its weights frozen the shares of the experts hardly move, and a plain language
model loss is what transformers computes by default (`output_router_logits` off).

    targets = targets_of(model, ("all-linear",), fused=True)      # Targets(modules=[...], parameters=[...])
    card |= told(adapted)                                         # {"experts": {"weights": ..., "trained": ...}}
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ajuste.core.notes import say
from ajuste.models.files.tensors import Tensors
from ajuste.models.folder import quiet

ALL = ("all-linear",)
ROUTER = "it chooses experts and does not answer with one tensor"
MIXER = "a state-space layer reads its weights without calling it, so an adapter beside it would do nothing"


class Targets(NamedTuple):
    """For PEFT's LoraConfig: last names of linear layers, and last two names of fused experts; both sorted."""

    modules: list[str]
    parameters: list[str]


def targets_of(model: nn.Module, names: tuple[str, ...], fused: bool) -> Targets:
    """The layers of those last names; for "all-linear" every linear one but the output layer, and the experts.

    fused: can the method adapt fused experts? Raises ValueError, naming the layers that there are, for a name that no
    layer has, and for one that cannot be adapted, with the reason.
    """
    never = unadaptable(model)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        last(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    held = sorted({".".join(name.split(".")[-2:]) for name in parameters_of(model)})
    if tuple(names) == ALL:
        return Targets(sorted(linear - never.keys()), held if fused else [])
    parameters = [name for name in held if last(name) in names]
    for name in names:
        if name in never:
            raise ValueError(f"layer {name} of the base cannot be adapted: {never[name]}")
        if name not in linear and not any(last(one) == name for one in parameters):
            raise ValueError(f"no linear layer of the base is named {name}: it has {', '.join(sorted(linear))}")
    if parameters and not fused and not set(names) <= linear:
        raise ValueError(f"fused experts ({', '.join(parameters)}) need method lora or rslora and lora_dropout 0")
    return Targets(sorted(set(names) & linear), parameters if fused else [])


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The fused experts by full name, [E, d, k] or [E, k, d]: parameters of three dimensions of no layer of torch's."""
    found = {}
    for name, module in model.named_modules():
        if not type(module).__module__.startswith("torch.nn"):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3 and own != "weight":
                    found[f"{name}.{own}"] = parameter
    return found


def unadaptable(model: nn.Module) -> dict[str, str]:
    """{last name: why} of the linear layers that an adapter beside them would break, or that would not feel it."""
    never = {}
    for name, module in model.named_modules():
        own = type(module).__module__.startswith("transformers.models.")
        if isinstance(module, nn.Linear) and own and not _answers_with_a_tensor(module):
            never[last(name)] = ROUTER
        if hasattr(module, "A_log") and hasattr(module, "D"):  # Mamba's: kernels take the weights as they are
            never |= {child: MIXER for child in ("dt_proj", "out_proj") if hasattr(module, child)}
    return never | _taken_for_experts(model, never)


def told(model: nn.Module) -> dict:
    """What the card of a trained model says of its fused experts, which is told in one line too; {} without any.

    model: after PEFT, before training. {"experts": {"weights": all of them, "trained": those that learn}}.
    """
    held = parameters_of(model)
    if not held:
        return {}
    wrapped = [module for module in model.modules() if hasattr(module, "parameter_name") and hasattr(module, "lora_A")]
    adapted = {id(module.get_param()) for module in wrapped}
    sizes = [(weights.numel(), weights.requires_grad or id(weights) in adapted) for weights in held.values()]
    weights, trained = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    say(
        f"experts: {trained:,} of {weights:,} weights of fused experts learn"
        + (" (only full, lora and rslora without dropout train them)" if trained < weights else "")
        + "; no loss on the router is added"
    )
    return {"experts": {"weights": weights, "trained": trained}}


def base_weights(
    file: Path, config: dict, load: Callable[[], nn.Module]
) -> tuple[Mapping[str, torch.Tensor], frozenset[str]]:
    """W0 by name for lora.merge_by_hand, from a base's file, and which of the fused experts are [E, k, d] there.

    config: adapter_config.json. On disk every expert stands alone under another name, so where experts were adapted
    the weights are those of the model that `load` returns.
    """
    if not config.get("target_parameters"):
        return Tensors(file), frozenset()
    model = load()
    held = parameters_of(model)
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in held}
    return model.state_dict(), frozenset(name for name in held if getattr(owners[name], "is_transposed", False))


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


@torch.no_grad()
def _answers_with_a_tensor(module: nn.Linear) -> bool:
    return isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)


def _taken_for_experts(model: nn.Module, never: dict[str, str]) -> dict[str, str]:
    """Names that PEFT would take for the experts' own of older transformers, and turn into them (Qwen3-Next's shared
    expert)."""
    if not parameters_of(model):
        return {}
    with quiet():
        import peft  # takes seconds
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    linear = {last(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)} - never.keys()
    config = peft.LoraConfig(target_modules=sorted(linear))
    changed = copy.deepcopy(config)
    convert_peft_config_for_transformers(changed, model, None)
    taken = set(config.target_modules) - set(changed.target_modules)
    return dict.fromkeys(taken, "PEFT takes the name for that of a single expert")
