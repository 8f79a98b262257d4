"""Stage `gold`: a judge of sentiment that neither training of RLHF saw, to tell a better text from a fooled reward.

    log p(positive) / p(negative) of a review  =  mean over its sentences s of  w . z_s + b          z_s: frozen encoder

The reward model learns from the set `ratings`, and PPO learns from the reward model. This judge has another base (the
encoder, not the decoder), other texts (reviews of the set `reviews` from one source alone, IMDb), another label (stars
of the review's author, not ratings of readers) and no trained weight but w and b. No review trains it that shares
`ngram` words in a row with a text of `ratings`, or has a near duplicate of one among its sentences. So the policy
cannot raise this score by what the reward model learned by mistake; that is all that makes it gold: it is no human,
and its own accuracy against human ratings stands beside every figure it gives.

IMDb's reviews are long, what it judges is one sentence. Because the head is linear and the features of a review are
the mean over its sentences, the head that fits reviews is applied to one sentence as it is. The first sentence and the
last ones are taken: they say most. Convex, solved to its optimum as `classify_frozen` is (ajuste/learning/head.py).

    accuracy on ratings    texts of `ratings` with |mean rating| > 0.5, the sign being the label: `test` and all splits
    accuracy on IMDb       test reviews, cut to max_tokens; both with Wilson's 95 % interval

    artifacts/merged/gold  a folder of ajuste.models.classifier.load, history.jsonl, evaluation.json (accuracies, what
                           decontamination took out); the card carries accuracy_on_ratings

Run it: `dvc repro gold`. Text in, gold out: predict(*load(Path("artifacts/merged/gold")), texts)[:, 1].
"""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.learning.head import fit_head
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.models.classifier import MeanPoolingClassifier, build, logits_of, predict, save
from ajuste.models.features import FeatureReader
from ajuste.models.folder import load_tokenizer, sha256_of
from ajuste.models.layers import count_parameters
from ajuste.rows.duplicates import Duplicates
from ajuste.rows.ngrams import Ngrams
from ajuste.rows.split import split_text, text_digest

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
MIN_WORDS = 4  # of a sentence; shorter ones ("Avoid!") are rather headings and interjections
NEUTRAL = 0.5  # |mean rating| up to which a text counts as neither positive nor negative
BATCH_ROWS = 32


class GoldConfig(Config):
    """Section `gold`."""

    source: str = Field(description="Source of the set `reviews` whose rows train it; `ratings` must not hold it.")
    rows: int = Field(ge=2, description="Training reviews, the lowest row ids that are left after decontamination.")
    validation_rows: int = Field(ge=2, description="Reviews that choose the step of the head.")
    test_rows: int = Field(ge=1, description="Test reviews of the same source that it is measured on.")
    ratings_rows: int | None = Field(ge=1, description="Texts of `ratings` that it is measured on; null: all.")
    sentences: int = Field(ge=1, description="Of each review: its first sentence, and the last ones.")
    max_tokens: int = Field(ge=8, description="Of a sentence, and of any text that it judges later.")
    l2: float = Field(ge=0, description="Strength of the penalty (l2/2) |w|^2.")
    steps: int = Field(ge=1, description="Most L-BFGS steps.")
    patience: int = Field(ge=1, description="Steps without a better validation loss before it stops.")
    ngram: int = Field(ge=2, description="Words in a row that a training review may not share with `ratings`.")
    near_duplicate_jaccard: float = Field(gt=0, le=1, description="Above it a sentence repeats a text of `ratings`.")


