"""Study rules: pass rate before and after GRPO with verifiable rewards, one row a seed, as a table.

Run by `ajuste study rules`. Writes docs/measured/rules.md.
"""

import json
from pathlib import Path

from ajuste.core.params import read_yaml

STUDY, POINTS, OUT = Path("studies/rules"), Path("artifacts/studies/rules"), Path("docs/measured/rules.md")


def interval(estimate: dict, sign: str = "") -> str:
    return "{value:{s}.3f} ({low:{s}.3f} to {high:{s}.3f})".format(**estimate, s=sign)


def table(points: list[dict]) -> str:
    """One row a seed."""
    lines = [
        "| seed | passed before | after | difference | at least, topics held together | KL, nats a response | groups without variance | alarms |",  # noqa: E501
        "|---:|---|---|---|---:|---:|---:|---:|",
    ]
    for p in points:
        cells = [
            str(p["seed"]), interval(p["passed"]["before"]), interval(p["passed"]["after"]),
            interval(p["passed"]["difference"], "+"), f"{p['at_least']:+.3f}", f"{p['kl']:.2f}",
            f"{p['flat_groups']:.0%}", str(p["alarms"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kinds(points: list[dict]) -> str:
    """One row a kind of prompt, means over the seeds."""
    lines = ["| kind | before | after |", "|---|---:|---:|"]
    for kind in points[0]["kinds"]:
        means = [sum(p["kinds"][kind][name] for p in points) / len(points) for name in ("before", "after")]
        lines.append(f"| {kind} | {means[0]:.2f} | {means[1]:.2f} |")
    return "\n".join(lines)


def sentence(points: list[dict]) -> str:
    """What the intervals support and no more."""
    risen, fallen = (sum(test(p["passed"]["difference"]) for p in points) for test in
                     (lambda d: d["low"] > 0, lambda d: d["high"] < 0))  # fmt: skip
    return (f"The pass rate rose with an interval that excludes 0 for {risen} of {len(points)} seeds"
            + (f" and fell for {fallen}." if fallen else "."))  # fmt: skip


def main() -> None:
    seeds = read_yaml(STUDY / "params.yaml")["seeds"]
    points = [json.loads((POINTS / f"{seed}.json").read_text(encoding="utf-8")) for seed in seeds]
    first = points[0]
    OUT.write_text(
        "# Reinforcement learning from verifiable rewards\n\n"
        f"`ajuste study rules`: GRPO from the SFT model, {first['updates']} updates, paid by rules that a program "
        f"checks; no reward model. Measured on\n{first['prompts']} prompts about {first['topics']} topics that were "
        f"never trained on (95 %, paired bootstrap over prompts).\n{sentence(points)}\n\n{table(points)}\n\n"
        f"By kind of prompt, means over the seeds:\n\n{kinds(points)}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
