"""Study mitigations: what each way learnt against what it forgot, as a table and a picture.

Run by `ajuste study mitigations`. Writes docs/measured/forgetting.svg and docs/measured/forgetting.md.
"""

import json
from pathlib import Path

import matplotlib

from ajuste.core.params import read_yaml

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

STUDY, POINTS, OUT = Path("studies/mitigations"), Path("artifacts/studies/mitigations"), Path("docs/measured")
BEFORE = Path("artifacts/evaluated/forgetting_base/scores.json")
NAMES = {
    "full": "full (aggressive rate)",
    "small_rate": "full (small rate)",
    "few_passes": "full (one pass)",
    "replay": "full (replay of general text)",
    "l2": "full (L2 towards W0)",
    "lora_r4": "LoRA (r = 4)",
    "lora_r32": "LoRA (r = 32)",
}
COLOURS = ("#cc6677", "#ddcc77", "#999933", "#4477aa", "#aa4499", "#88ccee", "#228833")
TEXT = "c4"  # the control set of general text: perplexity, and the picture's second axis


def draw(points: dict[str, dict], path: Path) -> None:
    """Learning to the right, forgetting upwards, with 95 % intervals; the same bytes for the same points."""
    matplotlib.rcParams.update({"svg.hashsalt": "mitigations", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for colour, (name, point) in zip(COLOURS, points.items(), strict=True):
        gap, lost = point["held_out"]["difference"], point["forgetting"]["F"][TEXT]
        x, left, right = -gap["value"], gap["high"] - gap["value"], gap["value"] - gap["low"]
        y, below, above = lost["value"], lost["value"] - lost["low"], lost["high"] - lost["value"]
        axes.errorbar(
            x, y, xerr=[[left], [right]], yerr=[[below], [above]], marker="o", capsize=3, linestyle="none",
            color=colour, label=NAMES[name],
        )  # fmt: skip
    axes.plot(0, 0, marker="*", markersize=12, color="black", linestyle="none", label="base")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("learnt: held-out loss below the base's (nats a token)")
    axes.set_ylabel("forgotten: F of general text (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def interval(estimate: dict, digits: int = 2) -> str:
    return "{value:.{d}f} ({low:.{d}f} to {high:.{d}f})".format(**estimate, d=digits)


def table(points: dict[str, dict], settings: dict, before: dict) -> str:
    """The points as Markdown, the base first."""
    others = [name for name in before["sets"] if name != TEXT]
    head = ["", "rate", "passes", "held-out loss", "below base", f"{TEXT} perplexity", f"F {TEXT}"]
    lines = ["| " + " | ".join([*head, *(f"F {name}" for name in others)]) + " |"]
    lines.append("|---|---:|---:|---:|---|---:|" + "---|" * (1 + len(others)))
    first = next(iter(points.values()))["held_out"]["base"]["value"]
    perplexity = before["sets"][TEXT]["perplexity"]
    lines.append(f"| base | | | {first:.3f} | | {perplexity:.1f} | |" + " |" * len(others))
    for name, point in points.items():
        held, forgotten = point["held_out"], point["forgetting"]
        gap = held["difference"]
        below = {"value": -gap["value"], "low": -gap["high"], "high": -gap["low"]}
        cells = [
            NAMES[name], f"{settings[name]['lr']:g}", str(settings[name]["passes"]), f"{held['tuned']['value']:.3f}",
            interval(below), f"{forgotten['sets'][TEXT]['perplexity']:.1f}",
            *(interval(forgotten["F"][key]) for key in (TEXT, *others)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sentence(points: dict[str, dict]) -> str:
    """What the intervals support and no more: each mitigation against aggressive full fine-tuning."""
    worst = points["full"]["forgetting"]["F"][TEXT]
    less = [name for name, p in points.items() if p["forgetting"]["F"][TEXT]["high"] < worst["low"]]
    learnt = [name for name, p in points.items() if p["held_out"]["difference"]["high"] < 0]
    both = [NAMES[name] for name in points if name in less and name in learnt]
    parts = [
        f"aggressive full fine-tuning forgot {interval(worst)} nats a token of general text",
        f"{len(less)} of the {len(points) - 1} mitigations forgot less, with intervals apart "
        f"({', '.join(NAMES[name] for name in less) or 'none'})",
        f"of these, {', '.join(both) or 'none'} also learnt (held-out loss below the base's, the interval excludes 0)",
    ]
    return "; ".join(parts) + "."


def main() -> None:
    settings = read_yaml(STUDY / "params.yaml")
    points = {name: json.loads((POINTS / f"{name}.json").read_text(encoding="utf-8")) for name in settings["points"]}
    before = json.loads(BEFORE.read_text(encoding="utf-8"))
    OUT.mkdir(parents=True, exist_ok=True)
    draw(points, OUT / "forgetting.svg")
    rows = settings["rows"]["train"]
    share = settings["points"]["replay"]["replay"]
    text = f"""# What fine-tuning forgets, and what helps

The default base on {rows["alpaca"]} short instructions of the default set, trained in each of these ways, one seed.
Learnt: the loss on {points["full"]["held_out"]["rows"]} held-out instructions, nats a response token. Forgotten:
F = score before - score after on control sets that no stage trains on ({", ".join(
    f"{name}: {entry['rows']} items, {entry['metric'].replace('_', ' ')}" for name, entry in before["sets"].items()
)}). Above 0 is forgotten. Intervals: 95 % bootstrap over rows, paired with the base.
Replay: {share * rows["wiki"]:.0f} pieces of general text among the instructions. Made by `ajuste study mitigations`.

{table(points, settings["points"], before)}

**What it supports:** {sentence(points)} Accuracies of about {before["sets"]["boolq"]["rows"]} questions have wide
intervals: they show a collapse and no less.

![Learning against forgetting](forgetting.svg)
"""
    (OUT / "forgetting.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
