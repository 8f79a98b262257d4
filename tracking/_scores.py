"""Test figures of a registered version, and which version is the best on validation.

    scores_of     from the stages that judged these very weights (dvc.lock names them by hash)
    log_scores    onto the version's page in MLflow and the runs that made it
    rank          `challenger` goes to the best on validation; tag `unranked` says until then that this is to be done
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from tracking import _facts, _families, runs, versions
from tracking._families import Family
from tracking._logged import Model
from tracking._store import client, locked
from tracking._tags import unfold


def scores_of(model: Model, parent: str | None) -> dict[str, str]:
    """The test figures of a served model as tags; {} if dvc.lock has no evaluation of these very weights."""
    figures, judges = _families.scores(model.family, model.folder, model.md5, model.card["strategy"])
    if not figures:
        return {}
    recorded = {stage: runs.record(stage, parent) for stage in judges}
    run = recorded.get(model.family.evaluate) or next(iter(recorded.values()))
    return {key: text(value) for key, value in figures.items()} | {
        "test_rows": rows_digest(model.family, "test"), "evaluate_run": run}


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
    when = opened.get_run(scores["evaluate_run"] if scores else run_id).info.start_time
    judged = {_metric(key): float(value) for key, value in scores.items() if key.startswith(("test.", "forgetting."))}
    numbers = {f"validation/{key}": value for key, value in model.card["validation"].items()} | judged
    rows = _dataset(model.family)
    runs.log(run_id, metrics=[Metric(k, v, when, 0, tags["model_id"], *rows) for k, v in numbers.items()])
    if judged and model.trained:  # the run that trained it: proved to be the same model
        trained = runs.record(stage_of(model.trained), None)
        runs.log(trained, metrics=[Metric(k, v, when, 0) for k, v in judged.items()])


def _metric(tag: str) -> str:
    """test.accuracy.low -> test/accuracy_low"""
    group, _, rest = tag.partition(".")
    return _facts.metric_name(f"{group}/{rest.replace('.', '_')}")


def stage_of(folder: Path) -> str:
    """The stage whose out the folder is."""
    return next(stage for stage, entry in versions.lock().items()
                if any(Path(out["path"]) == folder for out in entry.get("outs", [])))


def rows_digest(family: Family, split: str) -> str:
    """A digest of what a split asks: figures are comparable where it is the same. "" if the split is not there.

    The ids of its rows, and where a row has them its trained tokens: a mean over other tokens is another figure.
    """
    import pyarrow.parquet as pq

    path = family.encoded / f"{split}.parquet"
    if not path.exists():
        return ""
    file = pq.ParquetFile(path)
    names = [name for name in ("row_id", "labels") if name in file.schema_arrow.names]
    lines = sorted(" ".join(map(str, row.values())) for row in file.read(columns=names).to_pylist())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _dataset(family: Family) -> tuple[str | None, str | None]:
    """(name, digest) of the encoded rows, as the runs have them among their inputs."""
    path = family.encoded.as_posix()
    outs = [out for entry in versions.lock().values() for out in entry.get("outs", []) if out["path"] == path]
    return (path, outs[0]["md5"]) if outs else (None, None)


def text(value: object) -> str:
    """A tag's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def rank(name: str, family: Family) -> None:
    """Give `challenger` to the best on validation, if a version is unranked or the alias is missing.

    Only versions whose validation rows are those of the newest one can be compared. The highest macro-F1 wins, of
    assistants the lowest loss; equals go to the one with fewer trainable parameters, then to the older one.
    """
    opened = client()
    with locked():
        found = sorted(opened.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))
        current = {alias: str(number) for alias, number in opened.get_registered_model(name).aliases.items()}
        unranked = [version for version in found if "unranked" in version.tags]
        if not found or ("challenger" in current and not unranked):
            return
        facts = {version.version: unfold(version.tags) for version in found}
        rows = facts[(unranked or found)[-1].version].get("validation_rows")
        group = [version for version in found if facts[version.version].get("validation_rows") == rows]

        def order(version: object) -> tuple:
            tags = facts[version.version]
            figure = float(tags[f"validation.{family.best}"])
            return figure if family.lower else -figure, int(tags["parameters.trainable"]), int(version.version)

        best = min(group, key=order)
        if current.get("challenger") != str(best.version):
            before = f"before it version {current['challenger']}" if "challenger" in current else "the first"
            why = (f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: best validation {family.best_name} "
                   f"{float(facts[best.version][f'validation.{family.best}']):.4f} of {len(group)} versions, {before}")
            opened.set_model_version_tag(name, best.version, "alias.challenger", why)
            opened.set_registered_model_alias(name, "challenger", best.version)
        for version in unranked:
            opened.delete_model_version_tag(name, version.version, "unranked")
