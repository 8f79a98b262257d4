"""How often does the interval of the calibration error hold the truth?

    OMP_NUM_THREADS=1 python -m benchmarks.calibration          # some minutes; writes docs/measured/calibration.md

Simulated with the evaluation's own interval (ajuste/learning/statistics/calibration.py). A row has a confidence c,
drawn from one of CONFIDENCES, and is right with probability c - s g(c); s is such that the true error is the one asked
for, computed from 100,000 confidences.

    shift    g = 1                                   the same everywhere
    over     g = c - least c                         more confident, more wrong
    part     g = 1 on the highest 40 %, else 0       right in one part of the range, wrong in another
    both     g = 1 above the median, -1 below it     too sure of the easy, too modest about the hard

A share of 400 splits is off by more than 2 points in one cell of 20. Where it is outside of CLEAR, so perhaps beyond
LEAST or MOST, it is measured once more on 2,000 other splits, and that one counts.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ajuste.learning.statistics.calibration import BINS, bins_of, calibration_error, holds, place_of
from ajuste.learning.statistics.metrics import percentile_interval, resamples
from benchmarks.results import value

PAGE = Path("docs/measured/calibration.md")
TRUE = (0.01, 0.03, 0.1)
ROWS = (200, 900, 5000)
NUMBER = 400
WIDTHS = 40  # splits whose interval is written out, for its mean width
LEAST, MOST = 0.92, 0.98
CLEAR, MORE = (0.93, 0.975), 2000
LARGE = 100_000

CONFIDENCES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "uniform": lambda rows, rng: rng.uniform(0.5, 1.0, rows),
    "mostly sure": lambda rows, rng: 0.5 + 0.5 * rng.beta(5, 1.2, rows),
    "mostly unsure": lambda rows, rng: 0.5 + 0.4 * rng.beta(1.5, 3, rows),
    "of four classes": lambda rows, rng: 0.25 + 0.75 * rng.beta(3, 2, rows),
}
KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "shift": lambda c, of: np.ones_like(c),
    "over": lambda c, of: c - of.min(),
    "part": lambda c, of: (c > np.quantile(of, 0.6)).astype(float),
    "both": lambda c, of: np.where(c > np.median(of), 1.0, -1.0),
}


def world(confidence: str, kind: str, error: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(confidences [LARGE], chances to be right [LARGE]) whose true error is `error`."""
    c = CONFIDENCES[confidence](LARGE, np.random.default_rng(seed))
    gap, low, high = KINDS[kind](c, c), 0.0, 4.0
    for _ in range(40):
        scale = (low + high) / 2
        p = np.clip(c - scale * gap, 0.0, 1.0)
        low, high = (scale, high) if true_error(c, p) < error else (low, scale)
    if abs(true_error(c, p) - error) > 1e-4:
        raise ValueError(f"confidences {confidence!r} cannot be off by {error} in the way of {kind!r}")
    return c, p


def true_error(c: np.ndarray, p: np.ndarray) -> float:
    """theta of the whole: root mean square of the bins' gaps, by the rows in them."""
    place = place_of(c)
    rows, gaps = np.bincount(place, minlength=BINS), np.bincount(place, p - c, minlength=BINS)
    return float(np.sqrt((gaps[rows > 0] ** 2 / rows[rows > 0]).sum() / len(c)))


def draw(c: np.ndarray, p: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(confidences, right) of so many rows of that world."""
    chosen = rng.integers(0, len(c), rows)
    return c[chosen], rng.random(rows) < p[chosen]


def coverage(confidence: str, kind: str, error: float, rows: int, number: int = NUMBER, seed: int = 1
             ) -> tuple[float, float]:  # fmt: skip
    """(share of intervals that hold the truth, their mean width)."""
    of, rng = world(confidence, kind, error), np.random.default_rng(seed)
    held, widths = 0, []
    for k in range(number):
        bins = bins_of(*draw(*of, rows, rng))
        held += holds(bins, error)
        if k < WIDTHS:
            found = calibration_error(bins)
            widths.append(found["high"] - found["low"])
    return held / number, float(np.mean(widths))


def measured(confidence: str, kind: str, error: float, rows: int) -> tuple[float, float]:
    """`coverage`, with more splits where the first ones leave it open."""
    share, width = coverage(confidence, kind, error, rows)
    if not CLEAR[0] <= share <= CLEAR[1]:
        share, _ = coverage(confidence, kind, error, rows, MORE, seed=2)
    return share, width


def plain_bootstrap(error: float, rows: int, number: int, seed: int = 1) -> float:
    """The same share of the percentile bootstrap of the plain error (the shift of all bins alike): what was before."""
    of, rng, held = world("uniform", "shift", error), np.random.default_rng(seed), 0
    counts = resamples(rows, 500, seed=0)
    for _ in range(number):
        c, right = draw(*of, rows, rng)
        gap = np.eye(BINS)[place_of(c)] * (right - c)[:, None]
        low, high = percentile_interval(np.abs(counts @ gap).sum(axis=1) / rows)
        held += low <= error <= high
    return held / number


def lines_of(kind: str) -> tuple[list[str], list[float]]:
    """The lines of the table of one kind, and their shares."""
    lines, shares = [], []
    for confidence in CONFIDENCES:
        for rows in ROWS:
            found = [measured(confidence, kind, error, rows) for error in TRUE]
            shares += [share for share, _ in found]
            cells = " | ".join(f"{share:.1%} ({width:.3f})" for share, width in found)
            lines.append(f"| {kind} | {confidence} | {rows:,} | {cells} |")
            print(lines[-1], flush=True)
    return lines, shares


def page(lines: list[str], shares: list[float]) -> str:
    """The whole page, with the plain bootstrap beside it."""
    before = [f"| {rows:,} | " + " | ".join(f"{plain_bootstrap(error, rows, 100):.0%}" for error in TRUE) + " |"
              for rows in ROWS[:2]]  # fmt: skip
    return "\n".join([
        "# How often the interval of the calibration error holds the truth, measured", "",
        f"{NUMBER:,} simulated test splits a cell, {MORE:,} others where their share was below {CLEAR[0]:.1%} or above "
        f"{CLEAR[1]:.1%}; the interval says 95 %; in brackets its mean width. Written by "
        "`python -m benchmarks.calibration`, which says what the kinds are.", "",
        "| kind of error | confidences | rows | true 0.01 | true 0.03 | true 0.1 |", "|---|---|---|---|---|---|",
        *lines, "", f"Worst cells: {min(shares):.1%} and {max(shares):.1%}; over all cells {np.mean(shares):.1%}. "
        f"Between {LEAST:.0%} and {MOST:.0%} is asked; a share of {NUMBER:,} has a standard error of 1.1 points, "
        f"one of {MORE:,} of 0.5.", "",
        "For comparison, the percentile bootstrap of the plain error (kind `shift`, uniform confidences):", "",
        "| rows | true 0.01 | true 0.03 | true 0.1 |", "|---|---|---|---|", *before,
    ]) + "\n"  # fmt: skip


def main() -> None:
    """Measure, write the page; exit code 1 if a share is not between LEAST and MOST."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE)
    out = parser.parse_args().out
    found = [lines_of(kind) for kind in KINDS]
    shares = [share for _, some in found for share in some]
    value("intervals that hold the truth, a cell each", "share", shares)
    out.write_text(page([line for lines, _ in found for line in lines], shares), encoding="utf-8")
    if not (LEAST <= min(shares) and max(shares) <= MOST):
        sys.exit(f"error: intervals hold the truth in {min(shares):.1%} to {max(shares):.1%} of splits")


if __name__ == "__main__":
    main()
