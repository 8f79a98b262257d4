"""How the lines of pipeline.py run: one Prefect task a stage, one artifact a task, one retry rule for all."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefect import State, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import deployment

from ajuste.core import checkpoints, room
from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.stages import stage_key, stage_names
from ajuste.tracking.planning.check import refuse
from ajuste.tracking.project import dvc, lock, publish
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.register import unfinished
from ajuste.tracking.runs import runs
from flows import _found
from flows._patience import outlive_worker, patiently, shown, unless_unreachable
from flows._plan import Asked, check, in_words, last_seconds, looked, stages_of_names
from flows._progress import Follower, begins, console, say, warn


class StageFailed(Exception):
    """A stage ended with an error of a kind: data, usage, room, infra, bug or interrupted."""

    def __init__(self, name: str, kind: str, message: str) -> None:
        super().__init__(f"stage `{name}`: {message}")
        self.kind = kind


@dataclass
class Plan:
    """What this run will do, and what it did so far."""

    stale: set[str]
    skipped: set[str]  # what the targets do not need, and what stands outside of --from and --until
    forced: str | None
    parent: str | None  # MLflow's parent run; None when nothing is stale
    actions: dict[str, str] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)  # stages whose models are registered, if some name is complete
    names: set[str] = field(default_factory=set)  # registered names that are complete: all their stages are reached
    began: float = field(default_factory=time.monotonic)


def prepare(asked: Asked) -> Plan:
    """Check params and data, ask DVC once what is stale."""
    outlive_worker()
    check(asked)
    checkpoints.sweep()  # of a run that was killed when DVC had the result
    found = looked(asked)
    wanted = [name for name in stage_names() if name not in found.skipped]
    needed = not found.stale.isdisjoint(wanted) or not all(patiently(_recorded, name) for name in wanted)
    needed = needed or bool(found.names) and patiently(unfinished, found.reached)
    parent = patiently(runs.parent, lock.inputs_digest()) if needed else None
    return Plan(found.stale, found.skipped, asked.from_stage, parent, reached=found.reached, names=found.names)


def stage(name: str, plan: Plan, wait_for: list[State] | None = None) -> State | None:
    """Run one stage as a Prefect task, in this line of the map; a failure ends the flow."""
    if name in plan.skipped:
        return None
    # a stage is up to date when DVC said so at the start and nothing that it reads was made anew since
    made = {done for done, action in plan.actions.items() if action in ("ran", "restored")}
    stale = name in plan.stale or not made.isdisjoint(lock.parents_of(name))
    state = run_stage.with_options(name=name, task_run_name=name)(
        name,
        stale,
        name == plan.forced,
        plan.parent,
        return_state=True,
        wait_for=[state for state in wait_for or [] if state is not None],
    )
    if not state.is_completed():
        say(name, "failed")
        if plan.parent:
            unless_unreachable(None, runs.fail, plan.parent, f"stage {name} failed")
        state.result(raise_on_failure=True)
    plan.actions[name] = state.result()
    return state


def retry_infra(task: object, run: object, state: State) -> bool:
    """Infrastructure failures are tried again; data and usage errors, full disks, bugs and interrupts never."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.kind == "infra"


@task(
    retries=2, retry_delay_seconds=[2, 20], retry_condition_fn=retry_infra, cache_policy=NO_CACHE, persist_result=False
)
def run_stage(name: str, stale: bool, force: bool, parent: str | None) -> str:
    """`dvc repro --single-item`, then the MLflow run. Returns "ran", "restored" or "cached"."""
    action = _repro(name, force, parent) if stale else "cached"
    run_id = patiently(runs.record, name, parent) if parent else None
    if action != "cached":
        checkpoints.forget(lock.stage_key(name))
    state = _state(name) if action == "ran" else {}
    say(name, action, state.get("seconds"), _note(state, _found.found(lock.stages().get(name, {}))))
    for alarm in _alarms(name):
        warn(alarm)
    _table(name, action, state, run_id)
    return action


def _repro(name: str, force: bool, parent: str) -> str:
    state_file = home() / ".state" / f"{name}.json"
    before = state_file.stat().st_mtime_ns if state_file.exists() else 0
    key = stage_key(name)
    try:
        refuse(name)
    except UsageError as error:
        raise StageFailed(name, "usage", str(error).removeprefix(f"stage `{name}` ")) from None
    run_id = patiently(runs.begin, name, key, parent)
    took = last_seconds(name)
    begins(name, f"{in_words(took)} last time" if took else "")
    history = home() / ".checkpoints" / key / "history.jsonl"
    seen = 0

    with Follower(name, history) as follower:

        def poll() -> None:
            nonlocal seen
            follower.update()
            seen = unless_unreachable(seen, runs.follow, run_id, history, seen)  # `record` makes up for what is missing

        log = home() / ".state" / f"{name}.log"
        outcome = dvc.repro(name, log, force=force, poll=poll)
    if outcome.code != 0:
        written = state_file.exists() and state_file.stat().st_mtime_ns != before
        error = (_state(name).get("error") or {}) if written else {}
        # DVC hides the exit code; a stage that wrote no error was killed, had no room for it, or DVC itself failed
        full = room.says_full(outcome.output) or room.is_full(Path.cwd()) or room.is_full(home())
        kind = error.get("kind", "room" if full else "infra")
        message = error.get("message") or f"{dvc.last_error(outcome.output)} (all of it: {_shown(log)})"
        if kind == "room":
            message = f"{message}{_prunable()}"
        unless_unreachable(None, runs.fail, run_id, message)
        raise StageFailed(name, kind, message)
    return {"unchanged": "cached"}.get(outcome.action, outcome.action)


