"""The letters of a plan, read from the names and shapes of a model's weights and from its configuration; no weights.

    P      weights, tied ones once              M   weights of the layers' matrices, which adapters and 4 bits are for
    L, d   layers, width                        H, G, h   heads, heads of keys and values, width of a head
    f      width inside the MLP                 V   tokens of the vocabulary
    a      an adapter's weights: the sum of r (d + k) over the adapted d x k matrices

`read` takes any transformer whose configuration names these sizes, by whichever of the usual names. A matrix belongs to
a layer when a number stands in its name, as in model.layers.0.self_attn.q_proj.weight.

    read(shapes, config)                          {name: shape} and config.json
    gpt(memory_plan.SHAPES["gpt-3"], "gpt-3")     a GPT that exists as sizes alone
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from ajuste.learning.memory_plan import Shape, gpt_parameters

NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "groups": ("num_key_value_heads", "num_kv_heads"),
    "size": ("head_dim", "d_kv"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"),
    "vocabulary": ("vocab_size",),
}
ALL = ("all-linear",)


class Matrix(NamedTuple):
    """`number` d x k matrices of one name."""

    name: str
    d: int
    k: int
    number: int


class Architecture(NamedTuple):
    """The letters above. tied: the output layer is the embedding. rms: norms in Python, RMSNorm. gelu: of an MLP
    without gate, how many tensors of width f its activation keeps. fused: LoRA runs in ajuste/learning/layers/fused.py,
    which Conv1D does not allow."""

    name: str
    P: int
    matrices: tuple[Matrix, ...]
    L: int
    d: int
    H: int
    G: int
    h: int
    f: int
    V: int
    tied: bool
    rms: bool
    gated: bool
    gelu: int
    fused: bool

    @property
    def M(self) -> int:
        return sum(one.d * one.k * one.number for one in self.matrices)

    def adapted(self, targets: Sequence[str] = ALL) -> tuple[Matrix, ...]:
        """The matrices that LoRA stands beside. Raises ValueError for a name that no matrix has."""
        if tuple(targets) == ALL:
            return self.matrices
        names = {one.name for one in self.matrices}
        if missing := [name for name in targets if name not in names]:
            raise ValueError(f"{self.name} has no matrix `{missing[0]}`: its layers have {', '.join(sorted(names))}")
        return tuple(one for one in self.matrices if one.name in targets)

    def a(self, r: int, targets: Sequence[str] = ALL) -> int:
        """Weights of an adapter; the formula is ajuste/learning/lora.py's `parameters`, which needs torch."""
        return sum(r * (one.d + one.k) * one.number for one in self.adapted(targets))


def read(shapes: Mapping[str, Sequence[int]], config: Mapping, name: str) -> Architecture:
    """From {name of a weight: its shape} and a configuration of transformers as a dictionary.

    Raises ValueError for a configuration that does not name layers, width, heads or vocabulary.
    """
    text = config.get("text_config") or config
    sizes = {ours: next((text[key] for key in keys if text.get(key)), None) for ours, keys in NAMES.items()}
    missing = [NAMES[key][0] for key in ("layers", "width", "heads", "vocabulary") if not sizes[key]]
    if missing:
        raise ValueError(f"{name}: its configuration names no `{missing[0]}`, which a plan needs")
    found: Counter[tuple[str, int, int]] = Counter()
    names = {part for key in shapes for part in key.split(".")}
    for key, shape in shapes.items():
        if len(shape) >= 2 and re.search(r"\.\d+\.", key):
            *experts, d, k = shape
            if "c_attn" in names:  # Conv1D keeps W transposed
                d, k = k, d
            found[key.removesuffix(".weight").rpartition(".")[2], d, k] += prod(experts)
    matrices = tuple(Matrix(*key, number) for key, number in sorted(found.items()))
    d = sizes["width"]
    norms = [key for key in shapes if key.endswith(".bias") and re.search(r"norm|\bln_|\.ln", key, re.IGNORECASE)]
    act = str(text.get("hidden_act") or text.get("activation_function") or text.get("activation") or "gelu")
    return Architecture(
        name=name,
        P=sum(prod(shape) for shape in shapes.values()),
        matrices=matrices,
        L=sizes["layers"],
        d=d,
        H=sizes["heads"],
        G=sizes["groups"] or sizes["heads"],
        h=sizes["size"] or d // sizes["heads"],
        f=sizes["inner"] or 4 * d,
        V=sizes["vocabulary"],
        tied=not any(key.startswith(("lm_head.", "embed_out.")) for key in shapes),
        rms=not norms,
        gated=any("gate" in one or one in ("wi_0", "w3") for one in names),
        gelu=4 if act in ("gelu_new", "gelu_fast") else 1,  # 4: in Python, x, tanh, x/2 and 1 + tanh
        fused="c_attn" not in names,
    )


def gpt(shape: Shape, name: str) -> Architecture:
    """A GPT-2 or GPT-3 by its sizes, with the four attention matrices apart, as the papers count them."""
    d, L, V = shape.width, shape.layers, shape.vocabulary
    square = tuple(Matrix(one, d, d, L) for one in ("q_proj", "k_proj", "v_proj", "o_proj"))
    matrices = (*square, Matrix("c_fc", 4 * d, d, L), Matrix("c_proj", d, 4 * d, L))
    h = 128 if d >= 4096 else 64  # as OpenAI's are
    return Architecture(
        name, gpt_parameters(shape), matrices, L, d, H=d // h, G=d // h, h=h, f=4 * d, V=V, tied=True, rms=False,
        gated=False, gelu=4, fused=False,
    )  # fmt: skip
