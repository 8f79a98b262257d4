"""The families that there are, each after those whose versions it names, and how one is found.

A new method is a file in this folder and its line in FAMILIES.
"""

from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.tracking.registry.families.classifier import CLASSIFIER
from ajuste.tracking.registry.families.dpo import DPO
from ajuste.tracking.registry.families.family import Family, Metric, Picture
from ajuste.tracking.registry.families.grpo import GRPO
from ajuste.tracking.registry.families.ppo import PPO
from ajuste.tracking.registry.families.rejection import REJECTION
from ajuste.tracking.registry.families.reward import REWARD
from ajuste.tracking.registry.families.rloo import RLOO
from ajuste.tracking.registry.families.sft import SFT
from ajuste.tracking.runs import facts

FAMILIES: tuple[Family, ...] = (CLASSIFIER, SFT, REWARD, PPO, DPO, GRPO, RLOO, REJECTION)


def of_folder(folder: Path) -> Family | None:
    """The family of a stage's out, None if it holds no model to register."""
    if folder.parent.name not in ("adapters", "merged"):
        return None
    return next((family for family in FAMILIES if folder.match(f"artifacts/{family.folders}")), None)


def of_stage(stage: str) -> Family | None:
    """The family whose models the stage trains or merges."""
    verb = stage.partition("_")[0]
    return next((family for family in FAMILIES if stage == family.merge or verb == family.trains), None)


def of_method(method: str | None) -> Family | None:
    """The family of a version with that tag `method`, None for a method that nobody knows."""
    return next((family for family in FAMILIES if family.method == method), None)


def family_of(name: str, number: str, method: str | None) -> Family:
    """The family of a version. Raises UsageError for one of none."""
    if found := of_method(method):
        return found
    raise UsageError(f"{name}/{number} says no method that is known here: it is none that `ajuste run` registered")


def kind_of(name: str) -> str:
    """The kind of a registered name: classifier, assistant or reward."""
    return name.removesuffix("-adapter").rpartition("-")[2]


def of_name(name: str) -> list[Family]:
    """The families whose versions stand under a registered name, the one that others are made from first."""
    return [family for family in FAMILIES if family.kind == kind_of(name)]


def of_users(name: str) -> Family | None:
    """The family whose rows are what users send to a served name; None where they send no texts."""
    return next((family for family in of_name(name) if family.from_users), None)


def headline(tags: dict[str, str]) -> str:
    """The one figure of a version that a list shows: ", test accuracy 0.806"; "" if it was not tested."""
    family = of_method(tags.get("method"))
    return family.headline(tags) if family else ""


def strategy_words(strategy: str) -> str:
    """What a strategy is in words, where a family has words of its own for it; "" where none has."""
    return next((family.strategies[strategy] for family in FAMILIES if strategy in family.strategies), "")


# --- what a registered name compares by -------------------------------------------------------------------------------


def figures_of(name: str) -> dict[str, str]:
    """Figure of the test rows -> its row of the comparison."""
    return {key: title for family in of_name(name) for key, title in family.figures.items()}


def validation_of(name: str) -> dict[str, tuple[str, str]]:
    """Figure of validation -> (its row of the comparison, format)."""
    return {key: row for family in of_name(name) for key, row in family.validation.items()}


def pictures_of(name: str) -> dict[str, Picture]:
    """Figure of the test rows -> how the comparison's page draws it."""
    return {key: picture for family in of_name(name) for key, picture in family.pictures.items()}


def metrics_of(name: str) -> list[Metric]:
    """What versions have row by row."""
    return list({metric.name: metric for family in of_name(name) for metric in family.metrics}.values())


# --- what a run says --------------------------------------------------------------------------------------------------


def training_verbs() -> set[str]:
    """The verbs of stages whose time and memory a version costs."""
    return {"features", "merge"} | {family.trains for family in FAMILIES}


def run_figures(folder: Path) -> dict[str, float]:
    """The figures of an evaluation's out as metrics, those of every family that knows it."""
    found: dict[str, dict | float] = {}
    for family in FAMILIES:
        found |= family.run_figures(folder)
    return {key.replace(":", "_"): value for key, value in facts.flat_intervals(found).items()}


def result_files() -> set[str]:
    """Small files of evaluations that a run keeps."""
    return {name for family in FAMILIES for name in family.results}


def first_figures() -> list[str]:
    """The metrics by which a run was chosen, the first that it has."""
    return list(dict.fromkeys(f"validation/{next(iter(family.validation))}" for family in FAMILIES
                              if family.validation))
