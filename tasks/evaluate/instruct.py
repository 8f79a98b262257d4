"""Stage `evaluate_instruct`: the base and the instruction-tuned model on the same held-out rows and prompts.

    held-out     loss = -sum log p(y_t | y_<t, x) / tokens over the test split's response tokens; perplexity exp(loss);
                 difference = tuned - base, paired, so below 0 is better
    references   greedy answers to test prompts against their references: exact match (SQuAD's, after normalising)
                 and the F-measures of ROUGE-1 and ROUGE-L (torchmetrics)
    rules        instructions whose answer a program can check (ajuste/judging/rules.py): share of prompts with every
                 rule kept
    reviews      the lecture's comparison: reviews that the classifier labels are put to the tuned model as a question,
                 and it answers the label that it finds likelier; difference = assistant - classifier, paired

Intervals are 95 % percentile bootstrap intervals over rows, drawn whole, the same draws for both models; of the rules,
which are few, Wilson intervals. Seconds a row go to .state by phases, since a clock never enters an out.

Writes instruct.json, rows.parquet (row_id, tokens, sums of -log p), answers.jsonl (id, prompt, base, instruct) and
references.jsonl. Nothing is chosen by these numbers. Run it: `dvc repro evaluate_instruct`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded, write_json, write_lines
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.judging.prompts import Prompt, ReviewPrompt, read_prompts, read_review_prompt
from ajuste.judging.rules import check
from ajuste.judging.spans import exact_match
from ajuste.learning.layers import ragged
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.learning.text.choices import log_likelihoods
from ajuste.learning.text.generate import generate
from ajuste.models import classifier, decoder
from ajuste.rows.encoded.conversations import read_conversations
from ajuste.rows.encoded.labelled import Rows, read_labels

ROUGE = ("rouge1", "rougeL")
Phase = Callable[[str], AbstractContextManager]


class InstructConfig(Config):
    """Section `evaluate.instruct`."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the evaluation, the same for both models.")
    bootstrap: int = Field(ge=100, description="Resamples of the rows behind each interval.")
    rows: int | None = Field(ge=1, description="Test rows of the held-out loss, the lowest row ids; null: all.")
    references: int = Field(ge=1, description="Test rows whose answers are compared with their references.")
    reviews: int = Field(ge=1, description="Test reviews that assistant and classifier both label.")
    max_new_tokens: int = Field(ge=1, description="Of an answer.")
    batch_rows: int = Field(ge=1, description="Prompts answered at once.")
    batch_tokens: int = Field(ge=1, description="Tokens that pass through a model at once elsewhere.")


@dataclass(frozen=True)
class Reviews:
    """What the comparison with the classifier reads: a merged classifier, the texts, and the ids of its test rows."""

    classifier: Path
    validated: Path
    encoded: Path


@dataclass
class Seen:
    """What one model said: losses [N, 2] (sum of -log p, tokens), and its answers by prompt."""

    losses: np.ndarray
    prompts: list[str]
    references: list[str]


