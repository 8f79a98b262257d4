"""Text classifiers: <set>-classifier and <set>-classifier-adapter, from artifacts/*/classify_*.

`challenger` is the version with the highest macro-F1 on validation. The gate compares accuracy on the test rows, and
holds a first version against the most frequent label of the training rows: an untrained head is noise.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.registry.families.family import (
    EVALUATED,
    Family,
    Metric,
    Picture,
    Tags,
    Values,
    interval,
    judged,
    number,
)
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.results import table

if TYPE_CHECKING:
    from ajuste.judging.verdicts.gate import Paired
    from ajuste.tracking.registry.version import Version


class Classifier(Family):
    """All that is said of classifiers."""

    def scores(self, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float], list[str]]:
        if not judged(self.evaluate, folder, md5):
            return {}, []
        result = facts.read_json(EVALUATED / "classify" / f"{strategy}.json")
        found = {f"test.{key.replace(':', '.')}": value for key, value in facts.evaluated(result).items()}
        if not found:
            return {}, []
        return found | ({"test.rows": result["rows"]} if result.get("rows") else {}), [self.evaluate]

    def validation_interval(self, folder: Path, card: dict) -> tuple[float | None, float | None]:
        """The bootstrap of macro-F1 over the rows."""
        if card.get("task") != "sequence":
            return super().validation_interval(folder, card)
        from ajuste.judging.intervals import macro_f1_interval

        return macro_f1_interval(folder, Path("artifacts/base/encoder"), self.encoded / "validation.parquet")

    def own_tags(self, card: dict, whole: bool) -> dict[str, object]:
        return {"task": card["task"], "pooling": card["pooling"], "labels": card["labels"]}

    def about(self, name: str) -> list[str]:
        return ["Text classifiers: plain text in, label and probabilities out.", "",
                "- `challenger` is the best on *validation*; `champion` is what a promotion made of it",
                f"- side by side: `ajuste compare {name}`; as a server: `ajuste serve`",
                f'- in Python: `mlflow.pyfunc.load_model("models:/{name}@challenger").predict(["a text"])`']

    def page(self, tags: Tags) -> list[str]:
        lines = [f"- validation: accuracy {number(tags, 'validation.accuracy')}, "
                 f"macro-F1 {number(tags, 'validation.macro_f1')}"]
        if "test.accuracy" in tags:
            lines.append(f"- test ({tags.get('test.rows')} rows): accuracy {interval(tags, 'test.accuracy')}, "
                         f"macro-F1 {interval(tags, 'test.macro_f1')}")
        return lines

    def inputs_line(self, tags: Tags) -> str:
        return f"- labels: {', '.join(json.loads(tags['labels']))}; texts are cut at {tags['max_tokens']} tokens"

    def headline(self, tags: Tags) -> str:
        return f", test accuracy {float(tags['test.accuracy']):.3f}" if "test.accuracy" in tags else ""

    def row_values(self, version: Version) -> dict[tuple[str, str], Values]:
        return {(f"{version.name}/{version.version}", "accuracy"): self.recorded(version)}

    def recorded(self, version: Version) -> Values:
        """(1 if the version was right else 0, 1) by test row."""
        return {row["row_id"]: (float(row["label"] == row["prediction"]), 1.0)
                for row in table(version.tags.get("evaluate_run"), "predictions.parquet")
                if row["strategy"] == version.tags.get("strategy")}

    def before(self, version: Version, own: Values, today: str) -> Paired:
        """Always the most frequent label of the training rows: what a classifier knows that read no text."""
        import pyarrow.parquet as pq

        from ajuste.judging.verdicts.gate import Paired

        other = "the most frequent label"
        try:
            train = pq.read_table(self.encoded / "train.parquet", columns=["label"])["label"].to_pylist()
            test = pq.read_table(self.encoded / "test.parquet", columns=["row_id", "label"]).to_pylist()
        except (OSError, ValueError, KeyError):
            return Paired(other, own, {}, f"{self.encoded} has no label a row: is it a set of classified texts?")
        most, _ = min(Counter(train).items(), key=lambda item: (-item[1], item[0]))
        return Paired(other, own, {row["row_id"]: (float(row["label"] == most), 1.0) for row in test})


CLASSIFIER = Classifier(
    kind="classifier", method="classify", title="classifier", registered="{set}-classifier",
    folders="*/classify_*", trains="classify", merge="merge_classify", evaluate="evaluate_classify",
    encoded=Path("artifacts/encoded/reviews"), from_users=True,
    best="macro_f1", best_name="macro-F1", lower=False, metric="accuracy", based=False,
    results=("predictions.parquet",),
    figures={"accuracy": "test accuracy", "macro_f1": "test macro-F1", "mcc": "test MCC", "auc": "test AUC",
             "ece": "test calibration error", "brier": "test Brier score", "nll": "test NLL"},
    validation={"accuracy": ("validation accuracy", ".3f"), "macro_f1": ("validation macro-F1", ".3f")},
    pictures={"accuracy": Picture("accuracy", True, "accuracy")},
    metrics=(Metric("accuracy", False, "test rows"),),
    examples={"text": ["A warm and funny film.", "Two hours that I will not get back."]},
    answers_with=(("string", "label"), ("double", "probability"), ("doubles", "probabilities")),
)  # fmt: skip
