"""Stage `evaluate_instruct`: the base and the instruction-tuned model on the same held-out rows and prompts.

    held-out     loss = -sum log p(y_t | y_<t, x) / tokens over the test split's response tokens; perplexity exp(loss);
                 difference = tuned - base, paired, so below 0 is better
    references   greedy answers to test prompts against their references: exact match, ROUGE-1 and ROUGE-L
    rules        instructions whose answer a program can check: share of prompts with every rule kept
                 (these three as ajuste/judging/assistant.py measures any assistant)
    reviews      the lecture's comparison: reviews that the classifier labels are put to the tuned model as a question,
                 and it answers the label that it finds likelier; difference = assistant - classifier, paired

Intervals are 95 % percentile bootstrap intervals over rows, drawn whole, the same draws for both models; of the rules,
which are few, Wilson intervals. Seconds a row go to .state by phases, since a clock never enters an out.

Writes instruct.json, rows.parquet (row_id, tokens, sums of -log p), answers.jsonl (id, prompt, base, instruct) and
references.jsonl. Nothing is chosen by these numbers. Run it: `dvc repro evaluate_instruct`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.judging import assistant
from ajuste.judging.prompts import ReviewPrompt, read_prompts, read_review_prompt
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.learning.text.choices import log_likelihoods
from ajuste.models import classifier, decoder
from ajuste.rows.encoded.conversations import read_conversations
from ajuste.rows.encoded.labelled import read_labels

Phase = Callable[[str], AbstractContextManager]


class InstructConfig(assistant.MeasureConfig):
    """Section `evaluate.instruct`."""

    reviews: int = Field(ge=1, description="Test reviews that assistant and classifier both label.")


@dataclass(frozen=True)
class Reviews:
    """What the comparison with the classifier reads: a merged classifier, the texts, and the ids of its test rows."""

    classifier: Path
    validated: Path
    encoded: Path


def evaluate_instruct(
    config: InstructConfig, compute: Compute, model: Path, base: Path, encoded: Path, prompts: Path, reviews: Reviews,
    out: Path, phase: Phase = nullcontext,
) -> dict:  # fmt: skip
    """Compare the model folder with its base and return instruct.json's content.

    phase: times a part of the work by name. Raises UsageError for a folder that is no model or a missing input.
    """
    seed_everything(compute.seed, compute.threads)
    asked, review_prompt = read_prompts(prompts), read_review_prompt(prompts)
    rows = assistant.lowest(read_conversations(encoded, "test"), config.rows)
    seen, judged = {}, None
    for name in ("base", "instruct"):
        net, tokenizer = _load(name, model, base, compute, getattr(torch, config.dtype))
        with phase(name):
            seen[name] = assistant.see(net, tokenizer, rows, asked, config)
        if name == "instruct":
            judged = _reviews(net, tokenizer, review_prompt, reviews, config, compute, phase)
    references = rows.table["reference"].to_pylist()[: config.references]
    report = {
        "held_out": assistant.held_out({name: s.losses for name, s in seen.items()}, config.bootstrap, compute.seed),
        "references": {name: assistant.means(assistant.reference_scores(s.references, references), config.bootstrap,
                                             compute.seed) for name, s in seen.items()},
        "rules": {name: assistant.rules_report(asked, assistant.rules_kept(asked, s.prompts))
                  for name, s in seen.items()},
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
    return assistant.ready(net, compute.torch_device()), tokenizer


# --- the lecture's comparison ---------------------------------------------------------------------------------------


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
