"""Study data-size: the lecture's "few data" against "more data" as a picture and a table.

Run by `ajuste study data-size`. The points of all rows are the default run's own results.
Writes docs/measured/data-size.svg and docs/measured/data-size.md.
"""

import json
from pathlib import Path

import matplotlib
import pyarrow.parquet as pq

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

POINTS, ARTIFACTS, OUT = Path("artifacts/studies/data-size"), Path("artifacts"), Path("docs/measured")
NAMES = {"frozen": "feature extraction", "full": "full fine-tuning", "lora": "LoRA"}
COLOURS = {"frozen": "#4477aa", "full": "#cc6677", "lora": "#228833"}  # told apart by colour-blind eyes too


def read_points() -> dict[str, list[dict]]:
    """strategy -> its points by rows, that of the default run last."""
    points = [json.loads(path.read_text(encoding="utf-8")) for path in POINTS.glob("*.json")]
    trained = pq.read_metadata(ARTIFACTS / "encoded/reviews/train.parquet").num_rows
    for name in NAMES:
        whole = json.loads((ARTIFACTS / f"evaluated/classify/{name}.json").read_text(encoding="utf-8"))
        points.append({"rows": trained, "strategy": name, "accuracy": whole["accuracy"], "test_rows": whole["rows"]})
    return {name: sorted((p for p in points if p["strategy"] == name), key=lambda p: p["rows"]) for name in NAMES}


def draw(points: dict[str, list[dict]], path: Path) -> None:
    """Accuracy over training rows with 95 % intervals; the same bytes for the same points."""
    matplotlib.rcParams.update({"svg.hashsalt": "data-size", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for shift, (strategy, series) in zip((0.96, 1.0, 1.04), points.items(), strict=True):
        rows = [p["rows"] * shift for p in series]  # side by side, so that the bars can be told apart
        value, low, high = ([p["accuracy"][key] for p in series] for key in ("value", "low", "high"))
        bars = [[v - x for v, x in zip(value, low, strict=True)], [x - v for v, x in zip(value, high, strict=True)]]
        axes.errorbar(rows, value, yerr=bars, label=NAMES[strategy], color=COLOURS[strategy], marker="o", capsize=3)
    ticks = [p["rows"] for p in points["frozen"]]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training rows", ylabel="accuracy on the test rows (95 % interval)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def table(points: dict[str, list[dict]]) -> str:
    """The points as Markdown."""
    lines = ["| training rows | " + " | ".join(NAMES.values()) + " |", "|---:|" + "---|" * len(NAMES)]
    for row in zip(*points.values(), strict=True):
        cells = [
            f"{p['accuracy']['value']:.3f} ({p['accuracy']['low']:.3f} to {p['accuracy']['high']:.3f})" for p in row
        ]
        lines.append(f"| {row[0]['rows']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    points = read_points()
    OUT.mkdir(parents=True, exist_ok=True)
    draw(points, OUT / "data-size.svg")
    text = f"""# Few data, more data

Accuracy on the {points["frozen"][0]["test_rows"]} test rows after training on the rows of the lowest ids,
with 95 % bootstrap intervals over the test rows; one seed. Made by `ajuste study data-size`.

{table(points)}

![Accuracy over training rows](data-size.svg)
"""
    (OUT / "data-size.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