def gold(
    config: GoldConfig, compute: Compute, reviews: Path, preferences: Path, base: Path, out: Path
) -> dict:
    """Fit the head, measure it, and write the classifier folder `out`; returns evaluation.json's content.

    reviews, preferences: validated sets; the latter's texts.parquet may be empty (another set than `ratings`): then
    there is nothing to leave out and accuracy on ratings is null. Raises DataError and UsageError.
    """
    seed_everything(compute.seed, compute.threads)
    labels = json.loads(_needed(reviews / "labels.json").read_text(encoding="utf-8"))
    if len(labels) != 2:
        raise DataError(f"{reviews / 'labels.json'} has {len(labels)} labels: gold needs two, negative and positive")
    identity = json.loads(_needed(base / "base.json").read_text(encoding="utf-8"))
    texts = pq.read_table(_needed(preferences / "texts.parquet")).to_pylist()
    clean = Decontaminated(config, [row["text"] for row in texts])
    train = clean.take(_rows(reviews, "train", config.source), config.rows, "train")
    validation = clean.take(_rows(reviews, "validation", config.source), config.validation_rows, "validation")

    model, tokenizer = build(base, labels, pooling="mean").requires_grad_(False).eval(), load_tokenizer(base)
    device = compute.torch_device()
    model.to(device)
    reader = FeatureReader(model)
    z, y = _features(reader, tokenizer, train, config)
    z_validation, y_validation = _features(reader, tokenizer, validation, config)
    head = fit_head(
        z, y, z_validation, 2, config.l2, config.steps, config.patience, lambda logits: _scores(logits, y_validation)
    )
    _put(head.weight, head.bias, model)

    card = {
        "task": "sequence", "strategy": "gold", "pooling": "mean", "labels": labels, "set": "reviews",
        "max_tokens": config.max_tokens,
        "base": {"id": identity["id"], "sha256": sha256_of(base / "model.safetensors")},
        "parameters": count_parameters(model),
        "validation": {
            name.removeprefix("eval_"): value
            for row in head.history if row["step"] == head.best_step
            for name, value in row.items() if name.startswith("eval_")
        },
    }  # fmt: skip

    def right(texts: list[str], wanted: list[int]) -> np.ndarray:
        return predict(model, tokenizer, card, texts, BATCH_ROWS).argmax(dim=1).numpy() == np.array(wanted, int)

    test = list(_rows(reviews, "test", config.source))[: config.test_rows]
    report = {
        "ratings": _on_ratings(texts, config.ratings_rows, right),
        config.source: {"test": _share(right([row["text"] for row in test], [row["label"] for row in test]))},
        "trained_on": {"rows": len(train), "sentences": sum(len(row["sentences"]) for row in train)},
        "decontamination": clean.report,
    }
    card["accuracy_on_ratings"] = report["ratings"]["test"]
    save(model.cpu(), tokenizer, out, card)
    write_lines(out / "history.jsonl", head.history)
    write_json(out / "evaluation.json", report, sort_keys=True)
    return report


# --- rows -------------------------------------------------------------------------------------------------------------


def sentences(text: str, number: int) -> list[str]:
    """The first sentence of a text and its last ones, `number` at most, in their order; the whole text if it has none.

    Sentences end with . ! ? before a blank, or with a line; those of fewer than MIN_WORDS words are left out.
    """
    found = [part.strip() for part in SENTENCE_END.split(text)]
    found = [part for part in found if len(part.split()) >= MIN_WORDS] or [text]
    return found if len(found) <= number else [found[0], *found[len(found) - number + 1 :]]


class Decontaminated:
    """Reviews that share nothing with the texts of `ratings`; counts what it left out."""

    def __init__(self, config: GoldConfig, texts: list[str]):
        self.config, self.texts = config, texts
        self.ngrams = Ngrams(config.ngram)
        for number, text in enumerate(texts):
            self.ngrams.add([text], str(number))
        self.ngrams.sort()
        self.report = {"texts": len(texts), "ngram": config.ngram, "jaccard": config.near_duplicate_jaccard}

    def take(self, rows: Iterator[dict], wanted: int, split: str) -> list[dict]:
        """The first `wanted` clean rows, each with its `sentences` added. Raises DataError if none is left."""
        taken, seen, shared = [], 0, 0
        for row in rows:
            if len(taken) == wanted:
                break
            seen += 1
            if self.ngrams.find([row["text"]]) is None:
                taken.append({**row, "sentences": sentences(row["text"], self.config.sentences)})
            else:
                shared += 1
        near = self._near(taken)
        taken = [row for i, row in enumerate(taken) if i not in near]
        self.report[split] = {"rows": seen, "shared_ngram": shared, "near_duplicate": len(near), "kept": len(taken)}
        if len({row["label"] for row in taken}) < 2:
            raise DataError(
                f"gold: {len(taken)} {split} rows of source `{self.config.source}` are left of {seen}, not of both "
                "labels: take another source, or check that `ratings` is not the same data"
            )
        return taken

    def _near(self, rows: list[dict]) -> set[int]:
        """Numbers of the rows of which a sentence repeats a text of `ratings`, or nearly."""
        parts = [(i, sentence) for i, row in enumerate(rows) for sentence in row["sentences"]]
        if not self.texts or not parts:
            return set()
        normals = [split_text(text) for text in [*self.texts, *(sentence for _, sentence in parts)]]
        mine = np.arange(len(normals)) >= len(self.texts)
        with tempfile.TemporaryDirectory() as scratch:
            duplicates = Duplicates(Path(scratch), self.config.near_duplicate_jaccard)
            # the texts of `ratings` come first and count as test rows: of a group one of them stays
            duplicates.add(
                normals, [text_digest(text) for text in normals], np.zeros(len(normals), int),
                np.where(mine, 0, 2), np.arange(len(normals), dtype=np.uint64), np.ones(len(normals), bool),
            )  # fmt: skip
            repeats, _, near = duplicates.judge()
            duplicates.close()
        kept = np.where(repeats >= 0, repeats, near)  # the row that each one leaves to
        kept = np.where((kept >= 0) & (near[kept] >= 0), near[kept], kept)  # its first copy may be a near duplicate
        theirs = mine & (kept >= 0) & (kept < len(self.texts))
        return {parts[place - len(self.texts)][0] for place in np.flatnonzero(theirs)}


