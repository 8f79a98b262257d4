"""Study ner: entity F1 on the test rows, artifacts/studies/ner/evaluated. Run by `ajuste study ner`.

    entity F1 = 2 |found and true| / (|found| + |true|)       accuracy over words, confusion matrix over words

Intervals are those of stage `evaluate_classify`; a resample draws whole sentences. Writes full.json, with a line for
people, and predictions.parquet.
"""

import numpy as np
import pyarrow as pa
from sklearn import metrics as sk
from torch import nn

from ajuste.judging import words
from ajuste.rows.encoded.labelled import Rows
from studies.labelled import Study, run
from tasks.evaluate.classify import ClassifyConfig, Measured, evaluate_classify


def measure_words(model: nn.Module, rows: Rows, labels: list[str], batch_rows: int, counts: np.ndarray) -> Measured:
    """Entity F1 and accuracy of tagged words. counts [B, N]: how often each row is drawn."""
    true = words.true_tags(rows)
    predicted = [row.argmax(dim=1).tolist() for row in words.predict_rows(model, rows, batch_rows)]
    hits = np.array([[sum(map(int.__eq__, t, p)), len(t)] for t, p in zip(true, predicted, strict=True)])
    found = np.array([words.entity_counts(labels, t, p) for t, p in zip(true, predicted, strict=True)])
    sums, right = counts @ found, counts @ hits
    flat = [np.concatenate(side).astype(int) for side in (true, predicted)]
    return Measured(
        {"entity_f1": words.f1_of_counts(found.sum(axis=0)), "accuracy": sk.accuracy_score(*flat)},
        {"entity_f1": np.apply_along_axis(words.f1_of_counts, 1, sums), "accuracy": right[:, 0] / right[:, 1]},
        {"label": pa.array(true, pa.list_(pa.int32())), "prediction": pa.array(predicted, pa.list_(pa.int32()))},
        extra={"confusion": sk.confusion_matrix(*flat, labels=range(len(labels))).tolist()},
    )


def main() -> None:
    study = Study("ner")
    config = study.config(ClassifyConfig, "evaluate")
    report = evaluate_classify(config, study.compute, {"full": study.folder / "model"}, study.folder / "encoded",
                               study.folder / "evaluated", "token", measure_words)["full"]  # fmt: skip
    f1, words_right = report["entity_f1"], report["accuracy"]
    print(f"entity F1 {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f}), accuracy over words "
          f"{words_right['value']:.3f}, {report['rows']} test rows")  # fmt: skip


if __name__ == "__main__":
    run(main)
