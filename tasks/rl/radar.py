"""Radar for reward hacking: what the policy of this moment answers to the validation prompts, judged twice.

    proxy       the score that training raises: a reward model's, a rule's
    gold        P(positive) of a classifier that the reward model never saw, on the text of prefill and response; for
                prompts that such a judge has nothing to say of, there is none
    kl          sum of log pi - log pi_ref over a response's tokens, in nats
    *_gain      the same prompts' difference to update 0, paired

Over sqrt(kl) the proxy goes on rising while gold, past its peak, falls (Gao et al., 2023): there the policy has learnt
the reward model's faults. Every look draws with the same random numbers. Intervals are 95 % percentile bootstrap over
prompts; `rows` keeps each prompt's numbers, for the gains.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ajuste.learning.rl import kl, rollout
from ajuste.learning.statistics.metrics import estimate, resamples
from ajuste.learning.text import chat
from ajuste.models.one_base import OneBase
from tasks.rl.score import Score

RESAMPLES = 1000
SHOWN = 8  # prompts whose responses are kept as samples
JUDGES = ("proxy", "gold")


@dataclass
class Radar:
    """`look` is what the loop calls. gold(texts) -> [N], or None; prefills: the beginning of each response's text."""

    one: OneBase
    score: Score
    ids: list[str]
    prompts: list[list[int]]
    prefills: list[str]
    tokenizer: PreTrainedTokenizerBase
    gold: Callable[[list[str]], Tensor] | None
    max_new_tokens: int
    temperature: float
    micro_rows: int
    seed: int

    @torch.no_grad()
    def look(self, update: int, first: dict | None) -> tuple[dict, list[dict]]:
        """(row of radar.json, samples) of the policy as it is. first: the row of update 0, None at update 0."""
        stop = chat.end_of_turn(self.tokenizer)
        generator = torch.Generator().manual_seed(self.seed)
        numbers = {"proxy": [], "gold": [], "kl": [], "length": [], "ended": []}
        texts: list[str] = []
        for start in range(0, len(self.prompts), self.micro_rows):
            prompts = self.prompts[start : start + self.micro_rows]
            sampled = rollout.sample(
                self.one, prompts, self.max_new_tokens, stop, 0, self.temperature, generator
            )
            responses, mask = sampled.responses, sampled.mask
            log_probs, _, _ = self.one.policy_and_values(prompts, responses, mask, self.temperature)
            reference = self.one.reference(prompts, responses, mask, self.temperature)
            numbers["proxy"] += self.score(prompts, responses, mask).tolist()
            numbers["kl"] += kl.response_kl(log_probs, reference, mask.to(log_probs.device)).tolist()
            numbers["length"] += mask.sum(1).tolist()
            numbers["ended"] += sampled.ended.float().tolist()
            for row, keep in zip(responses, mask, strict=True):
                texts.append(chat.response_text(self.tokenizer, [t for t in row[keep].tolist() if t not in stop]))
        if self.gold is None:
            del numbers["gold"]
        else:
            numbers["gold"] = self.gold([a + b for a, b in zip(self.prefills, texts, strict=True)]).tolist()
        judges = [name for name in JUDGES if name in numbers]
        row = self._row(update, numbers, first)
        samples = [
            {"update": update, "id": self.ids[i], "prefill": self.prefills[i], "response": texts[i],
             **{name: numbers[name][i] for name in (*judges, "kl")}}
            for i in range(min(SHOWN, len(texts)))
        ]
        return row, samples

    def _row(self, update: int, numbers: dict[str, list[float]], first: dict | None) -> dict:
        counts = resamples(len(self.prompts), RESAMPLES, self.seed)
        ones = np.ones(len(self.prompts))

        def interval(values: np.ndarray) -> dict[str, float]:
            return estimate(values, ones, counts)

        found = {name: np.array(values) for name, values in numbers.items()}
        means = {name: float(found[name].mean()) for name in ("kl", "length", "ended")}
        row = {"update": update, **means, "sqrt_kl": max(0.0, means["kl"]) ** 0.5}
        judges = [name for name in JUDGES if name in numbers]
        for name in judges:
            row[name] = interval(found[name])
            before = np.array(first["rows"][name]) if first else found[name]
            row[f"{name}_gain"] = interval(found[name] - before)
        return {**row, "rows": {name: numbers[name] for name in (*judges, "kl")}}


def published(radar: list[dict], kept: int) -> list[dict]:
    """radar.json: the rows without each prompt's numbers, and whether that update's weights are the ones kept."""
    return [
        {**{key: value for key, value in row.items() if key != "rows"}, "kept": row["update"] == kept} for row in radar
    ]
