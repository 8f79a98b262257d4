"""MLflow runs: one a stage and stage key, under one parent a set of inputs. The memory of what was done.

Find-or-create by tag, under a file lock: a retry, a second process or a second run of the same inputs finds the run
that is there. A run that a kill left RUNNING is found, completed and finished by the next `record`; what it has
already is not logged twice. Runs that somebody deleted are ignored, and made anew.

    parent(inputs_digest)          tag ajuste.inputs       one for the inputs of the whole default run
      begin(stage, key, parent)    tag ajuste.stage_key    RUNNING while the stage trains
      follow(run, history, seen)   new lines of history.jsonl as curves
      record(stage, parent)        all the rest, then FINISHED and tag ajuste.recorded
    finish(parent)                 its summary, then FINISHED
"""

from __future__ import annotations

import getpass
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.planning.check import against
from ajuste.tracking.project import lock
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.store import client, exists, experiment_id, locked, paged, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = ["begin", "fail", "finish", "follow", "is_recorded", "parent", "record", "tagged", "tracking_uri"]

KEY, INPUTS, RECORDED = "ajuste.stage_key", "ajuste.inputs", "ajuste.recorded"
SUMMED = (  # metrics that the parent run repeats
    "accuracy/", "macro_f1/", "proof/", "loss/", "proxy/", "gold/", "kl/", "forgetting/", "alignment/",
)  # fmt: skip
BATCH = 500  # MLflow takes 1000 entries a call, 100 of them params, 100 of them tags

_logged: dict[str, set[tuple[str, int]]] = {}  # curve points that a run has, by run id: asked of MLflow once


def parent(inputs_digest: str) -> str:
    """The run that stands for one set of inputs (lock.inputs_digest()), RUNNING until `finish`."""
    name = f"adapt {inputs_digest[:8]}"
    note = f"One set of inputs (`{inputs_digest[:16]}`). {facts.code()}."
    return _find_or_create(INPUTS, inputs_digest, name, {"mlflow.note.content": note, **facts.commit()}).info.run_id


def tagged(tag: str, value: str, name: str, tags: dict[str, str]) -> str:
    """The run with that tag, RUNNING until it is ended; made if there is none."""
    return _find_or_create(tag, value, name, tags).info.run_id


def begin(stage: str, key: str, parent: str) -> str:
    """The run of a stage that is about to start; RUNNING, unless these inputs have been recorded already."""
    return _find_or_create(KEY, key, stage, {"ajuste.stage": stage, "mlflow.parentRunId": parent}).info.run_id


def follow(run_id: str, history: Path, seen: int) -> int:
    """Log the whole lines of `history` after the first `seen`; returns how many it has now.

    A resumed stage may write its file anew or repeat steps: a file that became shorter is read from the start, and a
    point that the run has is skipped (equal inputs give equal values).
    """
    from mlflow.entities import Metric

    try:
        lines = history.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return seen
    lines = [line for line in lines if line.endswith("\n")]  # the last one may be half written
    have = _points(run_id)
    now, points = time.time_ns() // 1_000_000, []
    for line in lines[seen if seen <= len(lines) else 0 :]:
        row = json.loads(line)
        for name, value in facts.curve_points(row).items():
            if (name, row["step"]) not in have:
                have.add((name, row["step"]))
                points.append(Metric(name, value, now, row["step"]))
    for start in range(0, len(points), BATCH):
        client().log_batch(run_id, metrics=points[start : start + BATCH])
    return len(lines)


def is_recorded(key: str) -> bool:
    """Whether the run of this stage key is complete."""
    found = _find(KEY, key) if exists() else None
    return found is not None and RECORDED in found.data.tags


def record(stage: str, parent: str | None) -> str:
    """Everything about the stage as dvc.lock has it, in its run; returns the run's id. Doing it again changes nothing.

    Raises UsageError if the stage has not run.
    """
    with locked("record"):  # two processes that record one stage would both log its points
        return _record(stage, parent)


def finish(parent: str) -> None:
    """Sum up a parent run from its children, and end it."""
    from mlflow.entities import Metric

    children = sorted(
        paged(client().search_runs, [experiment_id()], f"tags.mlflow.parentRunId = '{parent}'"),
        key=lambda run: run.info.start_time,
    )
    run = client().get_run(parent)
    lines = [run.data.tags.get("mlflow.note.content", "").split("\n\n")[0], "", "| stage | result | seconds |",
             "|---|---|---|"]
    numbers: dict[str, float] = {}
    for child in children:
        metrics = child.data.metrics
        scores = {k: v for k, v in metrics.items() if k.startswith(SUMMED)}
        numbers |= scores
        first = next((key for key in families.first_figures() if key in metrics), None)
        shown = {k: v for k, v in metrics.items() if k == first} | facts.results(scores)
        result = ", ".join(f"{k} {v:.3f}" for k, v in shown.items())
        lines.append(f"| {child.info.run_name} | {result} | {metrics.get('cost/seconds', 0):.1f} |")
    numbers["cost/seconds"] = sum(child.data.metrics.get("cost/seconds", 0.0) for child in children)
    log(parent, metrics=[Metric(k, v, run.info.start_time, 0) for k, v in numbers.items()],
        tags={"mlflow.note.content": "\n".join(lines)})
    client().set_terminated(parent, "FINISHED")


