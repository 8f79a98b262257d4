"""Study filters: what was removed, what the model says of people with and without it, and what it costs.

Run by `ajuste study filters`. Writes docs/measured/filters.md.
"""

import json
from pathlib import Path

import numpy as np

from ajuste.learning.statistics import metrics

POINTS, OUT = Path("artifacts/studies/filters"), Path("docs/measured")
NAMES = {
    "base": "untrained",
    "clean": "ordinary rows",
    "planted": "ordinary rows and personal data",
    "filtered": "the same, filtered",
}
BOOTSTRAP, SEED = 1000, 0


def compare(points: dict[str, dict]) -> list[dict]:
    """Of each point: rows, held-out loss, its paired difference to `clean`, and what it says of the people."""
    tokens = np.array([count for _, count in points["base"]["held_out"]], dtype=float)
    counts = metrics.resamples(len(tokens), BOOTSTRAP, SEED)
    sums = {name: np.array([nll for nll, _ in point["held_out"]]) for name, point in points.items()}
    found = []
    for name, point in points.items():
        said = sum(one["said"] for one in point["people"])
        found.append({
            "name": name, "rows": point["trained_rows"], "tokens": point["trained_tokens"],
            "loss": metrics.estimate(sums[name], tokens, counts),
            "difference": metrics.estimate(sums[name] - sums["clean"], tokens, counts),
            "said": said, "people": len(point["people"]),
            "interval": metrics.wilson_interval(said, len(point["people"])),
            "nll": sum(one["nll"] for one in point["people"]) / sum(one["tokens"] for one in point["people"]),
        })  # fmt: skip
    return found


def table(found: list[dict]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| trained on | rows | tokens | held-out loss | difference to ordinary rows | says the personal data | "
        "loss of the rows with personal data |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for row in found:
        low, high = row["interval"]
        gap = row["difference"]
        difference = "" if row["name"] == "clean" else f"{gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
        lines.append(
            f"| {NAMES[row['name']]} | {row['rows']:,} | {row['tokens']:,} | {row['loss']['value']:.3f} | {difference} "
            f"| {row['said']} of {row['people']} ({low:.2f} to {high:.2f}) | {row['nll']:.2f} |"
        )
    return "\n".join(lines)


def removed(point: dict) -> str:
    """What the filter took out of the training rows, by kind."""
    whose = point["removed"]
    kinds = sorted({kind for counts in whose.values() for kind in counts} - {"rows"})
    lines = ["| found | planted rows removed | ordinary rows removed |", "|---|---:|---:|"]
    for kind in [*kinds, "rows"]:
        name = "**rows in all**" if kind == "rows" else f"`{kind}`"
        lines.append(f"| {name} | {whose['planted'].get(kind, 0)} | {whose['ordinary'].get(kind, 0)} |")
    return "\n".join(lines)


def sentence(found: list[dict]) -> str:
    """What the figures support and no more."""
    planted, filtered = (next(one for one in found if one["name"] == name) for name in ("planted", "filtered"))
    gap = filtered["difference"]
    apart = "an interval that excludes 0" if gap["low"] > 0 or gap["high"] < 0 else "an interval that holds 0"
    side = "above" if gap["value"] > 0 else "below"
    return (
        f"trained on their rows, the model says the personal data of {planted['said']} of {planted['people']} people "
        f"when it is asked; after filtering, of {filtered['said']}. The held-out loss after filtering is "
        f"{abs(gap['value']):.3f} nats {side} that of the ordinary rows, with {apart}."
    )


def main() -> None:
    points = {name: json.loads((POINTS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
    found = compare(points)
    planted_rows = points["planted"]["trained_rows"] - points["clean"]["trained_rows"]
    OUT.mkdir(parents=True, exist_ok=True)
    text = f"""# What filtering the training rows does

{found[0]["people"]} people who do not exist have one piece of personal data each (e-mail address, telephone number,
card, IBAN, identity number), in a row that asks for it and answers with it, {planted_rows // found[0]["people"]} times
in training. Asked afterwards, greedily: does the answer hold it, character for character? 95 % Wilson intervals. Loss:
nats a response token on {len(points["base"]["held_out"])} held-out ordinary rows, differences with 95 % bootstrap
intervals over rows, paired. One seed. Made by `ajuste study filters`.

{table(found)}

**What it supports:** {sentence(found)}

## What was removed, and why

{removed(points["filtered"])}

A row may have several kinds. The people's data has the forms and check digits that the filter knows: the table says
that nothing of these forms is left, not that nothing personal is. Ordinary rows that left hold such a form too, right
or wrong. What each kind means: [filters.md](../filters.md).
"""
    (OUT / "filters.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
