"""How often does the gate promote a challenger that is no better, and how often does it see one that is?

    OMP_NUM_THREADS=1 python -m benchmarks.gate          # about a minute; writes docs/measured/gate.md

Simulated, with the gate's own rule (ajuste/learning/statistics/paired.py): 1,000 comparisons a line, paired by row.

    right or wrong   both models are right on a row with a chance of their own; agreement rho is the correlation of the
                     two, so share that differs = pa (1 - pb) + pb (1 - pa) - 2 rho sqrt(pa (1-pa) pb (1-pb))
    loss of a row    T tokens, log-normal; hard rows are hard for both: loss per token = row's own + each model's noise

A promotion needs the lower bound over the champion above 0. The rule over the base comes on top and can only refuse.
"""

import sys
from pathlib import Path

import numpy as np

from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.learning.statistics.paired import RESAMPLES, lower_bounds

PAGE = Path("docs/measured/gate.md")
COMPARISONS = 1000
ACCURACY = 0.80
GAINS = (0.01, 0.02, 0.05)
SIZES = (240, 888, 3296)  # reward pairs of a wide margin, the default run's test rows, those of preset full
AGREEMENTS = (0.3, 0.6, 0.9)
LOSS_ROWS = (40, 102, 500)


def right_or_wrong(rows: int, rho: float, better: float, rng: np.random.Generator) -> np.ndarray:
    """d_i = a_i - b_i [rows] of two models with accuracy ACCURACY + better and ACCURACY, correlated by rho."""
    pa, pb = ACCURACY + better, ACCURACY
    both = pa * pb + rho * np.sqrt(pa * (1 - pa) * pb * (1 - pb))
    both = min(both, pa, pb)  # an agreement that two unequal models cannot have is the largest that they can
    cells = np.array([both, pa - both, pb - both, 1 - pa - pb + both])
    return np.array([0.0, 1.0, -1.0, 0.0])[rng.choice(4, size=rows, p=cells / cells.sum())]


def token_losses(rows: int, noise: float, better: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(d [rows], tokens [rows]): sums of losses, the champion's minus the challenger's. noise: nats a token of a row of
    one token; rows of many tokens vary less, down to a part that is the row's own."""
    tokens = np.clip(np.round(rng.lognormal(4.8, 0.8, rows)), 4, 512)
    spread = noise * np.sqrt(0.2 + 1 / tokens)
    return tokens * (better + rng.normal(0, spread) - rng.normal(0, spread)), tokens


def accuracy(rows: int, rho: float, better: float = 0.0, seed: int = 0, comparisons: int = COMPARISONS) -> int:
    """Promotions of challengers whose accuracy is `better` above the champion's."""
    rng = np.random.default_rng(seed)
    d = np.stack([right_or_wrong(rows, rho, better, rng) for _ in range(comparisons)], axis=1)
    return int((lower_bounds(d, np.ones((rows, 1))) > 0).sum())


def loss(rows: int, better: float = 0.0, seed: int = 0, comparisons: int = COMPARISONS) -> int:
    """Promotions of challengers whose loss is `better` nats a token below the champion's."""
    rng = np.random.default_rng(seed)
    drawn = [token_losses(rows, 0.2, better, rng) for _ in range(comparisons)]
    d, tokens = (np.stack(column, axis=1) for column in zip(*drawn, strict=True))
    return int((lower_bounds(d, tokens) > 0).sum())


def share(found: int) -> str:
    low, high = wilson_interval(found, COMPARISONS)
    return f"{found / COMPARISONS:.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    """Measure, write the page; exit code 1 if the gate promotes more than 4 % of what is no better."""
    lines = [
        "# How often the gate errs, measured", "",
        f"{COMPARISONS:,} simulated comparisons a line, each a paired bootstrap of {RESAMPLES:,} resamples, one-sided "
        "97.5 %; in brackets the 95 % Wilson interval of the share. Written by `python -m benchmarks.gate`; what is "
        "simulated stands at the top of that file.", "",
        "## No true difference: promoted", "", "| results | rows | correlation of the two models | promoted |",
        "|---|---|---|---|",
    ]  # fmt: skip
    worst = 0
    for rows in SIZES:
        for rho in AGREEMENTS:
            found = accuracy(rows, rho)
            worst = max(worst, found)
            lines.append(f"| right or wrong | {rows:,} | {rho} | {share(found)} |")
            print(lines[-1], flush=True)
    for rows in LOSS_ROWS:
        found = loss(rows)
        worst = max(worst, found)
        lines.append(f"| token losses | {rows:,} | | {share(found)} |")
        print(lines[-1], flush=True)
    lines += ["", f"The worst line is {worst / COMPARISONS:.1%}; at most 4 % is asked.", "",
              "## A challenger that is better: promoted", "",
              "| rows | correlation | " + " | ".join(f"{100 * g:g} points better" for g in GAINS) + " |",
              "|---|---|" + "---|" * len(GAINS)]  # fmt: skip
    for rows in SIZES:
        for rho in AGREEMENTS:
            cells = " | ".join(f"{accuracy(rows, rho, better) / COMPARISONS:.0%}" for better in GAINS)
            lines.append(f"| {rows:,} | {rho} | {cells} |")
            print(lines[-1], flush=True)
    lines += ["", "| rows of token losses | 0.01 nats better | 0.02 nats better | 0.05 nats better |",
              "|---|---|---|---|"]  # fmt: skip
    for rows in LOSS_ROWS:
        cells = " | ".join(f"{loss(rows, better) / COMPARISONS:.0%}" for better in GAINS)
        lines.append(f"| {rows:,} | {cells} |")
        print(lines[-1], flush=True)
    lines += ["", "Where a small gain is mostly not seen the champion stays. More test rows, not a looser gate, are "
              "the cure."]  # fmt: skip
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if worst > 0.04 * COMPARISONS:
        sys.exit(f"error: the gate promotes {worst / COMPARISONS:.1%} of challengers that are no better")


if __name__ == "__main__":
    main()
