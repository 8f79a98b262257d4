"""Assistants by PPO, from artifacts/*/ppo: each made from the SFT version that its tag `base_version` names.

Rank, gate and comparison are those of every policy (policies.py). PPO raises the held-out loss on purpose, a little.
"""

from __future__ import annotations

from pathlib import Path

from ajuste.tracking.registry.families.family import said
from ajuste.tracking.registry.families.policies import GOLD, KL, RESULTS, Policy, described
from ajuste.tracking.runs import facts


class Ppo(Policy):
    """What the report asks of PPO."""

    def findings(self) -> list[tuple[str, str, str]]:
        folder, result = Path("artifacts/adapters/ppo"), self.result()
        if not (result or facts.read_json(folder / "ajuste.json") or (folder / "history.jsonl").is_file()):
            return []
        asked = [("unknown", "PPO: better", "Not evaluated yet.")]
        if result:
            asked = [_learnt(result), *self.outcome(result)]
        if alarms := self.alarms():
            asked.append(("warn", "PPO: alarms", f"{len(alarms)}: the run went back and stopped there."))
        return asked


def _learnt(result: dict) -> tuple[str, str, str]:
    """Did it learn what it was paid for?"""
    proxy = result["proxy"]["difference"]
    state = "good" if proxy["low"] > 0 else "warn" if proxy["high"] > 0 else "bad"
    return (state, "PPO: learnt what it was paid for",
            f"Proxy reward {said(proxy, '+.3f')} at {result['kl']['value']:.1f} nats a response.")


PPO = Ppo(
    **described("ppo", "PPO"),
    strategies={"ppo": "PPO: a LoRA on the merged SFT model, trained against a reward model with a price on KL"},
    results=("ppo.json", *RESULTS, "radar.json", "samples.jsonl"),
    validation={**GOLD, "proxy_gain": ("validation proxy gain", "+.3f"), **KL},
)  # fmt: skip
