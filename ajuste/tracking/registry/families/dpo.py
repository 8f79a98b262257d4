"""Assistants by DPO, from artifacts/*/dpo: each made from the SFT version that its tag `base_version` names.

Rank, gate and comparison are those of every policy (policies.py). What DPO alone has: its policy is a reward model too,
whose order of held-out pairs is measured (evaluation.json), and the preferred responses may have become less likely.
"""

from __future__ import annotations

from pathlib import Path

from ajuste.tracking.registry.families.family import Tags, number, said
from ajuste.tracking.registry.families.policies import GOLD, KL, RESULTS, Policy, described
from ajuste.tracking.runs import facts

FAR = 1.5  # of two mean ratings: pairs that people tell apart
FIGURES = {"accuracy": ("validation pairs in order", ".3f"), "margin": ("validation margin", ".3f"),
           "displacement": ("validation displacement, nats a token", "+.3f")}


class Dpo(Policy):
    """What DPO says beyond the other policies."""

    def page(self, tags: Tags) -> list[str]:
        ordered, lost = (number(tags, f"validation.{name}", ".3f") for name in ("accuracy", "displacement"))
        found = (f"- implicit reward on validation: {ordered} of the pairs in order; preferred responses lost {lost} "
                 "nats a token")
        first, *others = super().page(tags)
        return [first, found, *others]

    def findings(self) -> list[tuple[str, str, str]]:
        folder, result = Path("artifacts/adapters/dpo"), self.result()
        card, test = facts.read_json(folder / "ajuste.json"), facts.read_json(folder / "evaluation.json").get("test")
        if not (result or card):
            return []
        asked = [_ordered(test)] if test else []
        if card:
            asked.append(_displaced(card["validation"]["displacement"], self.alarms()))
        return asked + (self.outcome(result) if result else [("unknown", "DPO: better", "Not evaluated yet.")])


def _ordered(test: dict) -> tuple[str, str, str]:
    """Does the implicit reward order pairs that it never saw as people do?"""
    far = next((row for row in test["by_margin"] if row["margin"] == FAR and row["accuracy"]), test)
    accuracy, what = far["accuracy"], f" of those {FAR} or more apart" if far is not test else ""
    state = "good" if accuracy["low"] > 0.5 else "warn"
    return state, "DPO: learnt the order", f"Held-out pairs in the order of people: {said(accuracy)}{what}."


def _displaced(lost: float, alarms: list[dict]) -> tuple[str, str, str]:
    """Have the preferred responses themselves become less likely?"""
    words = f"They {'lost' if lost > 0 else 'gained'} {abs(lost):.2f} nats a token on validation."
    if alarms:
        return "warn", "DPO: preferred responses stay likely", f"{words} ALARM: {alarms[-1]['said']}."
    return "good", "DPO: preferred responses stay likely", words


DPO = Dpo(
    **described("dpo", "DPO"),
    strategies={"dpo": "DPO: a LoRA on the merged SFT model, trained on the comparisons themselves"},
    results=("dpo.json", *RESULTS, "evaluation.json", "pairs.parquet"),
    validation={**GOLD, **FIGURES, **KL},
)  # fmt: skip
