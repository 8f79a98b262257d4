"""Test figures of a registered version, and the digest of the rows that they are of.

    scores_of     from the stages that judged these very weights (dvc.lock names them by hash)
    log_scores    onto the version's page in MLflow and the runs that made it
"""

import hashlib
import json
from pathlib import Path

from ajuste.tracking.project import lock
from ajuste.tracking.registry.families import ledgers
from ajuste.tracking.registry.families.family import Family
from ajuste.tracking.registry.logged import Model
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.runs import facts, runs
from ajuste.tracking.runs.store import client

JUDGES = {"gold": "gold", "reward": "reward", "second": "classify_full"}  # of an evaluation -> their folders


def scores_of(model: Model, parent: str | None) -> dict[str, str]:
    """The test figures of a served model as tags; {} if dvc.lock has no evaluation of these very weights."""
    figures, judges = model.family.scores(model.folder, model.md5, model.strategy)
    if not figures:
        return {}
    recorded = {stage: runs.record(stage, parent) for stage in judges}
    of_rows = {stage: run for stage, run in recorded.items() if stage not in (model.family.alignment, ledgers.OF_BASE)}
    run = of_rows.get(model.family.evaluate) or next(iter(of_rows.values()), None)
    tested = {"test_rows": rows_digest(model.family, "test"), "evaluate_run": run} if run else {}
    judged_by = _judges(model.family.evaluate) if model.family.evaluate in judges else {}
    return {key: text(value) for key, value in figures.items()} | judged_by | tested | {
        f"run.{stage}": of for stage, of in recorded.items() if of != run}


def _judges(stage: str) -> dict[str, str]:
    """The DVC hashes of the models that judged, as tags: scores of other judges do not compare."""
    deps = {Path(dep["path"]): dep["md5"] for dep in lock.entry(stage).get("deps", [])}
    return {f"judge.{name}": deps[path] for name, folder in JUDGES.items()
            if (path := Path("artifacts/merged") / folder) in deps}


def log_scores(model: Model, run_id: str, number: str, scores: dict[str, str]) -> None:
    """Validation and test figures on the version's page, and test figures on the runs that made it.

    With the time of the evaluation, so that doing it again makes no second point.
    """
    from mlflow.entities import Metric

    opened = client()
    tags = unfold(opened.get_model_version(model.name, number).tags)
    if tags.get("dvc") != model.md5:
        return
    named = json.dumps([{"name": model.name, "version": number}])  # MLflow's page of the model finds its version by it
    opened.set_logged_model_tags(tags["model_id"], {"mlflow.modelVersions": named})
    when = opened.get_run(scores.get("evaluate_run", run_id)).info.start_time
    judged = {_metric(key): float(value) for key, value in scores.items() if key.startswith(("test.", "forgetting."))}
    judged |= ledgers.version_figures(scores)
    numbers = {f"validation/{key}": value for key, value in model.card["validation"].items()} | judged
    rows = _dataset(model.family)
    there = {(point.key, point.timestamp, point.run_id) for point in opened.get_logged_model(tags["model_id"]).metrics
             or ()}  # of more than a hundred MLflow takes none twice: UNIQUE constraint failed
    runs.log(run_id, metrics=[Metric(k, v, when, 0, tags["model_id"], *rows) for k, v in numbers.items()
                              if (k, when, run_id) not in there])  # fmt: skip
    if judged and model.trained:  # the run that trained it: proved to be the same model
        trained = runs.record(stage_of(model.trained), None)
        runs.log(trained, metrics=[Metric(k, v, when, 0) for k, v in judged.items()])


def _metric(tag: str) -> str:
    """test.accuracy.low -> test/accuracy_low"""
    group, _, rest = tag.partition(".")
    return facts.metric_name(f"{group}/{rest.replace('.', '_')}")


def stage_of(folder: Path) -> str:
    """The stage whose out the folder is."""
    return next(stage for stage, entry in lock.every().items()
                if any(Path(out["path"]) == folder for out in entry.get("outs", [])))


def rows_digest(family: Family, split: str) -> str:
    """A digest of what a split asks: figures are comparable where it is the same. "" if the split is not there.

    The ids of its rows, and where a row has them its trained tokens: a mean over other tokens is another figure.
    """
    import pyarrow.parquet as pq

    path = family.encoded / family.rows.format(split=split)
    if not path.exists():
        return ""
    file = pq.ParquetFile(path)
    names = [name for name in ("row_id", "labels") if name in file.schema_arrow.names]
    lines = sorted(" ".join(map(str, row.values())) for row in file.read(columns=names).to_pylist())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _dataset(family: Family) -> tuple[str | None, str | None]:
    """(name, digest) of the encoded rows, as the runs have them among their inputs."""
    path = family.encoded.as_posix()
    outs = [out for entry in lock.stages().values() for out in entry.get("outs", []) if out["path"] == path]
    return (path, outs[0]["md5"]) if outs else (None, None)


def text(value: object) -> str:
    """A tag's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)

