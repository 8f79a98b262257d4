"""Study rlaif: judge cards and the reward models of 0, 50 and 100 % AI labels, as tables.

Run by `ajuste study rlaif`. Writes metrics/rlaif.json and docs/measured/rlaif.md. A gain over `human` is paired: the
same test pairs, resampled together.
"""

import json
from pathlib import Path

import numpy as np

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from ajuste.learning.statistics import metrics

POINTS, METRICS, OUT = Path("artifacts/studies/rlaif"), Path("metrics"), Path("docs/measured")
HUMAN, BOOTSTRAP, SEED = "human", 1000, 0


def read(path: Path) -> dict:
    """JSON of a step. Raises UsageError that names a missing file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{path} is missing or no JSON: run `ajuste study rlaif`") from None


def gathered(folder: Path) -> dict:
    """metrics/rlaif.json: cards and pairs by judge, points with their paired gain over `human`, the revised answers."""
    cards = {path.parent.name: read(path) for path in sorted(folder.glob("cards/*/card.json"))}
    pairs = {name: read(folder / "pairs" / name / "pairs.json") for name in cards}
    points = {path.stem: read(path) for path in sorted(folder.glob("points/*.json"))}
    if HUMAN not in points:
        raise UsageError(f"{folder / 'points/human.json'} is missing: run `ajuste study rlaif`")
    human = {row["row_id"]: row["right"] for row in points[HUMAN]["rows"]}
    for point in points.values():
        rows = point.pop("rows", None)
        if rows is not None and point["name"] != HUMAN:
            gains = np.array([row["right"] - human[row["row_id"]] for row in rows])
            point["gain"] = metrics.estimate(
                gains, np.ones(len(gains)), metrics.resamples(len(gains), BOOTSTRAP, SEED)
            )
    return {"judges": cards, "pairs": pairs, "points": points, "revised": read(folder / "revised/critique.json")}


# --- the page ---------------------------------------------------------------------------------------------------------


def interval(found: dict | None, signed: bool = False) -> str:
    """0.856 (0.821 to 0.886)"""
    if found is None:
        return "-"
    form = "{:+.3f}" if signed else "{:.3f}"
    value, low, high = (form.format(found[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def cards_table(cards: dict[str, dict]) -> str:
    """A row a judge, and people themselves last."""
    lines = [
        "| judge | agrees with people | of the ceiling | alpha | order changes nothing | P(A) - 1/2 | longer: judge - "
        "people | tokens a pair | labels |",
        "|---|---|---|---:|---|---|---|---:|---|",
    ]
    for name, card in cards.items():
        words = "refused" if card["refused"] else "admitted"
        cells = [
            interval(card["agreement"]), interval(card["share_of_ceiling"]), number((card["alpha"]["judge"] or {}).get(
                "value")), interval(card["swap_consistency"]), interval(card["position_bias"], signed=True),
            interval(card["length_bias"]["difference"], signed=True), f"{card['cost']['tokens_a_pair']:.0f}", words,
        ]  # fmt: skip
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    card = next(iter(cards.values()))
    alpha = number(card["alpha"]["one_against_rest"])
    lines.append(f"| one person | {interval(card['one_against_rest'])} | 1 | {alpha} | - | - | - | - | - |")
    return "\n".join(lines)


def points_table(points: dict[str, dict]) -> str:
    """A row a trained point, human first; what refused judges left out is said below."""
    lines = ["| labels | human rows | AI rows | test pairs in people's order | against human labels |",
             "|---|---:|---:|---|---|"]  # fmt: skip
    for name in sorted((name for name, point in points.items() if "refused" not in point), key=_place):
        point = points[name]
        label = "people alone" if name == HUMAN else f"{point['share']:.0%} by `{point['judge']}`"
        gain = interval(point.get("gain"), signed=True)
        lines.append(f"| {label} | {point['human']} | {point['ai']} | {interval(point['accuracy'])} | {gain} |")
    return "\n".join(lines)


def _place(name: str) -> tuple:
    judge, _, percent = name.rpartition("-")
    return (name != HUMAN, judge, int(percent) if percent.isdigit() else 0)


def sentence(points: dict[str, dict]) -> str:
    """What the intervals support and no more."""
    trained = {name: point for name, point in points.items() if "gain" in point}
    if not trained:
        return "No judge was admitted, so nothing was trained on AI labels."
    worse = [name for name in sorted(trained, key=_place) if trained[name]["gain"]["high"] < 0]
    better = [name for name in sorted(trained, key=_place) if trained[name]["gain"]["low"] > 0]
    return (
        f"{len(worse)} of {len(trained)} trainings with AI labels are worse than people's labels at the same number of "
        f"rows{_named(worse)}, {len(better)} better{_named(better)}, by paired intervals that exclude 0."
    )


def _named(names: list[str]) -> str:
    return f" ({', '.join(f'`{name}`' for name in names)})" if names else ""


def page(found: dict) -> str:
    """docs/measured/rlaif.md."""
    cards, pairs, points, revised = (found[key] for key in ("judges", "pairs", "points", "revised"))
    some = next(iter(cards.values()))
    refused = [f"- `{name}`: {'; '.join(card['refused'])}." for name, card in cards.items() if card["refused"]]
    kept = [
        f"`{name}` {one['kept']} of {one['asked']} ({one['inconsistent']} inconsistent, {one['ties']} ties)"
        for name, one in pairs.items() if "refused" not in one
    ]  # fmt: skip
    least = "Labels are admitted above {min_share_of_ceiling:g} of one person's agreement with the rest, from a swap"
    least = f"{least.format(**some['rule'])} consistency of {some['rule']['min_swap_consistency']:g} on."
    left_out = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in revised["left_out"].items())
    return f"""# Judges in place of people

Made by `ajuste study rlaif`; how and why: [rlaif.md](../rlaif.md). Intervals: 95 % bootstrap over pairs; one seed.

## Judge cards

{some['pairs']} validation pairs. {least}

{cards_table(cards)}

{"Refused:" if refused else "No judge was refused."}

{chr(10).join(refused)}

## Reward models on AI labels

Each with the same number of training comparisons; weights chosen on people's validation pairs, measured on
{points[HUMAN]['pairs']} test pairs of people. Of the policy's own samples, labels kept: {'; '.join(kept) or 'none'}.

{points_table(points)}

**What it supports:** {sentence(points)}

## Critique and revise

{revised['kept']} of {revised['prompts']} answers were revised, {revised['unchanged']} of them without a change; left
out: {left_out}.
"""


def main() -> None:
    found = gathered(POINTS)
    METRICS.mkdir(exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(METRICS / "rlaif.json", found)
    (OUT / "rlaif.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