@task(
    name="register",
    task_run_name="register",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=2,
)
def _register(parent: str, stages: list[str]) -> list:
    return patiently(registry.register_all, parent, stages)


@task(
    name="publish",
    task_run_name="publish",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[10, 60, 180],
)
def _publish() -> None:
    """A deployed run leaves its dvc.lock as a git ref and its results in the DVC remote, if there is one."""
    ref = publish.keep()
    pushed = publish.push()
    console.print(f"{'':<20} dvc.lock is kept as {ref}{'; results are in the DVC remote' if pushed else ''}")


def register(plan: Plan, wait_for: list[State | None]) -> list:
    """Register what is new of the stages that the run reached, and put the alias `challenger` on the best.

    Nothing when the run stops before a judge. What a judged model stands on is registered with it, so that it can name
    that version; it is judged itself when a run reaches its own judge.
    """
    if not plan.names or plan.parent is None:
        return []
    return _register(plan.parent, sorted(plan.reached), wait_for=[state for state in wait_for if state is not None])


def finish(plan: Plan, registered: list, gated: Sequence[str] = ()) -> dict:
    """The last summary: what ran, what was cached, what the gate did, which version answers, where to look."""
    if plan.parent:
        patiently(runs.finish, plan.parent)
    if deployment.id:
        _publish()
    ran = sorted(name for name, action in plan.actions.items() if action != "cached")
    cached = sorted(name for name, action in plan.actions.items() if action == "cached")
    answers = patiently(registry.summary)
    lines = [
        f"**{len(ran)} stages ran**: {', '.join(ran)}" if ran else "**Nothing was stale: no stage was started.**",
        f"{len(cached)} stages were up to date: {', '.join(cached)}" if cached else "",
        *(f"**Gate**: {done}" for done in gated),
        *(f"`{name}`: {text}" for name, text in answers.items()),
        "Look further: `ajuste compare NAME`, `ajuste report`, `ajuste ui`, `ajuste serve`.",
    ]
    shown(create_markdown_artifact, key="summary", markdown="\n\n".join(line for line in lines if line))
    seconds = time.monotonic() - plan.began
    console.print()
    if ran:
        console.print(f"[bold]{len(ran)} ran, {len(cached)} up to date[/] in {seconds:.0f} s")
    else:
        console.print(f"[bold]Nothing to do[/]: all {len(cached)} stages are up to date ({seconds:.0f} s)")
    for name, text in answers.items():
        console.print(f"  {name}: {text}")
    if not plan.names and ran:
        known = ", ".join(name for name in sorted(stages_of_names()) if ":" not in name)
        said = f"  nothing was registered: `ajuste run NAME` goes on to a judged version of {known}"
        console.print(said, soft_wrap=True)
    console.print("  next: `ajuste compare NAME`, `ajuste report`, `ajuste ui`, `ajuste serve`")
    made = [f"{version.name}/{version.version}" for version in registered]
    return {"ran": ran, "cached": cached, "registered": made, "gate": list(gated)}


def _prunable() -> str:
    """What `ajuste prune` would give back, as the end of a line; "" where that cannot be told now."""
    from ajuste.tracking.pruning import prune  # heavy, and seldom needed

    try:
        return f" (it would free {room.said(prune.plan(room.KEEP).size)})"
    except Exception as error:  # MLflow's database may stand on the very disk that is full
        get_run_logger().warning("what `ajuste prune` would free is not known: %s", error)
        return ""


def _recorded(name: str) -> bool:
    try:
        return runs.is_recorded(lock.stage_key(name))
    except UsageError:
        return False


def _state(name: str) -> dict:
    try:
        return json.loads((home() / ".state" / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}


def _note(state: dict, result: str) -> str:
    """What a stage took and what it found, after its seconds; nothing of one that was not run."""
    parts = [f"{state['peak_memory_mb']:.0f} MB"] if state.get("peak_memory_mb") else []
    if state.get("tokens_per_second"):
        parts.append(f"{state['tokens_per_second']:.0f} tokens/s")
    return "; ".join(part for part in (", ".join(parts), result if state else "") if part)


def _alarms(name: str) -> list[str]:
    """What went wrong in a training, and where it was taken back, in words: alarms.json in the outs of the stage."""
    found = []
    for out in lock.stages().get(name, {}).get("outs", []):
        try:
            alarms = json.loads((Path(out["path"]) / "alarms.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for alarm in alarms:
            back = f"; rolled back to update {alarm['rolled_back_to']}" if "rolled_back_to" in alarm else ""
            found.append(alarm["said"] + back)
    return found


def _table(name: str, action: str, state: dict, run_id: str | None) -> None:
    row = {
        "stage": name,
        "action": action,
        "seconds": state.get("seconds"),
        "peak memory MB": state.get("peak_memory_mb"),
        "tokens/s": state.get("tokens_per_second"),
        "MLflow run": run_id,
    }
    key = f"stage-{name.replace('_', '-')}"
    shown(create_table_artifact, key=key, table=[row], description=f"What stage {name} did")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
