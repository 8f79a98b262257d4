"""Study generalisation: categories seen and unseen in training against the base, as a table and a picture.

Run by `ajuste study generalisation`. Writes docs/measured/generalisation.svg and docs/measured/generalisation.md.
"""

import json
from pathlib import Path

import matplotlib
import numpy as np

from ajuste.core.params import read_yaml
from ajuste.learning.statistics import metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

STUDY, POINTS, OUT = Path("studies/generalisation"), Path("artifacts/studies/generalisation"), Path("docs/measured")
COLOURS = {"seen": "#228833", "unseen": "#cc6677"}  # told apart by colour-blind eyes too
BOOTSTRAP, SEED = 1000, 0


def compare(points: dict[str, dict], categories: list[str]) -> list[dict]:
    """Of each category: rows, exact matches and loss of base, seen and unseen, and the paired falls of the loss."""
    found = []
    for category in categories:
        chosen = {"base": points["base"], "seen": points["all"], "unseen": points[category]}
        rows = {name: [r for r in point["rows"] if r["category"] == category] for name, point in chosen.items()}
        nll = {name: np.array([r["nll"] for r in some]) for name, some in rows.items()}
        tokens = np.array([r["tokens"] for r in rows["base"]], dtype=float)
        counts = metrics.resamples(len(tokens), BOOTSTRAP, SEED)
        found.append({
            "category": category,
            "rows": len(tokens),
            "loss": {name: metrics.estimate(sums, tokens, counts) for name, sums in nll.items()},
            "exact": {name: float(np.mean([r["exact"] for r in some])) for name, some in rows.items()},
            "fall": {n: metrics.estimate(nll["base"] - nll[n], tokens, counts) for n in ("seen", "unseen")},
        })  # fmt: skip
    return found


def draw(found: list[dict], path: Path) -> None:
    """How far the loss falls below the base's, category by category, with 95 % intervals."""
    matplotlib.rcParams.update({"svg.hashsalt": "generalisation", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for shift, name in ((-0.2, "seen"), (0.2, "unseen")):
        value, low, high = (np.array([row["fall"][name][key] for row in found]) for key in ("value", "low", "high"))
        places = np.arange(len(found)) + shift
        axes.bar(places, value, 0.36, yerr=[value - low, high - value], capsize=3, color=COLOURS[name], label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), [row["category"].replace("_", " ") for row in found])
    axes.set_ylabel("loss below the base's (nats a token)")
    axes.legend(title="category in training")
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def table(found: list[dict]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| category | rows | loss: base | trained without it | trained with it | unseen: loss below base | "
        "exact match: base | unseen | seen |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in found:
        loss, exact, fall = row["loss"], row["exact"], row["fall"]["unseen"]
        losses = " | ".join(f"{loss[name]['value']:.2f}" for name in ("base", "unseen", "seen"))
        matches = " | ".join(f"{exact[name]:.2f}" for name in ("base", "unseen", "seen"))
        interval = f"{fall['value']:.2f} ({fall['low']:.2f} to {fall['high']:.2f})"
        lines.append(f"| {row['category'].replace('_', ' ')} | {row['rows']} | {losses} | {interval} | {matches} |")
    return "\n".join(lines)


def sentence(found: list[dict]) -> str:
    """What the intervals support and no more."""
    better = [row["category"].replace("_", " ") for row in found if row["fall"]["unseen"]["low"] > 0]
    worse = [row["category"].replace("_", " ") for row in found if row["fall"]["unseen"]["high"] < 0]
    parts = [f"{len(better)} of {len(found)} categories that were never trained got a lower loss than the base's"]
    parts[0] += f" ({', '.join(better)})" if better else ""
    if worse:
        parts.append(f"{len(worse)} a higher one ({', '.join(worse)})")
    share = [row["fall"]["unseen"]["value"] / row["fall"]["seen"]["value"] for row in found]
    parts.append(f"the unseen gained {min(share):.0%} to {max(share):.0%} of what the seen gained")
    return "; ".join(parts) + "."


def main() -> None:
    categories = read_yaml(STUDY / "params.yaml")["categories"]
    points = {
        name: json.loads((POINTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("base", "all", *categories)
    }
    found = compare(points, categories)
    OUT.mkdir(parents=True, exist_ok=True)
    draw(found, OUT / "generalisation.svg")
    text = f"""# Generalisation to tasks never seen

LoRA on {points["all"]["trained_rows"]} short instructions of {len(categories)} categories, or of all but one; scored
on held-out rows of each category. Loss: nats a response token. Intervals: 95 % bootstrap over rows, paired with the
base; one seed. Exact match: the greedy answer is the reference, after SQuAD's normalising.
Made by `ajuste study generalisation`.

{table(found)}

**What it supports:** {sentence(found)} Part of it is the form of the answers (short, no explanation), which all four
categories share, and not the skill.

![Loss below the base's by category](generalisation.svg)
"""
    (OUT / "generalisation.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