def evaluate_instruct(
    config: InstructConfig, compute: Compute, model: Path, base: Path, encoded: Path, prompts: Path, reviews: Reviews,
    out: Path, phase: Phase = nullcontext,
) -> dict:  # fmt: skip
    """Compare the model folder with its base and return instruct.json's content.

    phase: times a part of the work by name. Raises UsageError for a folder that is no model or a missing input.
    """
    seed_everything(compute.seed, compute.threads)
    asked, review_prompt = read_prompts(prompts), read_review_prompt(prompts)
    rows = _lowest(read_conversations(encoded, "test"), config.rows)
    seen, judged = {}, None
    for name in ("base", "instruct"):
        net, tokenizer = _load(name, model, base, compute, getattr(torch, config.dtype))
        with phase(name):
            seen[name] = _see(net, tokenizer, rows, asked, config)
        if name == "instruct":
            judged = _reviews(net, tokenizer, review_prompt, reviews, config, compute, phase)
    references = rows.table["reference"].to_pylist()[: config.references]
    report = {
        "held_out": _held_out(seen, config.bootstrap, compute.seed),
        "references": {name: _references(s.references, references, config, compute.seed) for name, s in seen.items()},
        "rules": {name: _rules(asked, s.prompts) for name, s in seen.items()},
        "reviews": judged,
    }
    out.mkdir(parents=True, exist_ok=True)
    losses = {name: pa.array(rounded(s.losses[:, 0].tolist()), pa.float64()) for name, s in seen.items()}
    pq.write_table(
        pa.table({"row_id": rows.table["row_id"], "tokens": seen["base"].losses[:, 1].astype(np.int32), **losses}),
        out / "rows.parquet",
    )
    said = zip(asked, *(s.prompts for s in seen.values()), strict=True)
    write_lines(out / "answers.jsonl", [
        {"id": p.id, "prompt": p.prompt, "base": before, "instruct": after} for p, before, after in said
    ])  # fmt: skip
    ids = rows.table["row_id"].to_pylist()[: config.references]
    said = zip(ids, references, *(s.references for s in seen.values()), strict=True)
    write_lines(out / "references.jsonl", [
        {"row_id": i, "reference": wanted, "base": before, "instruct": after} for i, wanted, before, after in said
    ])  # fmt: skip
    write_json(out / "instruct.json", report, sort_keys=True)
    return {**report, "tokens": 2 * sum(rows.lengths())}


def _load(name: str, model: Path, base: Path, compute: Compute, dtype) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    try:
        net, tokenizer = decoder.load_base(base, dtype) if name == "base" else decoder.load(model, base, dtype)[:2]
    except ValueError as error:
        raise UsageError(str(error)) from None
    with suppress(ValueError):  # an architecture that takes no ragged batches gets padded ones
        ragged.attach(net)
    return net.to(compute.torch_device()), tokenizer


def _lowest(rows: Rows, number: int | None) -> Rows:
    """The rows of the lowest row ids, in their order."""
    order = np.array(pc.sort_indices(rows.table["row_id"]))[:number]
    return Rows([rows.ids[i] for i in order], [rows.labels[i] for i in order], rows.table.take(order))


# --- one model ------------------------------------------------------------------------------------------------------


