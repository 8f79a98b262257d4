"""Stages `forgetting_base` and `forgetting_<model>`: what a model knows of the control sets, and what it has forgotten.

    text     score of an item = (1/T) sum_t log p(y_t | y_<t)                       T tokens, at most `max_tokens`
             of a set = the same over all its tokens, in nats; perplexity = exp(-score)
    choice   score of an item = 1 if the right choice is the likeliest, else 0; of a set = their mean, the accuracy.
             yes/no: by log p(choice); options: by log p(choice) / characters, lm-evaluation-harness' acc_norm
    F        = score before - score after, paired: the same items, the same resamples of them. Above 0: forgotten.
             Of a text set: the rise of log-perplexity, in nats a token; of a choice set: the accuracy that was lost.

Intervals are 95 % percentile bootstrap intervals over items. Nothing is trained on these sets and nothing is chosen by
them. The multiple-choice form is that of lm-evaluation-harness (Gao et al. 2024) on fewer items, so its public
numbers compare roughly. F follows Chaudhry et al. 2018 for two stages: the best score before is the base's own.

Writes scores.json and rows.parquet (set, row_id, score, weight). Run it: `dvc repro forgetting_base`.
"""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config
from ajuste.learning.layers import ragged
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text.chat import segments
from ajuste.learning.text.choices import log_likelihoods
from ajuste.models import decoder
from ajuste.models.probe.texts import supervised
from ajuste.rows.control import Item, read_control

METRICS = {"text": "log_likelihood_per_token", "choice": "accuracy"}


class ForgettingConfig(Config):
    """Section `forgetting`, the same for every model: scores of another section would not compare."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the scores, whatever the model's own.")
    bootstrap: int = Field(ge=100, description="Resamples of the items behind each interval.")
    text_rows: int | None = Field(ge=1, description="Items of each set of texts, the lowest row ids; null: all.")
    choice_rows: int | None = Field(ge=1, description="Items of each set of questions; null: all.")
    max_tokens: int = Field(ge=16, description="Of an item. A text loses its end, a question its beginning.")
    batch_tokens: int = Field(ge=1, description="Tokens that pass through a model at once.")


def forgetting(
    config: ForgettingConfig, compute: Compute, model: Path, base: Path, control: Path, out: Path,
    before: Path | None = None,
) -> dict:  # fmt: skip
    """Score a model folder (or the base itself) on the control sets; with `before`, an earlier out, also F.

    Returns scores.json and the tokens read. Raises UsageError for a folder that is no model, an adapter of another
    base, a set that is not there, and a `before` of other items.
    """
    seed_everything(compute.seed, compute.threads)
    chosen = choose(read_control(control), config)
    dtype = getattr(torch, config.dtype)
    try:
        if model == base:
            net, tokenizer = decoder.load_base(base, dtype)
        else:
            net, tokenizer, _ = decoder.load(model, base, dtype)
        earlier = _read_before(before, chosen) if before else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    table, tokens = score(net.to(compute.torch_device()), tokenizer, chosen, config)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out / "rows.parquet")  # log-probabilities that F is computed from: not rounded
    report = summarise(table, config.bootstrap, compute.seed, earlier)
    write_json(out / "scores.json", report, sort_keys=True)
    return {**report, "tokens": tokens}


def choose(sets: dict[str, list[Item]], config: ForgettingConfig) -> dict[str, list[Item]]:
    """The first items of each set, by row id."""
    limits = {"text": config.text_rows, "choice": config.choice_rows}
    return {name: items[: limits[items[0].task]] for name, items in sets.items()}


def score(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, sets: dict[str, list[Item]], config: ForgettingConfig
) -> tuple[pa.Table, int]:
    """One row an item (set, row_id, task, score, weight), and the number of tokens read."""
    try:
        supervised(model)
    except ValueError as error:
        raise UsageError(str(error)) from None
    columns: dict[str, list] = {name: [] for name in ("set", "row_id", "task", "score", "weight")}
    read = 0
    for name, items in sets.items():
        texts, questions = ([item for item in items if item.task == task] for task in METRICS)
        for some, measure in ((texts, _score_texts), (questions, _score_choices)):
            if not some:
                continue
            scores, weights, tokens = measure(model, tokenizer, some, config)
            read += tokens
            values = ([name] * len(some), [item.row_id for item in some], [item.task for item in some], scores, weights)
            for column, new in zip(columns.values(), values, strict=True):
                column.extend(new)
    return pa.table(columns), read


def _score_texts(model, tokenizer, items: list[Item], config: ForgettingConfig) -> tuple[list, list, int]:
    """Mean log p of each text's tokens, their number, and the tokens read."""
    rows = [_ids(tokenizer, item.text)[: config.max_tokens] for item in items]
    for item, row in zip(items, rows, strict=True):
        if len(row) < 2:
            raise DataError(f"control set {item.set}: the text {item.text!r} has no two tokens")
    sums = ragged.row_losses(model, [(row, row) for row in rows], config.batch_tokens).numpy()
    return (-sums[:, 0] / sums[:, 1]).tolist(), sums[:, 1].tolist(), sum(map(len, rows))


