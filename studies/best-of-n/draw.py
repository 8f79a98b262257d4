"""Study best-of-n: gains of proxy and gold over KL, best-of-n beside what was trained, as a table and a picture.

Run by `ajuste study best-of-n`. Writes docs/measured/best-of-n.svg and docs/measured/best-of-n.md.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

POINTS, EVALUATED, OUT = Path("artifacts/studies/best-of-n"), Path("artifacts/evaluated"), Path("docs/measured")
ROWS = "rows/encoding.json"
TRAINED = {"rejection": "rejection sampling", "ppo": "PPO", "dpo": "DPO"}
LOOK = {"rejection": ("#cc6677", "s"), "ppo": ("#332288", "^"), "dpo": ("#ddaa33", "D")}  # told apart by all eyes
BEST = "#228833"


def figures(curve: dict, trained: dict[str, dict]) -> list[dict]:
    """A row of the table each: name, KL, its bound (best-of-n alone), gains of proxy and gold."""
    rows = [
        {"name": f"best of {point['n']}", "kl": point["kl"], "bound": point["kl_bound"], "proxy": point["proxy_gain"],
         "gold": point["gold_gain"]}
        for point in curve["points"]
    ]  # fmt: skip
    return rows + [
        {"name": TRAINED[method], "kl": one["kl"], "bound": None, "proxy": one["proxy"]["difference"],
         "gold": one["gold"]["difference"]}
        for method, one in trained.items()
    ]  # fmt: skip


def draw(curve: dict, trained: dict[str, dict], path: Path) -> None:
    """Two pictures over KL: what each has gained in proxy and in gold, with 95 % intervals."""
    matplotlib.rcParams.update({"svg.hashsalt": "best-of-n", "font.size": 11})
    figure, both = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axes, judge in zip(both, ("proxy", "gold"), strict=True):
        points = [(point["kl"]["value"], point[f"{judge}_gain"]) for point in curve["points"]]
        _with_interval(axes, points, color=BEST, marker="o", linestyle="-", label="best of n")
        for point in curve["points"]:
            place = (point["kl"]["value"], point[f"{judge}_gain"]["value"])
            axes.annotate(str(point["n"]), place, xytext=(4, -12), textcoords="offset points", fontsize=9)
        for method, one in trained.items():
            colour, marker = LOOK[method]
            _with_interval(axes, [(one["kl"]["value"], one[judge]["difference"])], color=colour, marker=marker,
                           linestyle="none", label=TRAINED[method])  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel("KL to the SFT model (nats a response)")
        axes.set_ylabel(f"{judge}, gain over the SFT model")
        axes.grid(alpha=0.3)
    both[0].legend()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _with_interval(axes, points: list[tuple[float, dict]], **look: object) -> None:
    x, gains = [place for place, _ in points], [gain for _, gain in points]
    y = [gain["value"] for gain in gains]
    error = [[abs(gain["value"] - gain[bound]) for gain in gains] for bound in ("low", "high")]
    axes.errorbar(x, y, yerr=error, capsize=3, **look)


def table(rows: list[dict]) -> str:
    """The figures as Markdown."""
    lines = ["| | KL, nats a response | its bound | proxy | gold |", "|---|---:|---:|---|---|"]
    for row in rows:
        bound = "" if row["bound"] is None else f"{row['bound']:.2f}"
        gains = [f"{g['value']:+.3f} ({g['low']:+.3f} to {g['high']:+.3f})" for g in (row["proxy"], row["gold"])]
        lines.append(f"| {row['name']} | {row['kl']['value']:.2f} | {bound} | {' | '.join(gains)} |")
    return "\n".join(lines)


def sentence(curve: dict) -> str:
    """What the intervals support and no more."""
    points = curve["points"]
    last, sure = points[-1], [point["n"] for point in points if point["gold_gain"]["low"] > 0]
    found = f"The best of {sure[0]} or more has a higher gold" if sure else "No n has a gold that is surely higher"
    found += " (interval above 0)" if sure else ""
    peak = max(points, key=lambda point: point["gold_gain"]["value"])
    if peak["gold_gain"]["low"] > last["gold_gain"]["high"]:
        found += f"; past n = {peak['n']} gold falls while the proxy rises: there the proxy is wrong"
    gain = last["gold_gain"]
    return f"{found}. The best of {last['n']} gains {gain['value']:+.3f} of gold at {last['kl']['value']:.2f} nats."


def main() -> None:
    curve, rows = (json.loads((POINTS / name).read_text(encoding="utf-8")) for name in ("curve.json", ROWS))
    trained = {
        method: json.loads((EVALUATED / method / f"{method}.json").read_text(encoding="utf-8")) for method in TRAINED
    }
    learnt = {split: found["rows"] for split, found in rows["splits"].items()}
    samples = sum(found["samples"] for found in rows["splits"].values())
    prompts = trained["rejection"]["prompts"]
    OUT.mkdir(parents=True, exist_ok=True)
    draw(curve, trained, OUT / "best-of-n.svg")
    text = f"""# Best-of-n and rejection sampling

Gains over the SFT model (95 % bootstrap over prompts, paired). Best of n: {curve["samples"]} samples of the SFT model
to each of {curve["prompts"]} test prompts, every n estimated from all of them; KL measured from the samples, beside its
bound ln n - (n - 1)/n. What was trained: one answer to each of {prompts} test prompts, KL of the whole distributions.
Rejection sampling drew {samples:,} samples, {rows["n"]} to each of {learnt["train"]} training prompts and
{learnt["validation"]} of validation, and learnt the best of each.
Made by `ajuste study best-of-n`.

{table(figures(curve, trained))}

**What it supports:** {sentence(curve)}

![Gains over KL](best-of-n.svg)
"""
    (OUT / "best-of-n.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
