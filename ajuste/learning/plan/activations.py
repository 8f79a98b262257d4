"""What autograd keeps of a forward pass until the backward pass has used it, counted operation by operation.

    of a token in a layer      n = norms + attention + MLP + copies, in bytes; b bytes a number, 2 or 4
        norms        2 (4 d + b d)       their input in float32 (RMSNorm makes that copy), their output
        attention    b (2 H h + 2 G h)   queries, keys, values and what comes out
        MLP          4 b f               gate, silu(gate), up, their product; without a gate b f (1 + what gelu keeps)
        copies       4 k                 of each adapted matrix, the input in float32, where PEFT's own layer runs
        u = x A^T    r a matrix
    of a row of l tokens       H l w b a layer, w = l up to the next 32: the probabilities, where attention is done by
                               hand (ajuste/learning/layers/attention.py: on a CPU, rows of up to 512 tokens)
    of a trained token         V b, its logits; what else a loss makes of them says `Logits`

    kept = L (T n + the rows' probabilities)               T tokens pass through the model at once

Full fine-tuning keeps a norm's inside too, since its weight learns. With autocast (full, bfloat16) the stream between
layers is float32, the matrices have a bfloat16 copy each, and each that reads a norm's output makes one of that.
Tested against what autograd really keeps: tests/learning/plan/test_activations.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ajuste.learning.plan.architecture import ALL, Architecture

BY_HAND, WIDTH, CHUNK = 512, 32, 64  # as ajuste/learning/layers/{attention,ragged}.py have them, which import torch


class Batch(NamedTuple):
    """What passes the model at once. lengths: tokens of each row, without a prefix that all share and that is read
    once; trained: tokens whose logits are computed."""

    lengths: tuple[int, ...]
    prefix: int = 0
    trained: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix + sum(self.lengths)

    @property
    def longest(self) -> int:
        return self.prefix + max(self.lengths)

    @property
    def seen(self) -> int:
        """Pairs of a token and one that it may see, filled up as the attention fills them."""
        rows = sum(own * wide(self.prefix + own) for own in self.lengths)
        return rows + self.prefix * wide(self.prefix)


class Way(NamedTuple):
    """How the weights learn. b: bytes of a number in the products. full: all weights learn, in float32. quantised: the
    matrices are, so PEFT's own layers run. sdpa: torch's attention, whatever the length of a row: GPUs, padded rows."""

    b: int
    full: bool = False
    quantised: bool = False
    r: int = 8
    targets: Sequence[str] = ALL
    sdpa: bool = False


def wide(length: int) -> int:
    """The next multiple of WIDTH."""
    return -(-length // WIDTH) * WIDTH


def of_a_token(a: Architecture, way: Way) -> tuple[float, str]:
    """Bytes that a layer keeps of a token, and the sum as people read it."""
    b, autocast = way.b, way.full and way.b == 2
    apart = not way.full and b == 2 and (way.quantised or not a.fused)  # PEFT makes float32 copies of its inputs
    adapted = () if way.full else a.adapted(way.targets)
    mlp = way.full or any(a.f in (one.d, one.k) for one in adapted)
    inside = 4 if way.full and a.rms else 0
    before = 4 if a.rms or autocast else b
    readers = sum(one.number for one in a.matrices) // a.L - 2 if autocast else 2  # each casts the norm's output anew
    outputs = 0 if apart else (readers if mlp else 1) * b
    norms = 2 * (before + inside) + outputs
    attention = b * ((1 if apart else 2) * a.H * a.h + 2 * a.G * a.h)
    products = (3 if a.gated else a.gelu) + (1 if mlp and not apart else 0)
    copies = sum(4 * one.k * one.number for one in adapted) / a.L if apart else 0
    low = sum(way.r * (4 if apart else b) * one.number for one in adapted) / a.L
    total = norms * a.d + attention + products * b * a.f + copies + low
    words = f"{norms} d + {b} ({1 if apart else 2} H h + 2 G h) + {products * b} f"
    words += f" + {copies:,.0f}" if copies else ""
    words += f" + {low:,.0f}" if low else ""
    return total, words


def kept(a: Architecture, batch: Batch, way: Way) -> tuple[float, str]:
    """Bytes that all layers keep of a batch, and the formula."""
    n, words = of_a_token(a, way)
    by_hand = not way.sdpa and batch.longest <= BY_HAND
    rows = a.H * batch.seen * way.b if by_hand else 4 * a.H * batch.tokens
    last = (4 if a.rms or way.full else way.b) + (4 + way.b if way.full else 0)  # the norm behind the last layer
    ends = batch.tokens * a.d * last
    seen = f"H {batch.seen:,} b" if by_hand else "4 T H"
    said = f"L (T n + {seen}), T = {batch.tokens:,}, n = {words} = {n:,.0f}"
    return a.L * (batch.tokens * n + rows) + ends, said


def passing(a: Architecture, batch: Batch, way: Way) -> float:
    """Bytes that come and go in one layer's backward pass: the gradients of what it keeps of its MLP, and its sums."""
    return batch.tokens * ((4 if a.gated else 3) * way.b * a.f + 8 * a.d)


class Logits(NamedTuple):
    """What a loss makes of N x V logits. copies: of all of them, in their own dtype; chunk: of 64 rows, in float32."""

    copies: int
    chunk: int


LOGITS = {
    "cross-entropy": Logits(1, 2),  # the gradient is written over them
    "likelihood": Logits(2, 2),  # ajuste/models/responses.py: the logits, and p beside them
    "policy": Logits(1, 4),  # ajuste/learning/rl/token_log_probs.py: p alone; the logits come 64 rows at a time
    "none": Logits(0, 0),
}


def logits(a: Architecture, trained: int, kind: str, b: int) -> tuple[float, str]:
    """Bytes of the output layer's numbers, and the formula."""
    one = LOGITS[kind]
    rows = min(CHUNK, trained)
    return (
        a.V * (one.copies * trained * b + 4 * one.chunk * rows),
        f"V ({one.copies} N b + {4 * one.chunk} x {rows}), N = {trained:,}",
    )
