"""The two families of registered models, and what differs between them: everything else of the registry is shared.

    classifier    <set>-classifier and <set>-classifier-adapter, from artifacts/*/classify_*
    assistant     assistant and assistant-adapter, from artifacts/*/instruct: a decoder that follows instructions

Where a model's scores are read, which of its figures are tags of its version, and by which of them `challenger` is
found, stand here, so that a version's page, the comparison and the report agree.
"""

from dataclasses import dataclass
from pathlib import Path

from tracking import _facts, versions

EVALUATED = Path("artifacts/evaluated")
FIGURES = (  # of a version's test rows, each with its interval where it has one
    *_facts.INTERVALS, "loss", "base_loss", "difference", "perplexity", "base_perplexity", "rules", "base_rules",
    "exact_match", "base_exact_match", "rouge1", "base_rouge1", "rougeL", "base_rougeL", "reviews_accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    kind: str  # the word in the registered name, and MLflow's model type
    method: str  # tag: by what kind of training it was made
    folders: str  # the pattern of its model folders below artifacts/
    trains: str  # the verb that trains it
    merge: str  # the stage that merges it
    evaluate: str  # the stage that tests it
    encoded: Path  # its rows
    best: str  # the figure of its validation that ranks its versions
    best_name: str  # in words
    lower: bool  # whether a lower figure is better


CLASSIFIER = Family(
    "classifier", "classify", "*/classify_*", "classify", "merge_classify", "evaluate_classify",
    Path("artifacts/encoded/reviews"), "macro_f1", "macro-F1", False,
)  # fmt: skip
ASSISTANT = Family(
    "assistant", "sft", "*/instruct", "instruct", "merge_instruct", "evaluate_instruct",
    Path("artifacts/encoded/instructions"), "loss", "loss", True,
)  # fmt: skip
FAMILIES = (CLASSIFIER, ASSISTANT)


def of_folder(folder: Path) -> Family | None:
    """The family of a stage's out, None if it holds no model to register."""
    if folder.parent.name not in ("adapters", "merged"):
        return None
    return next((family for family in FAMILIES if folder.match(f"artifacts/{family.folders}")), None)


def of_name(name: str) -> Family:
    """The family of a registered name."""
    return ASSISTANT if name.removesuffix("-adapter") == ASSISTANT.kind else CLASSIFIER


def scores(family: Family, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float], list[str]]:
    """The test figures of these very weights by tag, and the stages that judged them; ({}, []) if none did.

    "test.accuracy", "test.accuracy.low", ... and, of an assistant, "forgetting.<set>": F = score before - after.
    """
    if family is CLASSIFIER:
        if not judged(family.evaluate, folder, md5):
            return {}, []
        result = _facts.read_json(EVALUATED / "classify" / f"{strategy}.json")
        found = _tags("test", _facts.evaluated(result))
        return (found | {"test.rows": result["rows"]}, [family.evaluate]) if found else ({}, [])
    found, by = {}, []
    if judged(family.evaluate, folder, md5):
        result = _facts.read_json(EVALUATED / "instruct" / "instruct.json")
        found |= _tags("test", _facts.flat_intervals(assistant_scores(result)))
        if rows := result.get("held_out", {}).get("instruct", {}).get("rows"):
            found["test.rows"] = rows
        by.append(family.evaluate)
    if judged("forgetting_instruct", folder, md5):
        result = _facts.read_json(EVALUATED / "forgetting_instruct" / "scores.json")
        found |= _tags("forgetting", _facts.flat_intervals(result.get("F", {})))
        by.append("forgetting_instruct")
    return (found, by) if found else ({}, [])


def assistant_scores(result: dict) -> dict[str, dict | float]:
    """instruct.json as one level of figures: of the tuned model by their own names, of its base behind `base_`.

    `difference` is that of the held-out losses, tuned - base.
    """
    found = {}
    for (figure, model), value in _facts.instruct_figures(result).items():
        if model in ("instruct", "base"):
            found[figure if model == "instruct" else f"base_{figure}"] = value
        elif (figure, model) == ("loss", "difference"):
            found["difference"] = value
    return found


def judged(stage: str, folder: Path, md5: str) -> bool:
    """Whether dvc.lock has that stage's run on these very weights."""
    deps = versions.lock().get(stage, {}).get("deps", [])
    return any(Path(dep["path"]) == folder and dep["md5"] == md5 for dep in deps)


def headline(tags: dict[str, str]) -> str:
    """The one figure of a version that a list shows: ", test accuracy 0.806", "" if it was not tested."""
    for key, name in (("test.accuracy", "test accuracy"), ("test.loss", "held-out loss")):
        if key in tags:
            return f", {name} {float(tags[key]):.3f}"
    return ""


def _tags(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}.{key.replace(':', '.')}": value for key, value in figures.items()}
