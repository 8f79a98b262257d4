"""What one assistant is measured by, whoever asks: held-out loss, answers to fixed prompts, answers with references.

    losses       sum of -log p(y_t | y_<t, x) and tokens of each held-out row; loss = sums / tokens
    rules        instructions whose answer a program can check: every rule of a prompt kept, or not
    references   greedy answers against their references: exact match (SQuAD's, after normalising) and the F-measures of
                 ROUGE-1 and ROUGE-L (torchmetrics)

Two models are measured on the same rows and prompts, so their difference is paired. Intervals are 95 % percentile
bootstrap intervals over rows, drawn whole, the same draws for both; of the rules, which are few, Wilson's.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import UsageError
from ajuste.core.params import Config
from ajuste.judging.answers import exact_match
from ajuste.judging.prompts import Prompt
from ajuste.judging.rules import check
from ajuste.learning.layers import ragged
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.models.probe.texts import supervised
from ajuste.rows.encoded.labelled import Rows

ROUGE = ("rouge1", "rougeL")


class MeasureConfig(Config):
    """How an assistant is measured."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the evaluation, the same for both models.")
    bootstrap: int = Field(ge=100, description="Resamples of the rows behind each interval.")
    rows: int | None = Field(ge=1, description="Test rows of the held-out loss, the lowest row ids; null: all.")
    references: int = Field(ge=1, description="Test rows whose answers are compared with their references.")
    max_new_tokens: int = Field(ge=1, description="Of an answer.")
    batch_rows: int = Field(ge=1, description="Prompts answered at once.")
    batch_tokens: int = Field(ge=1, description="Tokens that pass through a model at once elsewhere.")


@dataclass
class Seen:
    """What one model said: losses [N, 2] (sum of -log p, tokens), and its answers by prompt."""

    losses: np.ndarray
    prompts: list[str]
    references: list[str]


def lowest(rows: Rows, number: int | None) -> Rows:
    """The rows of the lowest row ids, in their order."""
    order = np.array(pc.sort_indices(rows.table["row_id"]))[:number]
    return Rows([rows.ids[i] for i in order], [rows.labels[i] for i in order], rows.table.take(order))


def ready(net: nn.Module, device: str) -> nn.Module:
    """The model on its device, with ragged batches where they are exact for its architecture; else they are padded.

    Raises UsageError where those are wrong too.
    """
    net = net.to(device)
    try:
        supervised(net)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return net


def see(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Rows, asked: list[Prompt], config: MeasureConfig
) -> Seen:
    """Losses of all rows, and greedy answers to the prompts and to the first rows."""
    losses = ragged.row_losses(model, list(rows), config.batch_tokens).numpy()
    starts = [chat.prompt_ids(tokenizer, [{"role": "user", "content": prompt.prompt}]) for prompt in asked]
    prompts = rows.table["prompt_tokens"].to_pylist()[: config.references]
    starts += [rows.ids[i][:tokens].tolist() for i, tokens in enumerate(prompts)]
    answers = generate(
        model, starts, config.max_new_tokens, chat.end_of_turn(tokenizer), tokenizer.pad_token_id, config.batch_rows
    )
    texts = [chat.response_text(tokenizer, answer).strip() for answer in answers]
    return Seen(losses, texts[: len(asked)], texts[len(asked) :])


def held_out(losses: dict[str, np.ndarray], bootstrap: int, seed: int) -> dict:
    """Loss and perplexity of two models, the one before first, and the paired difference, after - before.

    losses: [N, 2] each, on the same rows.
    """
    before, after = losses
    tokens = losses[before][:, 1]
    counts = metrics.resamples(len(tokens), bootstrap, seed)
    report: dict = {}
    for name, found in losses.items():
        loss = metrics.estimate(found[:, 0], tokens, counts)
        report[name] = {
            "loss": loss, "perplexity": math.exp(min(loss["value"], 700.0)), "rows": len(tokens),
            "tokens": int(tokens.sum()),
        }  # fmt: skip
    sums = losses[after][:, 0] - losses[before][:, 0]
    return {**report, "difference": metrics.estimate(sums, tokens, counts)}


def reference_scores(answers: list[str], references: list[str]) -> dict[str, list[float]]:
    """exact_match, rouge1 and rougeL of each answer."""
    from torchmetrics.functional.text import rouge_score  # takes seconds

    scores: dict[str, list[float]] = {"exact_match": [], **{name: [] for name in ROUGE}}
    for answer, reference in zip(answers, references, strict=True):
        scores["exact_match"].append(exact_match(answer, [reference]))
        found = rouge_score(answer, reference, rouge_keys=ROUGE)
        for name in ROUGE:
            scores[name].append(float(found[f"{name}_fmeasure"]))
    return scores


def means(scores: dict[str, list[float]], bootstrap: int, seed: int) -> dict:
    """The mean of each score over the rows, with its interval."""
    some = next(iter(scores.values()))
    counts, ones = metrics.resamples(len(some), bootstrap, seed), np.ones(len(some))
    return {name: metrics.estimate(np.array(values), ones, counts) for name, values in scores.items()}


def rules_kept(asked: list[Prompt], answers: list[str]) -> list[list[bool] | None]:
    """Of each prompt, which of its rules the answer keeps; None of a prompt without rules."""
    return [check(prompt.rules, answer) if prompt.rules else None
            for prompt, answer in zip(asked, answers, strict=True)]  # fmt: skip


def rules_report(asked: list[Prompt], kept: list[list[bool] | None]) -> dict:
    """Share of prompts whose answer keeps every rule, and for each kind of rule how often it is kept."""
    passed, kinds = [], {}
    for prompt, holding in zip(asked, kept, strict=True):
        if holding is None:
            continue
        passed.append(all(holding))
        for rule, holds in zip(prompt.rules, holding, strict=True):
            kind = kinds.setdefault(rule.rule, {"kept": 0, "asked": 0})
            kind["kept"] += holds
            kind["asked"] += 1
    low, high = metrics.wilson_interval(sum(passed), len(passed))
    value = sum(passed) / len(passed) if passed else math.nan
    return {"passed": {"value": value, "low": low, "high": high}, "prompts": len(passed), "kinds": kinds}
