"""Every hour: are requests still like the training data? Deployment `drift` of infra/prefect.yaml.

For each served name with a request log: judge the new whole windows, record them in MLflow
(ajuste/tracking/verdicts/drift.py), show them in an artifact. When enough of the last windows drifted, the latest among
them, one event `ajuste.drift` is sent; automation `ajuste-drift` (flows/automations.py) answers it with a run of
deployment `adapt`.

The window is marked before the event is sent, so that a kill between the two costs an event and never sends a second.
"""

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.verdicts import drift as windows
from flows.automations import DRIFT_EVENT, MODEL


class NotJudged(Exception):
    """A model's requests could not be judged; the message says which and why."""


@flow(name="drift", log_prints=False)
def drift() -> dict[str, str]:
    """What was found of each name, in words. Fails, after all were judged, if one could not be."""
    found, failed = {}, {}
    for name in windows.names():
        try:
            found[name] = judge.with_options(task_run_name=f"judge {name}")(name)
        except (UsageError, DataError) as error:
            failed[name] = str(error)
    if not found and not failed:
        get_run_logger().info("no request log: `ajuste serve --log-requests` writes one")
    if failed:
        raise NotJudged("; ".join(failed.values()))
    return found


@task(name="judge", cache_policy=NO_CACHE, persist_result=False)
def judge(name: str) -> str:
    """Judge the new windows of one name, and ask for `adapt` if the rule holds. Returns what was found, in words."""
    new, log = windows.judge_new(name)
    state = windows.state(name)
    said = [f"{len(new)} new windows, {sum(window.drifts for window in new)} of them drifted, {log.waiting} requests "
            "wait for the next"]  # fmt: skip
    if log.skipped:
        said.append(f"{log.skipped} older windows were left out")
    if log.broken:
        said.append(f"{log.broken} lines of the log are broken, first {log.first_broken}")
    if state.asks:
        windows.triggered(state)
        newest = state.windows[0]
        emit_event(
            event=DRIFT_EVENT,
            resource={"prefect.resource.id": f"{MODEL}{name}", "prefect.resource.name": name},
            payload={"version": newest.version, "window": newest.run_id, "found": newest.text},
        )
        said.append("`adapt` was asked for")
    text = "; ".join(said)
    rows = [{"version": window.version, "drifts": window.drifts, "found": window.text, "MLflow run": window.run_id}
            for window in new or state.windows]  # fmt: skip
    create_table_artifact(key=f"drift-{name.lower().replace('_', '-')}", table=rows, description=text)
    get_run_logger().info("%s: %s", name, text)
    return text
