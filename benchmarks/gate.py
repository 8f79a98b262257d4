"""How often does the gate promote a challenger that is no better, and how long does one wait that is?

    OMP_NUM_THREADS=1 python -m benchmarks.gate          # some minutes; writes docs/measured/gate.md

Simulated, with the gate's own bound and levels (ajuste/learning/statistics/paired.py,
ajuste/judging/verdicts/budget.py), paired by row.

    right or wrong   row i is right with probability p_i, drawn from a Beta distribution, for each model on its own;
                     rho = var(p) / (mean (1 - mean)) is the correlation of two models
    better by g      p_i + g (1 - p_i) / (1 - mean)
    loss of a row    T tokens, log-normal; loss per token = row's own + each model's noise, normal or with heavy tails
                     (Student's t, 3 degrees of freedom)
    a tail of losses 1 - an exponential variable: mostly a little better, seldom much worse; skewness -2
    a year           one champion, one set of test rows, a new challenger every night, the budget of policy.yaml

A promotion needs the lower bound over the champion above 0. The rule over the base comes on top and can only refuse.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from ajuste.core.params import read_yaml
from ajuste.judging.verdicts import budget
from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.learning.statistics.paired import LEVEL, bounds, gain, least_ratio
from benchmarks.results import value

PAGE = Path("docs/measured/gate.md")
ACCURACY = 0.80
GAINS = (0.01, 0.02, 0.05)
AGREEMENTS = (0.3, 0.6, 0.9)
SIZES = (30, 240, 888, 3296)  # the least, reward pairs of a wide margin, the default run's test rows, preset full's
LOSS_ROWS = (30, 102, 500)
YEAR_ROWS = (888, 5000)
NIGHTS = 365
DELAYS = 200
MOST = 0.04  # of equal models promoted by one look
HEAVY = 3  # degrees of freedom


def chances(rows: int, rho: float, better: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(probability of each row to be right [rows], the same of a model that is `better` by so much)."""
    both = 1 / rho - 1
    p = rng.beta(ACCURACY * both, (1 - ACCURACY) * both, rows)
    return p, p + better * (1 - p) / (1 - ACCURACY)


def right_or_wrong(rows: int, rho: float, better: float, number: int, rng: np.random.Generator) -> np.ndarray:
    """d [rows, number]: comparisons of two models on rows of their own."""
    p, above = chances(rows * number, rho, better, rng)
    found = (rng.random(rows * number) < above).astype(float) - (rng.random(rows * number) < p)
    return found.reshape(rows, number)