def fail(run_id: str, message: str) -> None:
    """Mark a begun run FAILED, with the reason; the next attempt takes it up again."""
    client().set_tag(run_id, "ajuste.error", message[:1000])
    client().set_terminated(run_id, "FAILED")


def log(run_id: str, params: dict[str, str] | None = None, metrics: list | None = None,
        tags: dict[str, str] | None = None) -> None:
    """log_batch in portions that MLflow takes."""
    from mlflow.entities import Param, RunTag

    params_, tags_ = list((params or {}).items()), list((tags or {}).items())
    for start in range(0, max(len(params_), len(tags_)), 100):
        client().log_batch(
            run_id,
            params=[Param(k, str(v)[:6000]) for k, v in params_[start : start + 100]],
            tags=[RunTag(k, str(v)[:8000]) for k, v in tags_[start : start + 100]],
        )
    for start in range(0, len(metrics or []), BATCH):
        client().log_batch(run_id, metrics=metrics[start : start + BATCH])


def _record(stage: str, parent: str | None) -> str:
    from mlflow.entities import Metric

    entry, key = lock.entry(stage), lock.stage_key(stage)
    hang = {"mlflow.parentRunId": parent} if parent else {}
    run = _find_or_create(KEY, key, stage, {"ajuste.stage": stage, **hang})
    run_id = run.info.run_id
    if RECORDED in run.data.tags:
        return run_id
    measured = facts.state(stage, key)
    numbers = facts.metrics(entry, measured, families.run_figures) | against(stage, measured)
    # the run's own start as the time of a final number: the same point again is no second point
    log(run_id, facts.params(stage, entry), [Metric(k, v, run.info.start_time, 0) for k, v in numbers.items()])
    if history := facts.history(entry):
        follow(run_id, history, 0)
    client().log_inputs(run_id, _datasets(entry))
    _log_files(run_id, entry, measured)
    found = {
        **facts.tags(stage, entry),
        "dvc.lock.sha256": hashlib.sha256(lock.LOCK.read_bytes()).hexdigest(),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": entry["cmd"],
        "mlflow.source.type": "PROJECT",
        "mlflow.note.content": facts.describe(stage, entry, measured, numbers, families.first_figures()),
    }
    log(run_id, tags=found)
    log(run_id, tags={RECORDED: "true"})
    client().set_terminated(run_id, "FINISHED")
    _logged.pop(run_id, None)
    return run_id


def _find(tag: str, value: str) -> Run | None:
    """The oldest run, not deleted, whose tag has the value."""
    found = client().search_runs(
        [experiment_id()], f"tags.`{tag}` = '{value}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    return found[0] if found else None


def _find_or_create(tag: str, value: str, name: str, tags: dict[str, str]) -> Run:
    """The run with that tag, made if there is none; set to RUNNING unless it is a recorded one."""
    opened, experiment = client(), experiment_id()
    with locked():
        run = _find(tag, value)
        if run is None:
            return opened.create_run(experiment, tags={tag: value, **tags}, run_name=name)
    if RECORDED in run.data.tags:
        if run.info.status != "FINISHED":  # killed between the last two lines of `record`
            opened.set_terminated(run.info.run_id, "FINISHED")
    elif run.info.status != "RUNNING":
        opened.update_run(run.info.run_id, status="RUNNING")
        for old in {"ajuste.error"} & run.data.tags.keys():
            opened.delete_tag(run.info.run_id, old)
    return run


def _points(run_id: str) -> set[tuple[str, int]]:
    """(metric, step) of every curve point that MLflow has of the run."""
    if run_id not in _logged:
        names = [name for name in client().get_run(run_id).data.metrics if name.startswith("curve/")]
        _logged[run_id] = {(name, m.step) for name in names for m in client().get_metric_history(run_id, name)}
    return _logged[run_id]


def _datasets(entry: dict) -> list:
    """What the stage read and wrote under artifacts/ and data/, each with its DVC hash as its digest."""
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    found = []
    for kind in ("deps", "outs"):
        for item in entry.get(kind, []):
            if item["path"].startswith(("artifacts/", "data/")):
                source = LocalArtifactDatasetSource(item["path"])
                dataset = MetaDataset(source, name=item["path"], digest=item["md5"])._to_mlflow_entity()
                found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", kind.removesuffix("s"))]))
    return found


def _log_files(run_id: str, entry: dict, measured: dict) -> None:
    """dvc.lock, params.yaml, the environment, .state, and the small results of the stage, in one transfer."""
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        for path in (lock.LOCK, Path("params.yaml")):
            if path.exists():
                (staged / path.name).write_bytes(path.read_bytes())
        (staged / "environment.txt").write_text(facts.environment(), encoding="utf-8")
        (staged / "state.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        results = staged / "results"
        for out in entry.get("outs", []):
            path = Path(out["path"])
            files = [path] if path.is_file() else sorted(path.glob("*"))
            for file in files:
                if _is_result(file):
                    results.mkdir(exist_ok=True)
                    (results / file.name).write_bytes(file.read_bytes())
        client().log_artifacts(run_id, str(staged))


def _is_result(file: Path) -> bool:
    """Small files that say how it went; never rows of the data, never weights."""
    return file.name in (*facts.JSON_FILES, *families.result_files()) or file.parent.name == "metrics" or (
        file.suffix == ".json" and "confusion" in facts.read_json(file)
    )
