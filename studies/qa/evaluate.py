"""Study qa: exact match and word F1 on the test rows, artifacts/studies/qa/evaluated. Run by `ajuste study qa`.

Both are SQuAD's (ajuste/judging/answers.py). Intervals are those of stage `evaluate_classify`. Writes full.json, with a
line for people, and predictions.parquet.
"""

import numpy as np
import pyarrow as pa
from torch import nn

from ajuste.judging import spans
from ajuste.judging.answers import exact_match, word_f1
from ajuste.rows.encoded.labelled import Rows
from studies.labelled import Study, run
from tasks.evaluate.classify import ClassifyConfig, Measured, evaluate_classify


def measure_questions(
    model: nn.Module, rows: Rows, labels: list[str], batch_rows: int, counts: np.ndarray
) -> Measured:
    """Exact match and word F1 of answers. counts [B, N]: how often each row is drawn."""
    found = spans.answers_of(spans.predict_rows(model, rows, batch_rows), rows)
    true = rows.table["answers"].to_pylist()
    scores = {
        "exact_match": np.array([exact_match(*pair) for pair in zip(found, true, strict=True)]),
        "f1": np.array([word_f1(*pair) for pair in zip(found, true, strict=True)]),
    }
    return Measured(
        {name: score.mean() for name, score in scores.items()},
        {name: counts @ score / len(score) for name, score in scores.items()},
        {"label": rows.table["answers"], "prediction": pa.array(found)},
        scores["exact_match"] > 0,
    )


def main() -> None:
    study = Study("qa")
    config = study.config(ClassifyConfig, "evaluate")
    report = evaluate_classify(config, study.compute, {"full": study.folder / "model"}, study.folder / "encoded",
                               study.folder / "evaluated", "span", measure_questions)["full"]  # fmt: skip
    match, f1 = report["exact_match"], report["f1"]
    print(f"exact match {match['value']:.3f} ({match['low']:.3f} to {match['high']:.3f}), word F1 {f1['value']:.3f} "
          f"({f1['low']:.3f} to {f1['high']:.3f}), {report['rows']} test rows")  # fmt: skip


if __name__ == "__main__":
    run(main)