def _score_choices(model, tokenizer, items: list[Item], config: ForgettingConfig) -> tuple[list, list, int]:
    """1.0 for each question whose right choice is the likeliest, else 0.0; weights of 1; the tokens read."""
    questions = [_question(tokenizer, item, config.max_tokens) for item in items]
    found = log_likelihoods(model, questions, tokenizer.pad_token_id, config.batch_tokens)
    scores = [float(pick(scores, item) == item.answer) for scores, item in zip(found, items, strict=True)]
    tokens = sum(len(prompt) + sum(map(len, choices)) for prompt, choices in questions)
    return scores, [1.0] * len(items), tokens


def pick(scores: list[float], item: Item) -> int:
    """The likeliest choice, by log p or by log p a character; the first of equals."""
    if item.by_length:
        scores = [score / len(choice.strip()) for score, choice in zip(scores, item.choices, strict=True)]
    return int(np.argmax(scores))


def _question(tokenizer: PreTrainedTokenizerBase, item: Item, max_tokens: int) -> tuple[list[int], list[list[int]]]:
    """Prompt and choices as ids: those of prompt and choice tokenized together, cut where the prompt ends."""
    prompt = _ids(tokenizer, item.text)
    choices = [_ids(tokenizer, item.text + choice)[len(prompt) :] for choice in item.choices]
    room = max_tokens - max(map(len, choices))
    if room < 1 or not all(choices):
        raise DataError(f"control set {item.set}: a choice of {item.choices} has no tokens or over `max_tokens`")
    return prompt[-room:], choices


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [token for ids, _ in segments(tokenizer, [{"role": "text", "content": text}]) for token in ids]


# --- the report -----------------------------------------------------------------------------------------------------


def summarise(table: pa.Table, bootstrap: int, seed: int, before: pa.Table | None = None) -> dict:
    """scores.json: each set with its interval, and F of each with `before` (the same items, scored earlier)."""
    report: dict = {"sets": {}}
    scores, weights = table["score"].to_numpy(), table["weight"].to_numpy()
    names, tasks = np.array(table["set"].to_pylist()), np.array(table["task"].to_pylist())
    for name in dict.fromkeys(names.tolist()):
        inside = names == name
        sums, sizes = scores[inside] * weights[inside], weights[inside]
        counts = metrics.resamples(len(sums), bootstrap, seed)
        task = str(tasks[inside][0])
        report["sets"][name] = {
            "task": task, "metric": METRICS[task], "rows": len(sums), **metrics.estimate(sums, sizes, counts)
        }  # fmt: skip
        if task == "text":
            report["sets"][name]["perplexity"] = math.exp(-report["sets"][name]["value"])
            report["sets"][name]["tokens"] = int(sizes.sum())
        if before is not None:
            lost = before["score"].to_numpy()[inside] * sizes - sums
            report.setdefault("F", {})[name] = metrics.estimate(lost, sizes, counts)
    return report


def _read_before(folder: Path, chosen: dict[str, list[Item]]) -> pa.Table:
    """The rows of an earlier out. Raises ValueError unless it has just the chosen items in their order."""
    path = folder / "rows.parquet"
    if not path.is_file():
        raise ValueError(f"{path} is missing: run stage `forgetting_base`")
    table = pq.read_table(path)
    found = list(zip(table["set"].to_pylist(), table["row_id"].to_pylist(), strict=True))
    if found != [(name, item.row_id) for name, items in chosen.items() for item in items]:
        raise ValueError(f"{path} was scored on other items of the control sets: run stage `forgetting_base` again")
    return table
