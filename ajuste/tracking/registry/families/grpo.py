"""Assistants by GRPO, from artifacts/*/grpo: each made from the SFT version that its tag `base_version` names.

Rank, gate and comparison are those of every policy (policies.py). What methods of groups have: a loss that may read 0
while they learn, so the report says whether the groups taught anything.
"""

from __future__ import annotations

from pathlib import Path

from ajuste.tracking.registry.families.family import said
from ajuste.tracking.registry.families.policies import GOLD, KL, RESULTS, Policy, described
from ajuste.tracking.runs import facts

FLAT = 0.5  # mean share of groups without variance above which most samples teach nothing


class Grouped(Policy):
    """What the report asks of methods whose groups judge themselves."""

    def findings(self) -> list[tuple[str, str, str]]:
        folder, result = Path("artifacts/adapters") / self.method, self.result()
        if not (result or facts.read_json(folder / "ajuste.json")):
            return []
        asked = [("unknown", f"{self.title}: better", "Not evaluated yet.")]
        if result:
            proxy = result["proxy"]["difference"]
            state = "good" if proxy["low"] > 0 else "warn" if proxy["high"] > 0 else "bad"
            asked = [(state, f"{self.title}: learnt what it was paid for",
                      f"Proxy reward {said(proxy, '+.3f')} at {result['kl']['value']:.1f} nats a response."),
                     *self.outcome(result)]  # fmt: skip
        if history := facts.history_rows(folder):
            asked.append(self._taught(history))
        if alarms := self.alarms():
            asked.append(("warn", f"{self.title}: alarms", f"{len(alarms)}: the run went back and stopped there."))
        return asked

    def _taught(self, history: list[dict]) -> tuple[str, str, str]:
        """Did the groups say anything? The loss does not tell: at ratio 1 it is about 0."""
        flat, norm = (sum(row[name] for row in history) / len(history) for name in ("flat_groups", "grad_norm"))
        why = f"{flat:.0%} of the groups without variance, gradient norm {norm:.2g}"
        if norm == 0:
            state, words = "bad", f"Nothing was learnt: {why}."
        elif flat > FLAT:
            state, words = "warn", f"{why}: most samples taught nothing."
        else:
            state, words = "good", f"{why}. A loss about 0 is no fault: the advantages of a group sum to 0."
        return state, f"{self.title}: groups teach", words[0].upper() + words[1:]


def grouped(method: str, title: str, words: str) -> Grouped:
    """The description of such a method; words: what it is, after its title."""
    return Grouped(
        **described(method, title),
        strategies={method: f"{title}: a LoRA on the merged SFT model, {words}"},
        results=(f"{method}.json", *RESULTS, "radar.json", "samples.jsonl"),
        validation={**GOLD, "proxy_gain": ("validation proxy gain", "+.3f"), **KL},
    )


GRPO = grouped("grpo", "GRPO", "trained on groups of its own responses, each against the group's mean")
