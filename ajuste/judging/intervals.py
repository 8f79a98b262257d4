"""How sure is a figure of validation? The model of a folder reads its validation rows once more.

    the interval   2.5 % and 97.5 % percentiles of macro-F1 over resamples of the rows     Efron's percentile bootstrap

Trainings write the figure alone; a sweep asks for the interval of the points that it ranks.
"""

from pathlib import Path

import pyarrow.parquet as pq
import torch

from ajuste.learning.statistics import metrics
from ajuste.models import classifier
from ajuste.models.folder import quiet

RESAMPLES = 1000


def macro_f1_interval(folder: Path, base: Path, rows: Path) -> tuple[float, float]:
    """The bounds of a classifier's macro-F1. folder: its weights, or its adapter of `base`; rows: encoded, labelled."""
    table = pq.read_table(rows, columns=["input_ids", "label"])
    labels = table["label"].to_numpy()
    with quiet(), torch.inference_mode():
        whole = (folder / "model.safetensors").is_file()
        model, _, card = classifier.load(folder) if whole else classifier.load_adapter(base, folder)
        predictions = classifier.logits_of(model.eval(), table["input_ids"].to_pylist()).argmax(dim=-1).numpy()
    counts = metrics.resamples(len(labels), RESAMPLES, seed=0)
    return metrics.percentile_interval(
        metrics.macro_f1(metrics.confusion(labels, predictions, len(card["labels"]), counts)))