def token_losses(
    rows: int, better: float, number: int, heavy: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(d, tokens), each [rows, number]: sums of losses, the champion's minus the challenger's. Rows of many tokens vary
    less, down to a part that is the row's own."""
    tokens = np.clip(np.round(rng.lognormal(4.8, 0.8, (rows, number))), 4, 512)
    noise = rng.standard_t(HEAVY, (2, rows, number)) / np.sqrt(HEAVY) if heavy else rng.normal(size=(2, rows, number))
    return tokens * (better + 0.2 * np.sqrt(0.2 + 1 / tokens) * (noise[0] - noise[1])), tokens


def accuracy(rows: int, rho: float, better: float = 0.0, seed: int = 0, number: int = 4000, level: float = LEVEL
             ) -> float:  # fmt: skip
    """Share of comparisons that promote a challenger whose accuracy is `better` above the champion's."""
    d = right_or_wrong(rows, rho, better, number, np.random.default_rng(seed))
    return float((bounds(d, np.ones((rows, 1)), level)[2] > 0).mean())


def loss(rows: int, better: float = 0.0, seed: int = 0, number: int = 4000, heavy: bool = False, level: float = LEVEL
         ) -> float:  # fmt: skip
    """The same of a challenger whose loss is `better` nats a token below the champion's."""
    d, tokens = token_losses(rows, better, number, heavy, np.random.default_rng(seed))
    return float((bounds(d, tokens, level)[2] > 0).mean())


def tail(rows: int, seed: int = 0, number: int = 4000, level: float = LEVEL) -> float:
    """The same of one that is mostly a little better and seldom much worse, and so no better."""
    d = 1 - np.random.default_rng(seed).exponential(size=(rows, number))
    return float((bounds(d, np.ones((rows, 1)), level)[2] > 0).mean())


def nights(
    rows: int, rho: float, better: float, years: int, seed: int, levels: np.ndarray | None = None
) -> np.ndarray:
    """The night of the first promotion in each of `years` years [years]; NIGHTS + 1 where there was none. levels: of
    each night [NIGHTS]; None: those of policy.yaml."""
    if levels is None:
        asked = read_yaml(Path("policy.yaml"))["gate"]
        levels = np.array([budget.level(asked["error_budget"], asked["looks"], k) for k in range(1, NIGHTS + 1)])
    rng, found = np.random.default_rng(seed), np.full(years, NIGHTS + 1)
    for year in range(years):
        p, above = chances(rows, rho, better, rng)
        champion = rng.random(rows) < p
        sides = np.stack([~champion, champion], axis=1).astype(np.float32)
        for start in range(0, NIGHTS, 73):
            right = rng.random((73, rows), dtype=np.float32) < above.astype(np.float32)
            more, kept = (right.astype(np.float32) @ sides).T.astype(np.float64)
            passed = _lower(more, champion.sum() - kept, rows, levels[start : start + 73]) > 0
            if passed.any():
                found[year] = start + int(np.argmax(passed)) + 1
                break
    return found


def _lower(more: np.ndarray, fewer: np.ndarray, rows: int, level: np.ndarray) -> np.ndarray:
    """The gate's bound from counts [K]: rows that only the challenger has right, and rows that only the champion has.

    tests/learning/test_comparison.py compares it with `bounds` on the rows themselves.
    """
    first, second = (more - fewer) / rows, (more + fewer) / rows  # mean of d and of d^3, of d^2
    variance = second - first**2
    third = first - 3 * first * second + 2 * first**3
    skew = np.divide(third, variance**1.5, out=np.zeros_like(third), where=variance > 0)
    error = np.sqrt(variance / (rows - 1))
    return first - error * least_ratio(skew, rows, np.full_like(first, rows), level)


def share(part: float, number: int) -> str:
    low, high = wilson_interval(round(part * number), number)
    return f"{part:.1%} ({low:.1%} to {high:.1%})"


def one_look(number: int) -> tuple[list[str], float]:
    """The table of comparisons without a true difference, and its worst share."""
    lines = ["| results | rows | correlation of the two models | promoted at 2.5 % | at the first look's level |",
             "|---|---|---|---|---|"]  # fmt: skip
    asked = read_yaml(Path("policy.yaml"))["gate"]
    first = budget.level(asked["error_budget"], asked["looks"], 1)
    cases = [("right or wrong", rows, rho, lambda level, rows=rows, rho=rho: accuracy(
        rows, rho, number=number, level=level)) for rows in SIZES for rho in AGREEMENTS]  # fmt: skip
    cases += [(f"token losses{', heavy tails' if heavy else ''}", rows, "",
               lambda level, rows=rows, heavy=heavy: loss(rows, number=number, heavy=heavy, level=level))
              for rows in LOSS_ROWS for heavy in (False, True)]
    cases += [("a tail of losses", rows, "", lambda level, rows=rows: tail(rows, number=number, level=level))
              for rows in LOSS_ROWS]  # fmt: skip
    worst = 0.0
    for name, rows, rho, of in cases:
        found = of(LEVEL)
        worst = max(worst, found)
        lines.append(f"| {name} | {rows:,} | {rho} | {share(found, number)} | {share(of(first), number)} |")
        print(lines[-1], flush=True)
    return lines, worst


def whole_years(years: int) -> tuple[list[str], float]:
    """The tables of false promotions and of delays, and the worst share of years with a false one."""
    lines = ["| test rows | correlation | years with a false promotion |", "|---|---|---|"]
    worst = 0.0
    for rows in YEAR_ROWS:
        for rho in AGREEMENTS:
            false = float((nights(rows, rho, 0.0, years, 1) <= NIGHTS).mean())
            worst = max(worst, false)
            lines.append(f"| {rows:,} | {rho} | {share(false, years)} |")
            print(lines[-1], flush=True)
    lines += ["", "| test rows | correlation | true gain | one look sees 80 % of gains from | median nights | "
              "90 of 100 within | never in a year |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for rows in YEAR_ROWS:
        for rho in AGREEMENTS:
            seen = gain(right_or_wrong(rows, rho, 0.02, 1, np.random.default_rng(2))[:, 0]).seen
            for better in GAINS:
                waited = nights(rows, rho, better, DELAYS, 3)
                middle, most = (int(np.quantile(waited, q, method="higher")) for q in (0.5, 0.9))
                text = [f"{n:,}" if n <= NIGHTS else "over a year" for n in (middle, most)]
                lines.append(f"| {rows:,} | {rho} | {100 * better:g} points | {100 * seen:.1f} points | {text[0]} | "
                             f"{text[1]} | {(waited > NIGHTS).mean():.0%} |")
                print(lines[-1], flush=True)
    return lines, worst


def main() -> None:
    """Measure, write the page; exit code 1 if a look promotes over 4 % of what is no better, or over 5 % of years."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE)
    out = parser.parse_args().out
    number, years = 4000, 1000
    looks, worst = one_look(number)
    table, false = whole_years(years)
    asked = read_yaml(Path("policy.yaml"))["gate"]
    value("equal challengers promoted in one look, worst line", "share", [worst])
    value("years with a false promotion, worst line", "share", [false])
    out.write_text("\n".join([
        "# How often the gate errs, measured", "",
        "Written by `python -m benchmarks.gate`; what is simulated stands at the top of that file. In brackets the "
        "95 % Wilson interval of a share.", "",
        "## One look, no true difference: promoted", "", f"{number:,} comparisons a line.", "", *looks, "",
        f"The worst line at 2.5 % is {worst:.1%}; at most {MOST:.0%} is asked.", "",
        f"## A year of nights at the same test rows, budget {asked['error_budget']:.0%}", "",
        f"{NIGHTS} challengers, one a night, beside one champion; {years:,} years a line, {DELAYS} for a delay. "
        "Right or wrong, accuracy 0.80.", "", *table, "",
        f"The worst line of the first table is {false:.1%}; at most {asked['error_budget']:.0%} is asked. Where a "
        "small gain is not seen in a year the champion stays: more test rows, not a looser gate, are the cure.",
    ]) + "\n", encoding="utf-8")  # fmt: skip
    if worst > MOST or false > asked["error_budget"]:
        sys.exit(f"error: the gate promotes {worst:.1%} of equal challengers in one look, in {false:.1%} of years any")


if __name__ == "__main__":
    main()
