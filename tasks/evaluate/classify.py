"""Stage `evaluate_classify`: the held-out test rows, the same for every strategy, each number with its uncertainty.

    accuracy, macro-F1, MCC, AUC (several classes: one against the rest, mean), Brier score, NLL, confusion matrix,
    slices by source, length and label
    ece          calibration error, root mean square over bins, without bias and with an interval of its own
                 (ajuste/learning/statistics/calibration.py)
    ece_plain    the expected calibration error as it is mostly published: without an interval, too large of few rows

Values are scikit-learn's. Intervals are 95 % percentile bootstrap intervals over rows, from one fixed set of resamples
for all strategies (ajuste/learning/statistics/metrics.py, the same formulas on many resamples at once); slices have
Wilson intervals. Writes <strategy>.json and predictions.parquet. Nothing is chosen by these numbers: that is what
validation is for. The studies `ner` and `qa` give `evaluate_classify` a measure of their own.

Run it: `dvc repro evaluate_classify`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from sklearn import metrics as sk
from torch import nn

from ajuste.core.errors import UsageError
from ajuste.core.figures import rounded, write_json
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import calibration, metrics
from ajuste.models.classifier import load, logits_of
from ajuste.rows.encoded.labelled import Rows, autocast, read_labels, read_rows

LENGTHS = (16, 32, 64, 128, 256, 512)  # upper bounds of the length slices, in tokens before truncation


class ClassifyConfig(Config):
    """Section `evaluate.classify`."""

    bootstrap: int = Field(ge=100, description="Resamples of the test rows behind each interval.")
    batch_rows: int = Field(ge=1, description="Rows that pass through a model at once.")


@dataclass
class Measured:
    """values: metric -> number. resampled: metric -> [B]. columns: of predictions.parquet. correct: [N] or None."""

    values: dict[str, float]
    resampled: dict[str, np.ndarray]
    columns: dict[str, pa.Array]
    correct: np.ndarray | None = None
    extra: dict = field(default_factory=dict)


Measure = Callable[[nn.Module, Rows, list[str], int, np.ndarray], Measured]


def measure_sequence(
    model: nn.Module, rows: Rows, labels: list[str], batch_rows: int, counts: metrics.Resamples
) -> Measured:
    """Texts: all metrics of ajuste.learning.statistics.metrics."""
    probabilities = torch.softmax(logits_of(model, rows.ids, batch_rows).double(), dim=1).numpy()
    true, predicted = np.asarray(rows.labels), probabilities.argmax(axis=1)
    every = range(len(labels))
    values = {
        "accuracy": sk.accuracy_score(true, predicted),
        "macro_f1": sk.f1_score(true, predicted, labels=every, average="macro", zero_division=0),
        "mcc": sk.matthews_corrcoef(true, predicted),
        "auc": _auc(true, probabilities),
        "brier": metrics.brier(probabilities, true).mean(),
        "nll": metrics.nll(probabilities, true).mean(),
    }
    columns = {
        "label": pa.array(true, pa.int32()),
        "prediction": pa.array(predicted, pa.int32()),
        "probabilities": pa.array(rounded(probabilities.tolist()), pa.list_(pa.float32())),
    }
    bins = calibration.bins_of(probabilities.max(axis=1), predicted == true)
    extra = {
        "confusion": sk.confusion_matrix(true, predicted, labels=every).tolist(),
        "ece": calibration.calibration_error(bins), "ece_plain": calibration.plain_error(bins),
    }  # fmt: skip
    return Measured(values, metrics.all_metrics(probabilities, true, counts), columns, predicted == true, extra)


def evaluate_classify(
    config: ClassifyConfig, compute: Compute, models: dict[str, Path], encoded: Path, out: Path,
    task: str = "sequence", measure: Measure = measure_sequence,
) -> dict:  # fmt: skip
    """Measure every model folder of `models` (strategy -> folder) on the test split; returns strategy -> its JSON.

    task: of the models, with the measure that belongs to it. Raises UsageError for a folder that is no model, or was
    trained for another task or other labels.
    """
    seed_everything(compute.seed, compute.threads)
    labels = read_labels(encoded)
    out.mkdir(parents=True, exist_ok=True)
    reports, tables = {}, []
    for strategy, folder in sorted(models.items()):
        try:
            model, _, card = load(folder)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if card["task"] != task:
            raise UsageError(f"{folder} was trained for task {card['task']}, and {task} is measured here")
        if card["labels"] != labels:
            raise UsageError(
                f"{folder} was trained for labels {card['labels']}, {encoded} has {labels}: train it again"
            )
        rows = read_rows(encoded, "test", task)
        counts = metrics.resamples(len(rows), config.bootstrap, compute.seed)
        model.to(compute.torch_device())
        with autocast(compute):
            measured = measure(model, rows, labels, config.batch_rows, counts)
        reports[strategy] = _report(measured, rows, labels)
        write_json(out / f"{strategy}.json", reports[strategy], sort_keys=True)
        columns = {"row_id": rows.table["row_id"]} if "row_id" in rows.table.column_names else {}
        columns["strategy"] = pa.array([strategy] * len(rows))
        tables.append(pa.table({**columns, **measured.columns}))
    pq.write_table(pa.concat_tables(tables), out / "predictions.parquet")
    return {**reports, "tokens": len(models) * sum(rows.lengths())}


def _report(measured: Measured, rows: Rows, labels: list[str]) -> dict:
    """The JSON of one strategy: each metric as {value, low, high}; nan (not defined on these rows) as null."""
    report: dict = {"rows": len(rows), "labels": labels, **measured.extra, "slices": {}}
    for name, value in measured.values.items():
        low, high = metrics.percentile_interval(measured.resampled[name])
        report[name] = {key: _number(x) for key, x in (("value", value), ("low", low), ("high", high))}
    if measured.correct is not None:
        keys = {"length": [_length_slice(n) for n in _column(rows, "length", rows.lengths())]}
        keys["source"] = _column(rows, "source", [None] * len(rows))
        if np.ndim(rows.labels) == 1:
            keys["label"] = [labels[i] for i in rows.labels]
        report["slices"] = {
            name: _slices(values, measured.correct) for name, values in keys.items() if values[0] is not None
        }
    return report


def _slices(keys: list[str], correct: np.ndarray) -> dict[str, dict]:
    """{slice: {rows, accuracy, low, high}} with Wilson intervals."""
    slices = {}
    for key in sorted(set(keys)):
        inside = correct[[k == key for k in keys]]
        low, high = metrics.wilson_interval(int(inside.sum()), len(inside))
        slices[key] = {"rows": len(inside), "accuracy": float(inside.mean()), "low": low, "high": high}
    return slices


def _length_slice(tokens: int) -> str:
    """Name of the length slice; zero-padded so that names sort by length."""
    below = 0
    for bound in LENGTHS:
        if tokens <= bound:
            return f"{below + 1:03d}-{bound:03d}"
        below = bound
    return f"{below + 1:03d}+"


def _column(rows: Rows, name: str, default: list) -> list:
    return rows.table[name].to_pylist() if name in rows.table.column_names else default


def _auc(true: np.ndarray, probabilities: np.ndarray) -> float:
    """scikit-learn's AUC; nan when the test rows lack a class, for which it is not defined."""
    classes = probabilities.shape[1]
    if len(set(true.tolist())) < classes:
        return math.nan
    if classes == 2:
        return sk.roc_auc_score(true, probabilities[:, 1])
    return sk.roc_auc_score(true, probabilities, multi_class="ovr", average="macro", labels=range(classes))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def main() -> None:
    with start("evaluate_classify", ClassifyConfig) as stage:
        artifacts = Path("artifacts")
        models = {name: artifacts / "merged" / f"classify_{name}" for name in ("frozen", "full", "lora")}
        with stage.phase("evaluate"):
            reports = evaluate_classify(
                stage.config, stage.compute, models, artifacts / "encoded/reviews", artifacts / "evaluated/classify"
            )
        stage.count(tokens=reports["tokens"])


if __name__ == "__main__":
    main()
