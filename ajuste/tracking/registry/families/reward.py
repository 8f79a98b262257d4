"""Reward models: <set>-reward and <set>-reward-adapter, from artifacts/*/reward. How good is a response?

`challenger` is the version with the highest pair accuracy on validation. The gate compares pair accuracy on the test
pairs, and holds a first version against a coin. A reward model is judged by the stage that trains it, on the adapter:
a merged one has those figures only if dvc.lock says that it was merged from that very adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.project import lock
from ajuste.tracking.registry.families.family import (
    Family,
    Metric,
    Picture,
    Tags,
    Values,
    as_tags,
    interval,
    names,
    number,
    said,
)
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.results import table

if TYPE_CHECKING:
    from ajuste.judging.verdicts.gate import Paired
    from ajuste.tracking.registry.version import Version

MARGINS = ("0.5", "1.0", "1.5", "2.5")
STEADY = 1.5  # the margin at which people hardly disagree


class Reward(Family):
    """All that is said of reward models."""

    def scores(self, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float], list[str]]:
        if not self._made_of_the_judged(folder, md5):
            return {}, []
        result = facts.read_json(Path("artifacts/adapters") / folder.name / "evaluation.json").get("test", {})
        found = as_tags("test", figures(result))
        if not found:
            return {}, []
        return found | ({"test.rows": result["pairs"]} if result.get("pairs") else {}), [self.evaluate]

    def _made_of_the_judged(self, folder: Path, md5: str) -> bool:
        recorded = lock.stages()
        merge = recorded.get(self.merge, {})
        trained = next((out for out in recorded.get(self.trains, {}).get("outs", [])), None)
        if trained is None or not names(merge.get("outs", []), folder, md5):
            return False
        return names(merge.get("deps", []), Path(trained["path"]), trained["md5"])

    def run_figures(self, folder: Path) -> dict[str, dict | float]:
        result = facts.read_json(folder / "evaluation.json").get("test", {})
        return {f"{figure}/test": value for figure, value in figures(result).items()}

    def validation_interval(self, folder: Path, card: dict) -> tuple[float | None, float | None]:
        """Wilson's interval of pair accuracy."""
        import pyarrow.parquet as pq

        from ajuste.learning.statistics.metrics import wilson_interval

        pairs = pq.ParquetFile(self.encoded / "validation.parquet").metadata.num_rows
        return wilson_interval(round(card["validation"][self.best] * pairs), pairs)

    def own_tags(self, card: dict, whole: bool) -> dict[str, object]:
        base = card["base"]
        return {"tokenizer_sha256": base["tokenizer_sha256"], "template_sha256": base["template_sha256"],
                "quantisation": card.get("quantisation") or "none", "bias": card["bias"],
                **{f"normalisation.{key}": value for key, value in card["normalisation"].items()}}

    def about(self, name: str) -> list[str]:
        return [
            "Reward models: prompt and response in, one number out; mean 0 and deviation 1 on what the assistant "
            "itself says.", "",
            "- `challenger` has the highest pair accuracy on *validation*; `champion` is what a promotion made of it",
            f"- side by side: `ajuste compare {name}`; as a server: `ajuste serve`, `/v1/score`",
            f'- in Python: `mlflow.pyfunc.load_model("models:/{name}@challenger").predict(pandas.DataFrame('
            '{"prompt": [...], "response": [...]}))`',
        ]  # fmt: skip

    def what(self, tags: Tags) -> str:
        return ("Reward model: one number a response, trained on comparisons, "
                "-log sigmoid(r_chosen - r_rejected)")

    def page(self, tags: Tags) -> list[str]:
        lines = [f"- validation: pair accuracy {number(tags, 'validation.accuracy')}, loss "
                 f"{number(tags, 'validation.loss')}"]
        if "test.accuracy" in tags:
            lines.append(f"- test ({tags.get('test.rows')} pairs): pair accuracy {interval(tags, 'test.accuracy')}, "
                         f"calibration error {interval(tags, 'test.ece')}")
        start = "test.accuracy_margin_"
        margins = [key for key in sorted(tags) if key.startswith(start) and not key.endswith((".low", ".high"))]
        if margins:
            lines.append("- by margin of the ratings: " + ", ".join(
                f"{key.removeprefix(start)} or more {interval(tags, key)}" for key in margins))
        return lines

    def headline(self, tags: Tags) -> str:
        return f", pair accuracy {float(tags['test.accuracy']):.3f}" if "test.accuracy" in tags else ""

    def row_values(self, version: Version) -> dict[tuple[str, str], Values]:
        return {(f"{version.name}/{version.version}", "accuracy"): self.recorded(version)}

    def recorded(self, version: Version) -> Values:
        """(1 if the better response scored higher, 1/2 for a tie, else 0; 1) by test pair."""
        return {row["row_id"]: (row["right"], 1.0)
                for row in table(version.tags.get("evaluate_run"), "pairs.parquet")}

    def before(self, version: Version, own: Values, today: str) -> Paired:
        """A coin."""
        from ajuste.judging.verdicts.gate import Paired

        return Paired("a coin", own, {row: (0.5, 1.0) for row in own})

    def findings(self) -> list[tuple[str, str, str]]:
        folder = Path("artifacts/adapters/reward")
        test = facts.read_json(folder / "evaluation.json").get("test", {})
        if not test and not facts.read_json(folder / "ajuste.json"):
            return []
        if not test.get("accuracy"):
            return [("unknown", "Reward model: agrees with people", "Not evaluated yet.")]
        clear = next((row for row in test.get("by_margin", []) if row["margin"] == STEADY and row["accuracy"]), None)
        if clear is None:
            return [("good" if test["accuracy"]["low"] > 0.5 else "bad", "Reward model: better than a coin",
                     f"{said(test['accuracy'])} of the test pairs in the right order.")]
        human = clear.get("one_against_rest")
        state = "good" if human is None or clear["accuracy"]["high"] >= human else "warn"
        beside = "" if human is None else f"; one person against the others: {human:.3f}"
        return [(state if clear["accuracy"]["low"] > 0.5 else "bad", "Reward model: agrees with people",
                 f"Margin {STEADY} or more: {said(clear['accuracy'])} of {clear['pairs']} pairs{beside}.")]


