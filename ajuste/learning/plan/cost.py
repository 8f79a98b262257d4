"""Time and money of a training, from a throughput that was measured or that is assumed.

    seconds = tokens x passes / (tokens a second)
    operations a token     full  6 P: 2 forward, 4 backward        LoRA, QLoRA  4 P + 6 a: no gradient of W0 is computed
    tokens a second        = GPUs x peak x share / operations      share of the peak that is reached (MFU)
    cost                   = seconds x GPUs x price of an hour / 3600

Attention's own products, at most a few per cent at rows of a few thousand tokens, are left out. Source: Kaplan et al.
(2020) for 6 P.
"""

from typing import NamedTuple


class Gpu(NamedTuple):
    """bytes that a training can use, and operations a second of dense bfloat16 products (of the maker's data sheet)."""

    bytes: float
    peak: float


GPUS = {
    "h200": Gpu(139 * 2**30, 989e12), "h100": Gpu(79 * 2**30, 989e12), "a100-80": Gpu(79 * 2**30, 312e12),
    "a100-40": Gpu(39 * 2**30, 312e12), "l40s": Gpu(44 * 2**30, 362e12), "l4": Gpu(22 * 2**30, 121e12),
    "rtx4090": Gpu(23.5 * 2**30, 165e12),
}  # fmt: skip
SHARE = 0.4  # of the peak; ask with your own where you have measured it


def operations(P: float, a: float, full: bool) -> float:
    """Multiplications and additions of a trained token, forward and backward."""
    return 6 * P if full else 4 * P + 6 * a


def rate(P: float, a: float, full: bool, gpu: Gpu, gpus: int = 1, share: float = SHARE) -> float:
    """Tokens a second."""
    return gpus * gpu.peak * share / operations(P, a, full)


def money(seconds: float, gpus: int, price: float) -> float:
    """In the currency of the price of one GPU's hour."""
    return seconds / 3600 * gpus * price
