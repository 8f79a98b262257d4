"""LoRA: a frozen weight W0 with a low-rank update beside it, and how the two become one matrix again.

              h  [d]
              |
       +------+------+
       |             |  times alpha/r
   +---+----+    +---+---+
   |        |    |   B   |   d x r, starts at zero
   |   W0   |    +---+---+
   |  d x k |        |       r numbers
   | frozen |    +---+---+
   |        |    |   A   |   r x k, starts random
   +---+----+    +---+---+
       |             |
       +------+------+
              |
              x  [k]

    h = W0 x + (alpha/r) B A x          while training: r(d + k) parameters learn, d*k stay frozen
    W = W0 + (alpha/r) B A              merged: one d x k matrix, no extra work when it answers
    rank-stabilised LoRA (rsLoRA) scales by alpha/sqrt(r) in place of alpha/r
    DoRA keeps length and direction of each row apart: W = m (W0 + (alpha/r) B A) / ||W0 + (alpha/r) B A||, m learns too

PEFT trains the adapter and does the merge (`merge`). `merge_by_hand` computes the same W from the saved tensors alone,
in float64, and shares no code with PEFT: the proof of the merge stage and the tests compare the two. Both go matrix by
matrix, so that a merge needs the memory of one model.

GPT-2 keeps its weights in Conv1D layers, transposed: W0 is k x d there (`fan_in_fan_out`), and so is the update.
Differs from the paper (Hu et al., 2021): A starts as PEFT starts it, Kaiming-uniform, and not Gaussian. DoRA (Liu et
al., 2024) is PEFT's too: the norm is over a row of W, the weights of one output.

Run it: `python -m tasks.merge.classify` (or `instruct`) merges an adapter of the default run and writes its proof.
"""

import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

PEFT_PREFIX = "base_model.model."
UNKNOWN_TO_US = ("lora_bias", "alpha_pattern", "layer_replication")


class ProofRefused(ValueError):
    """The merged model is not the model that was trained: its outputs differ by more than the tolerance."""


class Comparison(NamedTuple):
    """Two models on the same rows: the largest |logit difference| and the share of equal predictions (argmax)."""

    max_logit_difference: float
    equal_predictions: float
    rows: int


def scale(r: int, alpha: float, rslora: bool = False) -> float:
    """alpha/r, or alpha/sqrt(r) for rsLoRA (Kalajdzievski, 2023)."""
    return alpha / math.sqrt(r) if rslora else alpha / r


def parameters(r: int, d: int, k: int) -> int:
    """Trainable parameters of one adapted d x k matrix: A has r*k, B has d*r."""
    return r * (d + k)


def delta_W(
    A: Tensor, B: Tensor, r: int, alpha: float, fan_in_fan_out: bool = False, rslora: bool = False
) -> Tensor:
    """The update (alpha/r) B A in float64.

    A is [r, k], B is [d, r]; the result is [d, k], or [k, d] with fan_in_fan_out (GPT-2's Conv1D).
    Raises ValueError when the shapes do not belong to one adapter of rank r.
    """
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != r or B.shape[1] != r:
        raise ValueError(f"A must be [r, k] and B [d, r] with r={r}, but A is {list(A.shape)} and B {list(B.shape)}")
    update = scale(r, alpha, rslora) * (B.double() @ A.double())
    return update.T if fan_in_fan_out else update


def delta_experts(
    A: Tensor, B: Tensor, W0: Tensor, r: int, alpha: float, transposed: bool = False, rslora: bool = False
) -> Tensor:
    """The updates (alpha/r) B_e A_e of fused experts in float64, in the shape of W0 [E, d, k], or [E, k, d] transposed.

    A is [E r, k], r rows an expert; B is [d, r E], whose column r' E + e is the r'-th of expert e. Raises ValueError
    when the shapes do not belong to one adapter of rank r.
    """
    E = len(W0)
    d, k = W0.shape[:0:-1] if transposed else W0.shape[1:]
    if A.shape != (E * r, k) or B.shape != (d, r * E):
        raise ValueError(f"A {list(A.shape)} and B {list(B.shape)} are no adapter of rank {r} of {list(W0.shape)}")
    parts = [(A[e * r : (e + 1) * r], B[:, e::E]) for e in range(E)]
    return torch.stack([delta_W(A_e, B_e, r, alpha, transposed, rslora) for A_e, B_e in parts])


def dora_W(V: Tensor, m: Tensor, fan_in_fan_out: bool = False) -> Tensor:
    """DoRA's W = m V / ||V|| in float64, for V = W0 + (alpha/r) B A of shape [d, k] and the lengths m of its d rows.

    With fan_in_fan_out (GPT-2's Conv1D) V and the result are [k, d]. Raises ValueError when m is not of length d.
    """
    rows = V.T.double() if fan_in_fan_out else V.double()
    if m.shape != (rows.shape[0],):
        raise ValueError(f"m must have one length for each of the {rows.shape[0]} outputs, but is {list(m.shape)}")
    W = m.double().unsqueeze(1) * rows / rows.norm(dim=1, keepdim=True)
    return W.T if fan_in_fan_out else W