def _rows(reviews: Path, split: str, source: str) -> Iterator[dict]:
    """Rows (text, label) of one source in the order of their ids."""
    path = _needed(reviews / f"{split}.parquet")
    table = pq.read_table(path, columns=["row_id", "text", "label", "source"])
    known = sorted(set(table["source"].to_pylist()))
    if source not in known:
        raise DataError(f"{path} has no row of source `{source}` (gold.source): it has {', '.join(known) or 'no rows'}")
    table = table.filter(pa.compute.equal(table["source"], source)).sort_by("row_id")
    for batch in table.to_batches(max_chunksize=512):
        yield from batch.to_pylist()


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{path} is missing: `ajuste run` makes it")
    return path


# --- head -------------------------------------------------------------------------------------------------------------


def _features(reader: FeatureReader, tokenizer, rows: list[dict], config: GoldConfig) -> tuple[Tensor, Tensor]:
    """z [N, d], the mean over the features of each row's sentences, and labels [N]."""
    flat = [sentence for row in rows for sentence in row["sentences"]]
    counts = torch.tensor([len(row["sentences"]) for row in rows])
    ids = tokenizer(flat, truncation=True, max_length=config.max_tokens)["input_ids"]
    each = logits_of(reader, ids, BATCH_ROWS)
    owners = torch.repeat_interleave(torch.arange(len(rows)), counts)
    total = torch.zeros(len(rows), each.shape[1]).index_add_(0, owners, each)
    return total / counts[:, None], torch.tensor([row["label"] for row in rows])


def _scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy}


@torch.no_grad()
def _put(weight: Tensor, bias: Tensor, model: MeanPoolingClassifier) -> None:
    model.head.weight.copy_(weight)
    model.head.bias.copy_(bias)
    model.head.requires_grad_(True)


# --- how good it is ---------------------------------------------------------------------------------------------------


def _on_ratings(texts: list[dict], number: int | None, right) -> dict:
    """Accuracy on texts that people rate clearly: of split `test` whole, and of `number` texts of all splits."""
    clear = sorted((row for row in texts if abs(row["rating"]) > NEUTRAL), key=lambda row: row["row_id"])
    test = {row["row_id"] for row in clear if row["split"] == "test"}
    some = {row["row_id"] for row in clear[:number]}
    chosen = [row for row in clear if row["row_id"] in test | some]
    hits = right([row["text"] for row in chosen], [int(row["rating"] > 0) for row in chosen])
    wanted = {"test": test, "all": some}
    return {name: _share(hits[[row["row_id"] in ids for row in chosen]]) for name, ids in wanted.items()}


def _share(hits: np.ndarray) -> dict | None:
    """{value, low, high, rows} with Wilson's interval; None for no rows."""
    if not len(hits):
        return None
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high, "rows": len(hits)}


def main() -> None:
    with start("gold", GoldConfig) as stage:
        validated = Path("artifacts/validated")
        gold(
            stage.config, stage.compute, validated / "reviews", validated / "preferences",
            Path("artifacts/base/encoder"), Path("artifacts/merged/gold"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
