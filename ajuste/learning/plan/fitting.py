"""Which method fits so many GPUs of a kind, and which of those is the cheapest.

    bytes of a GPU = (weights + gradients + optimiser) / N + activations + logits + 2 b M / L for N > 1

The state is cut as ZeRO 3 cuts it; a layer is gathered while the next one comes.

Cheapest: the fewest operations a token, then the fewest GPUs, then the most rows at once; a base in 4 bits costs a
little more than one in 16, for it is turned back at every product.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ajuste.learning.plan import training
from ajuste.learning.plan.activations import Batch
from ajuste.learning.plan.architecture import Architecture
from ajuste.learning.plan.cost import Gpu, operations
from ajuste.learning.plan.parts import Plan, size

MOST = 4096  # GPUs that are tried
OF_A_BATCH = ("activations", "logits", "a layer's gradients")


class Option(NamedTuple):
    """A method on so many GPUs with so many rows at once on each: bytes of a GPU."""

    method: str
    rows: int
    gpus: int
    bytes: float
    fits: bool
    operations: float


def of_a_gpu(a: Architecture, plan: Plan, N: int) -> float:
    """Bytes of one of N GPUs: state is cut, what a batch makes is not."""
    cut = plan._replace(parts=tuple(
        part if part.name in OF_A_BATCH else part._replace(bytes=part.bytes / N) for part in plan.parts
    ))  # fmt: skip
    return cut.total + (4 * a.M / a.L if N > 1 else 0)


def options(
    a: Architecture, r: int, targets: Sequence[str], rows: int, tokens: int, gpu: Gpu, gpus: int
) -> list[Option]:
    """For each method the least number of GPUs that it fits, with all rows at once or fewer; else all GPUs, one row."""
    found = []
    for method in training.METHODS:
        way = training.way(method, 2, r, tuple(targets), sdpa=True)
        cheap = operations(a.P, a.a(r, targets), way.full) * (1.1 if way.quantised else 1.0)
        tried = [
            Option(method, n, N, need := of_a_gpu(a, training.supervised(a, way, batch_of(n, tokens), method), N),
                   need <= gpu.bytes, cheap)
            for N in range(1, gpus + 1) for n in halves(rows)
        ]  # fmt: skip
        found.append(next((one for one in tried if one.fits), tried[-1]))
    return found


def cheapest(found: Sequence[Option]) -> Option | None:
    """Of those that fit; None if none does."""
    return min((one for one in found if one.fits), key=lambda one: (one.operations, one.gpus, -one.rows), default=None)


def advice(a: Architecture, r: int, targets: Sequence[str], tokens: int, gpu: Gpu, gpus: int) -> str:
    """What to change when nothing fits: the fewest such GPUs for each method, with one row at once."""
    said = []
    for method in training.METHODS:
        way = training.way(method, 2, r, tuple(targets), sdpa=True)
        plan = training.supervised(a, way, batch_of(1, tokens), method)
        enough = next((N for N in range(gpus + 1, MOST) if of_a_gpu(a, plan, N) <= gpu.bytes), None)
        said += [f"{method} fits {enough} of them"] if enough else []
    if said:
        return f"take more GPUs ({'; '.join(said)}), or a smaller model"
    return f"one row of {tokens:,} tokens alone takes more than {size(gpu.bytes)}: take shorter rows or a smaller model"


def halves(rows: int) -> list[int]:
    """rows, rows / 2, ..., 1."""
    found = [rows]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def batch_of(rows: int, tokens: int) -> Batch:
    return Batch((tokens,) * rows, trained=rows * tokens)