def figures(result: dict) -> dict[str, dict | float]:
    """The part `test` of evaluation.json as {figure: interval or number}."""
    found: dict[str, dict | float] = {}
    if "accuracy" in result:
        found["accuracy"] = result["accuracy"]
    for row in result.get("by_margin", []):
        if row["accuracy"] is not None:  # no pairs of that margin
            found[f"accuracy_margin_{float(row['margin'])}"] = row["accuracy"]
    calibration = result.get("calibration", {})
    single = {"ece": calibration.get("error"), "brier": calibration.get("brier"), "nll": calibration.get("nll"),
              "length_correlation": result.get("length_correlation")}
    return found | {key: value for key, value in single.items() if value is not None}


REWARD = Reward(
    kind="reward", method="reward", title="reward model", registered="{set}-reward",
    folders="*/reward", trains="reward", merge="merge_reward", evaluate="reward",
    encoded=Path("artifacts/encoded/preferences"),
    best="accuracy", best_name="pair accuracy", lower=False, metric="pair_accuracy",
    results=("evaluation.json", "pairs.parquet"),
    figures={"accuracy": "test accuracy",
             **{f"accuracy_margin_{margin}": f"  margin {margin} or more" for margin in MARGINS},
             "ece": "test calibration error", "brier": "test Brier score", "nll": "test NLL",
             "length_correlation": "reward with length"},
    validation={"accuracy": ("validation accuracy", ".3f")},
    pictures={"accuracy": Picture("pair accuracy", True, "accuracy")},
    metrics=(Metric("accuracy", False, "pairs"),),
    examples={"prompt": ["Write a one-sentence movie review."] * 2,
              "response": ["A warm and funny film.", "Two hours that I will not get back."]},
    answers_with=(("double", "reward"),),
)  # fmt: skip