def merge(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Fold the active adapter of a PEFT model into its base; the model comes back without a trace of PEFT.

    Each sum is done in float64, one matrix at a time, and rounded once to `dtype`: in float32 products and sum would
    round three times. Works in place. Raises ValueError when the adapter holds a NaN or an infinity.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # takes seconds

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
            layer.double().merge(safe_merge=True)
            layer.get_base_layer().to(dtype)
        return model.merge_and_unload(safe_merge=True).to(dtype)


def merge_by_hand(
    W0: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: dict, transposed: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """W = W0 + (alpha/r) B A (or DoRA's) in float64, for those saved tensors that the adapter changes, one by one.

    W0 is the base's state by name, adapter the content of adapter_model.safetensors, config adapter_config.json.
    A base saved without its task's prefix (`encoder.layer.0...` for `bert.encoder.layer.0...`) is understood.
    Tensors that were trained whole (a head in modules_to_save) replace the base's. Fused experts (target_parameters)
    need W0 by the names of the loaded model; `transposed` names those that are [E, k, d]. Yields (name, W).
    Raises ValueError for an adapter that is more than A and B, or whose layer the base does not have.
    """
    unknown = [key for key in UNKNOWN_TO_US if config.get(key)]
    if unknown:
        raise ValueError(f"this adapter uses {', '.join(unknown)}: W0 + (alpha/r)BA does not describe it")
    for key in adapter:
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            A, B = adapter[key], adapter[key.replace(".lora_A.", ".lora_B.")]
            if weights := _experts(layer, W0, config):
                rank, alpha, rslora = config["r"], config["lora_alpha"], config.get("use_rslora", False)
                update = delta_experts(A, B, W0[weights], rank, alpha, weights in transposed, rslora)
                yield weights, W0[weights].double() + update
                continue
            r, alpha = A.shape[0], config["lora_alpha"]
            update = delta_W(A, B, r, alpha, config.get("fan_in_fan_out", False), config.get("use_rslora", False))
            W = base_weight(W0, f"{layer}.weight").double() + update
            if config.get("use_dora"):
                m = adapter[key.replace(".lora_A.weight", ".lora_magnitude_vector")]
                W = dora_W(W, m, config.get("fan_in_fan_out", False))
            yield f"{layer}.weight", W
        elif ".lora_" not in name:
            yield name, adapter[key].double()
        elif not name.endswith((".lora_B.weight", ".lora_magnitude_vector")):
            raise ValueError(f"{name} is neither A nor B of a linear layer: W0 + (alpha/r)BA does not describe it")


def _experts(layer: str, W0: Mapping[str, Tensor], config: dict) -> str | None:
    """The tensor of fused experts that A and B at `layer` belong to, if they do.

    PEFT puts one layer around another for each: the innermost holds the first parameter of the module.
    """
    wanted = config.get("target_parameters") or []
    module = layer.replace(".base_layer", "")
    held = [name for name in W0 if name.rpartition(".")[0] == module and any(name.endswith(f".{x}") for x in wanted)]
    return held[len(held) - 1 - layer.count(".base_layer")] if held else None


def base_weight(W0: Mapping[str, Tensor], name: str) -> Tensor:
    """The base's tensor of that name, with or without the prefix of the task model, or under that of another task.

    Raises ValueError if absent.
    """
    inside = name.split(".", 1)[1]
    for candidate in (name, inside, *(key for key in W0 if key.split(".", 1)[-1] == inside)):
        if candidate in W0:
            return W0[candidate]
    raise ValueError(f"the base has no tensor {name}: the adapter was trained on another base")


def largest_difference(expected: Iterable[tuple[str, Tensor]], found: Mapping[str, Tensor]) -> float:
    """max |expected - found| over the tensors (name, W) expected. Raises ValueError when `found` lacks some."""
    largest, missing = 0.0, []
    for name, W in expected:
        if name in found:
            difference = (W - found[name].double()).abs().max().item()
            largest = difference if difference != difference else max(largest, difference)
        else:
            missing.append(name)
    if missing:
        missing.sort()
        raise ValueError(f"the merged model lacks {missing[0]} and {len(missing) - 1} more of the adapted tensors")
    return largest


def compare_logits(left: Tensor, right: Tensor) -> Comparison:
    """Compare the logits [N, ..., C] of two models on the same N rows. Raises ValueError when the shapes differ."""
    if left.shape != right.shape:
        raise ValueError(f"logits of different shapes cannot be compared: {list(left.shape)} and {list(right.shape)}")
    difference = (left.double() - right.double()).abs().max().item() if left.numel() else 0.0
    equal = (left.argmax(-1) == right.argmax(-1)).double().mean().item() if left.numel() else 1.0
    return Comparison(difference, equal, left.shape[0])


def combine(parts: Sequence[Comparison]) -> Comparison:
    """The comparison of all rows from those of its batches. A NaN in one is a NaN in all."""
    rows = sum(part.rows for part in parts)
    differences = torch.tensor([part.max_logit_difference for part in parts], dtype=torch.float64)
    equal = sum(part.equal_predictions * part.rows for part in parts) / rows
    return Comparison(differences.max().item(), equal, rows)


def refuse_unless_equal(found: Comparison, max_logit_difference: float, min_equal_predictions: float = 1.0) -> None:
    """Raise ProofRefused, with the numbers, when a comparison is outside its tolerances. A NaN is always outside."""
    if not found.max_logit_difference <= max_logit_difference:
        raise ProofRefused(
            f"the merged model is not the adapter: largest logit difference {found.max_logit_difference:.3g} over "
            f"{found.rows} rows, tolerance {max_logit_difference:g} (equal predictions {found.equal_predictions:.2%})"
        )
    if not found.equal_predictions >= min_equal_predictions:
        raise ProofRefused(
            f"the merged model is not the adapter: {found.equal_predictions:.4%} equal predictions over {found.rows} "
            f"rows, at least {min_equal_predictions:.4%} wanted (largest difference {found.max_logit_difference:.3g})"
        )
