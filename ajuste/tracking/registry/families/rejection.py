"""Assistants by rejection sampling, from artifacts/*/rejection: each made from the SFT version that its tag
`base_version` names, which drew n answers to every prompt and was trained on the best. Study best-of-n makes them.

Rank, gate and comparison are those of every policy (policies.py). Its loss on validation is of the best answers there.
"""

from __future__ import annotations

from pathlib import Path

from ajuste.tracking.registry.families.policies import GOLD, KL, RESULTS, Policy, described
from ajuste.tracking.runs import facts


class Rejection(Policy):
    """What rejection sampling says beyond the other policies: its budget."""

    def own_tags(self, card: dict, whole: bool) -> dict[str, object]:
        return {**super().own_tags(card, whole), "n": card["n"], "samples": card["samples"]}

    def what(self, tags: dict) -> str:
        return f"{self.strategies[self.method]}, the best of {tags['n']}: {int(tags['samples']):,} samples drawn"

    def findings(self) -> list[tuple[str, str, str]]:
        result = self.result()
        if result:
            return self.outcome(result)
        card = facts.read_json(Path("artifacts/adapters") / self.method / "ajuste.json")
        return [("unknown", f"{self.title}: better", "Not evaluated yet.")] if card else []


REJECTION = Rejection(
    **described("rejection", "rejection sampling"),
    strategies={"rejection": "Rejection sampling: a LoRA on the merged SFT model, trained on its own best answers"},
    results=("rejection.json", *RESULTS),
    validation={**GOLD, "loss": ("validation loss", ".4f"), **KL},
)
