"""Everything that a version's cards say, gathered from its records; nothing here is worded, nothing is computed.

    tags        of the version: figures with intervals, digests, commit, merge proof, alignment ledger
    dvc.lock    the stages and sets behind it (lineage.py), the params of its training
    MLflow      seconds and memory of the stages that made it
    probes      artifacts/probes/: what outside suites found of these very weights
"""

from dataclasses import dataclass
from pathlib import Path

from ajuste.judging.alignment.ledger import Ledger
from ajuste.judging.suites import asked
from ajuste.judging.suites.asked import Asked
from ajuste.tracking.cards import lineage
from ajuste.tracking.cards.lineage import Package, Used
from ajuste.tracking.project import lock
from ajuste.tracking.registry.families import ledgers
from ajuste.tracking.registry.families.family import Family, judged
from ajuste.tracking.registry.logged import Model
from ajuste.tracking.registry.scores import JUDGES
from ajuste.tracking.runs import facts, runs
from ajuste.tracking.runs.store import client, experiment_id


@dataclass(frozen=True)
class Cost:
    """What a stage took on the machine that ran it; None: it was not measured there."""

    stage: str
    seconds: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Judge:
    """A model that judged this one."""

    name: str
    digest: str  # DVC's
    right: dict | None  # how often it is right: value, low, high, rows; None: its card does not say


@dataclass(frozen=True)
class Records:
    """What is known of one version."""

    name: str
    version: str
    family: Family
    tags: dict[str, str]
    params: dict[str, str]
    stages: tuple[str, ...]  # that made it, in the order of the lock
    sets: tuple[Used, ...]
    base: Package | None  # the package that the base came in
    costs: tuple[Cost, ...]
    judges: tuple[Judge, ...]
    ledger: Ledger | None
    probes: tuple[tuple[Asked, Ledger], ...]


def of(model: Model, number: str, tags: dict[str, str], params: dict[str, str]) -> Records:
    """The records of a registered model that dvc.lock names. params: of its training."""
    above = lineage.above(model.stage)
    judging = [stage for stage in (model.family.evaluate, model.family.forgetting, model.family.keeping,
                                   model.family.alignment) if stage and judged(stage, model.folder, model.md5)]
    trained = [name for name, entry in above.items() if lineage.is_training(name, entry)]
    shown = [name for name in above if name in trained or name == model.stage]
    return Records(
        name=model.name, version=number, family=model.family, tags=tags, params=params, stages=tuple(above),
        sets=tuple(lineage.used(model.stage, judging)),
        base=lineage.packages().get(tags["base_id"].partition("+")[0].lower()),
        costs=tuple(_cost(stage) for stage in shown), judges=tuple(_judges(tags)),
        ledger=ledgers.of_tags(tags), probes=tuple(asked.of_weights(tags["sha256"])),
    )  # fmt: skip


def _cost(stage: str) -> Cost:
    """From the stage's run, which this machine or another one recorded."""
    wanted = f"tags.`{runs.KEY}` = '{lock.stage_key(stage)}'"
    found = client().search_runs([experiment_id()], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    metrics = found[0].data.metrics if found else {}
    return Cost(stage, metrics.get("cost/seconds"), metrics.get("cost/peak_memory_mb"))


def _judges(tags: dict[str, str]) -> list[Judge]:
    """The models that judged, by their tags; how right they are where dvc.lock still names them."""
    outs = {out["path"]: out["md5"] for entry in lock.every().values() for out in entry.get("outs", [])}
    found = []
    for name, folder in JUDGES.items():
        digest, path = tags.get(f"judge.{name}"), Path("artifacts/merged") / folder
        if digest:
            card = facts.read_json(path / "ajuste.json") if outs.get(path.as_posix()) == digest else {}
            found.append(Judge(name, digest, card.get("accuracy_on_ratings")))
    return found