def _see(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Rows, asked: list[Prompt], config: InstructConfig
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


def _reviews(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: ReviewPrompt, reviews: Reviews,
    config: InstructConfig, compute: Compute, phase: Phase,
) -> dict | None:  # fmt: skip
    """Accuracy of both on the same reviews; None if the classifier does not label whole texts."""
    try:
        judge, judge_tokenizer, card = classifier.load(reviews.classifier)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if card["task"] != "sequence":
        return None
    if card["labels"] != (names := read_labels(reviews.encoded)):
        raise UsageError(f"{reviews.classifier} was trained for labels {card['labels']}, {reviews.encoded} has {names}")
    texts, labels = _read_reviews(reviews, config.reviews)
    with phase("reviews_instruct"):
        choices = [chat.encode(tokenizer, label.capitalize(), control=False) for label in card["labels"]]
        questions = [
            (chat.prompt_ids(tokenizer, [{"role": "user", "content": prompt.ask(card["labels"], text)}]), choices)
            for text in texts
        ]
        found = log_likelihoods(model, questions, tokenizer.pad_token_id, config.batch_tokens)
        said = np.array(found).argmax(axis=1)
    with phase("reviews_classifier"):
        judge = judge.to(compute.torch_device())
        judged = classifier.predict(judge, judge_tokenizer, card, texts).argmax(dim=1).numpy()
    counts = metrics.resamples(len(texts), config.bootstrap, compute.seed)
    right = {"instruct": (said == labels).astype(float), "classifier": (judged == labels).astype(float)}
    ones = np.ones(len(texts))
    return {
        "rows": len(texts),
        **{name: {"accuracy": metrics.estimate(hits, ones, counts)} for name, hits in right.items()},
        "difference": metrics.estimate(right["instruct"] - right["classifier"], ones, counts),
    }


def _read_reviews(reviews: Reviews, number: int) -> tuple[list[str], np.ndarray]:
    """Texts and label numbers of the classifier's own test rows with the lowest ids."""
    tables = []
    for folder, columns in ((reviews.encoded, ["row_id"]), (reviews.validated, ["row_id", "text", "label"])):
        path = folder / "test.parquet"
        if not path.is_file():
            raise UsageError(f"{path} is missing: run the stage that makes it")
        tables.append(pq.read_table(path, columns=columns))
    encoded, validated = tables
    table = validated.filter(pc.is_in(validated["row_id"], encoded["row_id"])).sort_by("row_id")[:number]
    if not table.num_rows:
        raise DataError(f"{reviews.validated} and {reviews.encoded} share no test row: encode the reviews again")
    return table["text"].to_pylist(), table["label"].to_numpy()


# --- both models ----------------------------------------------------------------------------------------------------


def _held_out(seen: dict[str, Seen], bootstrap: int, seed: int) -> dict:
    """Loss and perplexity of each model, and the paired difference of the losses."""
    tokens = seen["base"].losses[:, 1]
    counts = metrics.resamples(len(tokens), bootstrap, seed)
    report: dict = {}
    for name, s in seen.items():
        loss = metrics.estimate(s.losses[:, 0], tokens, counts)
        report[name] = {
            "loss": loss, "perplexity": math.exp(min(loss["value"], 700.0)), "rows": len(tokens),
            "tokens": int(tokens.sum()),
        }  # fmt: skip
    sums = seen["instruct"].losses[:, 0] - seen["base"].losses[:, 0]
    return {**report, "difference": metrics.estimate(sums, tokens, counts)}


def _references(answers: list[str], references: list[str], config: InstructConfig, seed: int) -> dict:
    """Means over the rows of exact match and ROUGE."""
    from torchmetrics.functional.text import rouge_score  # takes seconds

    scores: dict[str, list[float]] = {"exact_match": [], **{name: [] for name in ROUGE}}
    for answer, reference in zip(answers, references, strict=True):
        scores["exact_match"].append(exact_match(answer, [reference]))
        found = rouge_score(answer, reference, rouge_keys=ROUGE)
        for name in ROUGE:
            scores[name].append(float(found[f"{name}_fmeasure"]))
    counts, ones = metrics.resamples(len(answers), config.bootstrap, seed), np.ones(len(answers))
    return {name: metrics.estimate(np.array(values), ones, counts) for name, values in scores.items()}


def _rules(asked: list[Prompt], answers: list[str]) -> dict:
    """Share of prompts whose answer keeps every rule, and for each kind of rule how often it is kept."""
    passed, kinds = [], {}
    for prompt, answer in zip(asked, answers, strict=True):
        if not prompt.rules:
            continue
        kept = check(prompt.rules, answer)
        passed.append(all(kept))
        for rule, holds in zip(prompt.rules, kept, strict=True):
            kind = kinds.setdefault(rule.rule, {"kept": 0, "asked": 0})
            kind["kept"] += holds
            kind["asked"] += 1
    low, high = metrics.wilson_interval(sum(passed), len(passed))
    value = sum(passed) / len(passed) if passed else math.nan
    return {"passed": {"value": value, "low": low, "high": high}, "prompts": len(passed), "kinds": kinds}


def main() -> None:
    with start("evaluate_instruct", InstructConfig) as stage:
        artifacts = Path("artifacts")
        reviews = Reviews(
            artifacts / "merged/classify_full", artifacts / "validated/reviews", artifacts / "encoded/reviews"
        )
        report = evaluate_instruct(
            stage.config, stage.compute, artifacts / "merged/instruct", artifacts / "base/decoder",
            artifacts / "encoded/instructions", Path("sources/prompts"), reviews, artifacts / "evaluated/instruct",
            stage.phase,
        )  # fmt: skip
        stage.count(tokens=report["tokens"])
        losses = {name: report["held_out"][name]["loss"]["value"] for name in ("base", "instruct")}
        gap = report["held_out"]["difference"]
        print(
            f"held-out loss {losses['base']:.4f} -> {losses['instruct']:.4f}, "
            f"difference {gap['value']:.4f} ({gap['low']:.4f} to {gap['high']:.4f})"
        )


if __name__ == "__main__":
    main()
