"""Study seeds: PPO's gain on the test prompts, one row a seed, as a table.

Run by `ajuste study seeds`. Writes docs/measured/seeds.md.
"""

import json
from pathlib import Path

from ajuste.core.params import read_yaml

STUDY, POINTS, OUT = Path("studies/seeds"), Path("artifacts/studies/seeds"), Path("docs/measured/seeds.md")


def interval(estimate: dict, digits: int) -> str:
    return "{value:+.{d}f} ({low:+.{d}f} to {high:+.{d}f})".format(**estimate, d=digits)


def table(points: list[dict]) -> str:
    """One row a seed."""
    lines = [
        "| seed | update kept | KL, nats a response | proxy | gold | distinct-2 beside SFT's | F of C4 | alarms |",
        "|---:|---:|---:|---|---|---:|---|---:|",
    ]
    for p in points:
        cells = [
            str(p["seed"]), f"{p['kept']} of {p['updates']}", f"{p['kl']['value']:.2f}",
            interval(p["proxy"]["difference"], 2), interval(p["gold"]["difference"], 3),
            f"{p['distinct2']['ratio']:.2f}", interval(p["F"]["c4"], 3), str(p["alarms"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sentence(points: list[dict]) -> str:
    """What the intervals support and no more."""
    risen = {name: sum(p[name]["difference"]["low"] > 0 for p in points) for name in ("proxy", "gold")}
    return (
        f"Against SFT the proxy rose with an interval that excludes 0 for {risen['proxy']} of {len(points)} seeds, "
        f"gold for {risen['gold']}."
    )


def main() -> None:
    seeds = read_yaml(STUDY / "params.yaml")["seeds"]
    points = [json.loads((POINTS / f"{seed}.json").read_text(encoding="utf-8")) for seed in seeds]
    OUT.write_text(
        "# PPO with other seeds\n\n"
        f"`ajuste study seeds`: {points[0]['prompts']} test prompts, difference of PPO and the SFT model that it "
        f"began from (95 %, paired).\n{sentence(points)}\n\n{table(points)}\n\n"
        "Proxy: what the reward model gives. Gold: what a judge gives that neither training saw. F = score before -\n"
        "score after, in nats a token; above 0 is forgotten. Base, reward model and prompts are those of all rows.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
