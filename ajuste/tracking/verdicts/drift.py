"""Windows of requests, judged and remembered: experiment `drift` in MLflow, one run a window.

    judge_new(name)      the windows of the log that nobody judged yet, each recorded once, oldest first
    state(name)          the last `of` windows, and whether they ask for `adapt`
    triggered(state)     marks that it was asked for, so that one drift asks once: the count starts anew
    judge_latest(name)   the report on the latest window; judge_file(name, file, ...) on a file. Both record nothing

A window is known by the digest of its lines, in tag `drift.window`: judged twice, by two processes or after a restart,
it is one run. The rule, "2 of the last 5 windows and the latest", is computed from these runs alone. Windows count for
the version that answered: a new version has new training data, and its count begins anew.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.judging.policy import policy
from ajuste.judging.verdicts.drift import DriftConfig, Report, Sample, drift
from ajuste.rows.request_log import Log, Request, log_files, read_windows
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families.all import of_users
from ajuste.tracking.runs import runs
from ajuste.tracking.runs.store import DRIFT, client, exists, experiment_id, locked
from ajuste.tracking.verdicts.baseline import Baseline, baseline

if TYPE_CHECKING:
    from mlflow.entities import Run

WINDOW, NAME, VERSION = "drift.window", "drift.name", "drift.version"
LAST, VERDICT, TRIGGERED, RECORDED = "drift.last", "drift.verdict", "drift.triggered", "drift.recorded"
YES, NO = "drift", "no drift"


@dataclass(frozen=True)
class Window:
    """A recorded window."""

    run_id: str
    name: str
    version: str
    drifts: bool
    triggered: bool
    last: str  # digest of its last line
    text: str


@dataclass(frozen=True)
class State:
    """The windows of a version, newest first, since the last time that `adapt` was asked for, at most `of`."""

    windows: list[Window]
    asks: bool


def config_of() -> DriftConfig:
    """Section `drift` of policy.yaml. Raises UsageError if it is missing or wrong."""
    return policy("drift", DriftConfig)


def names() -> list[str]:
    """Registered names that have a request log, and whose texts can drift."""
    known = [name for name in registry.names() if of_users(name) and not name.endswith("-adapter")]
    return [name for name in known if log_files(_folder(), name)]


def judge_new(name: str) -> tuple[list[Window], Log]:
    """Judge and record the whole windows that are new, at most `of`; what else the log held.

    Raises UsageError: no log, no version that answers, or its training data is not here.
    """
    config, version = config_of(), registry.resolve(name)
    with locked("drift"):  # two processes would judge the same windows, and number them alike
        before = _recorded(name, version.version, 1)
        after = before[0].last if before else None
        log = read_windows(_files(name), version.version, config.window, config.of, after)
        if not log.windows:
            return [], log
        data = baseline(version, config)
        return [_record(data, window, _judge(data, window)) for window in log.windows], log


def state(name: str) -> State:
    """What the recorded windows of the version that answers now say."""
    config = config_of()
    found = _recorded(name, registry.find(name).version, config.of) if exists() else []
    for i, window in enumerate(found):
        if window.triggered:
            found = found[:i]
            break
    drifted = sum(window.drifts for window in found)
    return State(found, bool(found) and found[0].drifts and drifted >= config.drifted)


def triggered(asked: State) -> None:
    """Remember that the latest window asked for `adapt`; the windows up to it count no more."""
    client().set_tag(asked.windows[0].run_id, TRIGGERED, "true")


def judge_latest(name: str) -> tuple[Report, Log]:
    """The report on the latest window of the log, recorded or not. Raises UsageError as `judge_new`, DataError if the
    log holds less than a window."""
    config, version = config_of(), registry.resolve(name)
    files = _files(name)
    log = read_windows(files, version.version, config.window, 1)
    if not log.windows:
        others = f" ({log.others} of other versions)" if log.others else ""
        broken = f"; {log.broken} lines are broken, first {log.first_broken}" if log.broken else ""
        raise DataError(f"{files[-1]} holds {log.waiting} requests of {name}/{version.version}{others}, and a window "
                        f"is {config.window}: wait for more, or lower `drift.window`{broken}")  # fmt: skip
    data = baseline(version, config)
    return _judge(data, log.windows[0]), log


def judge_file(name: str, texts: list[str], labels: list[str] | None) -> Report:
    """The report on texts of a file, with true labels or none. More than `drift.window` of them are thinned evenly."""
    config = config_of()
    data = baseline(registry.resolve(name), config)
    chosen = range(len(texts))
    if len(texts) > config.window:
        chosen = [i * len(texts) // config.window for i in range(config.window)]
    kept = [texts[i] for i in chosen]
    if labels is None:
        return drift(config, data.sample, Sample(kept, data.predict(kept), data.embed(kept)), data.vocabulary)
    window = Sample(kept, [labels[i] for i in chosen], data.embed(kept))
    return drift(config, data.labelled(), window, data.vocabulary)


def _judge(data: Baseline, window: list[Request]) -> Report:
    texts = [request.text for request in window]
    labels = [request.label for request in window]
    said = None if any(label is None for label in labels) else labels
    return drift(data.config, data.sample, Sample(texts, said, data.embed(texts)), data.vocabulary)


def _record(data: Baseline, window: list[Request], report: Report) -> Window:
    """The run of a window, found or made; it counts once it has the tag `drift.recorded`."""
    from mlflow.entities import Metric

    name, version = data.version.name, data.version.version
    digest = hashlib.sha256("\n".join(request.digest for request in window).encode()).hexdigest()[:32]
    opened, experiment = client(), experiment_id(DRIFT)
    same = f"tags.`{WINDOW}` = '{digest}' and tags.`{NAME}` = '{name}'"
    found = opened.search_runs([experiment], same, max_results=1)
    if found and RECORDED in found[0].data.tags:
        return _window(found[0])
    newest = opened.search_runs([experiment], max_results=1, order_by=["attributes.start_time DESC"])
    began = max(int(time.time() * 1000), newest[0].info.start_time + 1 if newest else 0)  # the order of the windows
    run = found[0] if found else opened.create_run(
        experiment, start_time=began, tags={WINDOW: digest, NAME: name, VERSION: version},
        run_name=f"{name}/{version} {window[0].time[:16]}",
    )  # fmt: skip
    numbers = {"drifts": float(report.drifts), "rows": float(report.rows)}
    for finding in report.findings:
        numbers |= {f"effect/{finding.name}": finding.effect, f"p/{finding.name}": finding.p}
    runs.log(
        run.info.run_id,
        params={f"drift.{key}": str(value) for key, value in data.config.model_dump().items()},
        metrics=[Metric(key, value, run.info.start_time, 0) for key, value in numbers.items()],
        tags={VERDICT: YES if report.drifts else NO, LAST: window[-1].digest, "mlflow.note.content": report.text(),
              "drift.from": window[0].time, "drift.to": window[-1].time},
    )  # fmt: skip
    opened.set_tag(run.info.run_id, RECORDED, "true")
    opened.set_terminated(run.info.run_id, "FINISHED")
    return _window(opened.get_run(run.info.run_id))


def _recorded(name: str, version: str, most: int) -> list[Window]:
    """The recorded windows of a version, newest first."""
    wanted = f"tags.`{NAME}` = '{name}' and tags.`{VERSION}` = '{version}' and tags.`{RECORDED}` = 'true'"
    found = client().search_runs(
        [experiment_id(DRIFT)], wanted, max_results=most, order_by=["attributes.start_time DESC"]
    )
    return [_window(run) for run in found]


def _window(run: Run) -> Window:
    tags = run.data.tags
    return Window(run.info.run_id, tags[NAME], tags[VERSION], tags[VERDICT] == YES, tags.get(TRIGGERED) == "true",
                  tags[LAST], tags["mlflow.note.content"])  # fmt: skip


def _folder() -> Path:
    return home() / ".requests"


def _files(name: str) -> list[Path]:
    if not (files := log_files(_folder(), name)):
        raise UsageError(f"no request of `{name}` was logged: start the server with `ajuste serve --log-requests`, "
                         "or judge a file of texts with --file")  # fmt: skip
    return files
