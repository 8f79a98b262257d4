"""What a saved model makes of today's test rows, in a process of its own: for a gate, no stage.

    python -m ajuste.judging.score_rows KIND MODEL OUT [--base BASE] [--measure]

KIND is classifier (1 a right label), reward (1 a right pair, 1/2 a tie) or assistant (the sum of -log p of a row). OUT
gets one row a test row: row_id, value, weight; with --measure the median milliseconds of a row alone and the peak MB of
the process instead, as JSON. Rows, arithmetic and limits are those of the evaluation stages, by params.yaml. A
classifier reads the texts and cuts them with its own tokenizer, so one of another base can be scored too.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, lookup, read_yaml, typed
from ajuste.learning.layers import ragged
from ajuste.learning.losses.bradley_terry import pairs
from ajuste.learning.seeds import seed_everything
from ajuste.models import classifier, decoder, reward
from ajuste.models.probe.texts import supervised
from ajuste.rows.encoded.comparisons import read_comparisons
from ajuste.rows.encoded.conversations import read_conversations
from ajuste.rows.encoded.labelled import autocast, read_labels

ENCODED = {kind: Path("artifacts/encoded") / name
           for kind, name in (("classifier", "reviews"), ("reward", "preferences"), ("assistant", "instructions"))}
REVIEWS = Path("artifacts/validated/reviews/test.parquet")
TIMED, WARM = 20, 3  # rows whose time is taken one by one, after as many that are not counted


def score(kind: str, folder: Path, base: Path | None = None) -> pa.Table:
    """Columns row_id, value, weight of today's test rows. Raises UsageError and DataError."""
    params = read_yaml(Path("params.yaml"))
    found = SCORERS[kind](params, *_loaded(kind, params, folder, base), None)
    return pa.table({"row_id": found[0], "value": pa.array(found[1], pa.float64()),
                     "weight": pa.array(found[2], pa.float64())})


def measure(kind: str, folder: Path, base: Path | None = None) -> dict[str, float]:
    """{"latency_ms", "memory_mb"} of the model in this process, which should do nothing else."""
    params = read_yaml(Path("params.yaml"))
    loaded = _loaded(kind, params, folder, base)
    seconds: list[float] = []
    SCORERS[kind](params, *loaded, seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"latency_ms": float(np.median(seconds[WARM:] or seconds)) * 1e3, "memory_mb": peak}


def _loaded(kind: str, params: dict, folder: Path, base: Path | None) -> tuple:
    """(model, tokenizer, card) as the evaluation loads it."""
    compute = _compute(params)
    seed_everything(compute.seed, compute.threads)
    try:
        if kind == "classifier":
            found = classifier.load(folder)
        elif kind == "reward":
            found = reward.load(folder, base, getattr(torch, lookup(params, "reward.dtype")))
        else:
            dtype = getattr(torch, lookup(params, "evaluate.instruct.dtype"))
            # the pretrained base itself has no card of a trained model
            found = (*decoder.load_base(folder, dtype), {}) if folder == base else decoder.load(folder, base, dtype)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return found[0].to(compute.torch_device()), found[1], found[2]


def _classifier(params: dict, model, tokenizer, card: dict, seconds: list[float] | None) -> tuple:
    encoded, labels = ENCODED["classifier"], read_labels(ENCODED["classifier"])
    for path in (encoded / "test.parquet", REVIEWS):
        if not path.is_file():
            raise UsageError(f"{path} is missing: `ajuste run` makes it")
    rows = pq.read_table(REVIEWS, columns=["row_id", "text", "label"])
    rows = rows.filter(pc.is_in(rows["row_id"], pq.read_table(encoded / "test.parquet", columns=["row_id"])["row_id"]))
    texts, true = rows["text"].to_pylist(), rows["label"].to_pylist()
    compute = _compute(params)
    if card["task"] != "sequence":
        raise UsageError(f"a model for `{card['task']}` cannot be scored anew: evaluate it on today's rows")

    def said(some: list[str]) -> list[int]:
        with autocast(compute):
            batch_rows = lookup(params, "evaluate.classify.batch_rows")
            return classifier.predict(model, tokenizer, card, some, batch_rows).argmax(dim=1).tolist()

    if seconds is not None:
        _clock(seconds, texts, lambda text: said([text]))
        return ()
    # by name: another version may know other labels, or know them in another order
    right = [float(card["labels"][i] == labels[j]) for i, j in zip(said(texts), true, strict=True)]
    return rows["row_id"], right, [1.0] * len(right)


def _reward(params: dict, model, _tokenizer, _card: dict, seconds: list[float] | None) -> tuple:
    comparisons = read_comparisons(ENCODED["reward"], "test", model.config)
    if seconds is not None:
        _clock(seconds, comparisons.rows(), lambda row: reward.score(model, [row]))
        return ()
    scores = reward.score(model, comparisons.rows()).numpy()
    better, worse, owner = (places.numpy() for places in pairs(comparisons.sizes()))
    difference = scores[better] - scores[worse]
    right = (difference > 0) + 0.5 * (difference == 0)
    means = np.bincount(owner, right) / np.bincount(owner)
    return [one.row_id for one in comparisons], means, np.ones(len(means))


def _assistant(params: dict, model, _tokenizer, _card: dict, seconds: list[float] | None) -> tuple:
    rows = read_conversations(ENCODED["assistant"], "test")
    order = np.array(pc.sort_indices(rows.table["row_id"]))[: lookup(params, "evaluate.instruct.rows")]
    chosen, tokens = [rows[int(i)] for i in order], lookup(params, "evaluate.instruct.batch_tokens")
    if seconds is not None:
        _clock(seconds, chosen, lambda row: ragged.row_losses(model, [row], tokens))
        return ()
    try:
        supervised(model)  # not where memory is measured: a single row has no neighbours and no padding
    except ValueError as error:
        raise UsageError(str(error)) from None
    losses = ragged.row_losses(model, chosen, tokens).numpy()
    return rows.table["row_id"].take(pa.array(order)), losses[:, 0], losses[:, 1]


SCORERS = {"classifier": _classifier, "reward": _reward, "assistant": _assistant}


def _clock(seconds: list[float], rows: list, run) -> None:
    """The wall time of `run` on each of the first rows, one at a time."""
    for i in range(WARM + TIMED):
        began = time.perf_counter()
        run(rows[i % len(rows)])
        seconds.append(time.perf_counter() - began)


def _compute(params: dict) -> Compute:
    return typed(Compute, params.get("compute") or {}, "compute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(SCORERS))
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    try:
        if asked.measure:
            asked.out.write_text(json.dumps(measure(asked.kind, asked.model, asked.base)), encoding="utf-8")
        else:
            pq.write_table(score(asked.kind, asked.model, asked.base), asked.out)
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
