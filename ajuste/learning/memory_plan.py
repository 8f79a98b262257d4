"""How much memory fine-tuning takes, before activations: the lecture's exercises as formulas.

    GPT's parameters          P = V d + C d + L (12 d^2 + 13 d) + 2 d      V tokens, C positions, L layers of width d
    an adapter's parameters   sum of r (d + k) over the adapted d x k matrices

    full, mixed precision     16 P     2 weights + 2 gradients + 4 master weights + 4 m + 4 v (Adam)
    full, 16 bits throughout   8 P     2 weights + 2 gradients + 2 m + 2 v
    LoRA                       2 P + 16 a        a = adapter's parameters: only they have gradients and an optimizer
    QLoRA (NF4)                b P / 8 + 16 a    b = 4 + 8/64 + 32/(64*256) = 4.127 bits with double quantisation

Bytes throughout; 1 GB is 10^9 bytes. Activations come on top: they grow with batch and length, not with the method.

Sources: ZeRO (Rajbhandari et al., 2020) for the 16 bytes; LoRA (Hu et al., 2021), whose 1.2 TB for GPT-3 is another
accounting (near the 16-bit one); QLoRA (Dettmers et al., 2023) for the bits. Run it:
`ajuste plan --model gpt3-175b --r 8`.
"""

from dataclasses import dataclass

BLOCK, BLOCK_OF_BLOCKS = 64, 256  # weights that share a constant, constants that share one of their own


@dataclass(frozen=True)
class Shape:
    """A GPT: layers L, width d, tokens V, positions C."""

    layers: int
    width: int
    vocabulary: int = 50257
    positions: int = 1024


SHAPES = {
    "gpt-2": Shape(12, 768),
    "gpt-2-medium": Shape(24, 1024),
    "gpt-2-large": Shape(36, 1280),
    "gpt-2-xl": Shape(48, 1600),
    "gpt-3": Shape(96, 12288, positions=2048),
}


@dataclass(frozen=True)
class Need:
    """Bytes of one method, before activations."""

    method: str
    trainable: float
    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def gpt_parameters(shape: Shape) -> int:
    """Parameters of a GPT-2 or GPT-3, the output layer tied to the embedding."""
    V, C, L, d = shape.vocabulary, shape.positions, shape.layers, shape.width
    return V * d + C * d + L * (12 * d * d + 13 * d) + 2 * d


def attention_adapter(shape: Shape, r: int, matrices: int) -> int:
    """Parameters of LoRA on `matrices` of the four d x d attention matrices (q, k, v, o) of every layer."""
    from ajuste.learning.lora import parameters  # needs torch, and a plan does not

    return shape.layers * matrices * parameters(r, shape.width, shape.width)


def nf4_bits(double_quantisation: bool = True) -> float:
    """Bits that a weight takes in NF4, with its share of the constants."""
    constants = 8 / BLOCK + 32 / (BLOCK * BLOCK_OF_BLOCKS) if double_quantisation else 32 / BLOCK
    return 4 + constants


def needs(P: float, a: float) -> list[Need]:
    """What each method takes for a model of P parameters and an adapter of a parameters."""
    return [
        Need("full, mixed", P, 2 * P, 2 * P, 12 * P),
        Need("full, 16 bits", P, 2 * P, 2 * P, 4 * P),
        Need("LoRA", a, 2 * P + 2 * a, 2 * a, 12 * a),
        Need("QLoRA (NF4)", a, nf4_bits() / 8 * P + 2 * a, 2 * a, 12 * a),
    ]
