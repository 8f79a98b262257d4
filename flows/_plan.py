"""What a run will do, said before it starts. Nothing here needs Prefect: `ajuste run` asks before that is imported.

A target is a stage or a registered name, and a run of it is a run of all that it reads, by deps and outs of dvc.yaml:

    reviews-classifier, ratings-reward     <set>-<kind>, the set from params.yaml: what trains, merges and judges one
    assistant                              every method that makes one; assistant:<method> is one of them
    encode_reviews                         that stage
    (none)                                 every stage of dvc.yaml

At its end a run registers and judges the names whose stages it has all reached; no list of last stages stands anywhere.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.params import lookup, read_yaml
from ajuste.core.stages import split_name, stage_names
from ajuste.judging.policy import check_policy
from ajuste.tracking.project import dvc, lock, raw_data
from ajuste.tracking.project.check import check_params
from ajuste.tracking.registry.families.all import FAMILIES
from flows._found import recorded
from flows._progress import console


@dataclass(frozen=True)
class Asked:
    """What a person or a deployment asks of a run."""

    targets: tuple[str, ...] = ()
    from_stage: str | None = None  # is run again even if it is fresh; what stands before it in dvc.yaml is left alone
    until: str | None = None  # what stands after it in dvc.yaml is left alone


@dataclass(frozen=True)
class Look:
    """What DVC found, and what follows from it."""

    stale: set[str]  # stages that DVC finds changed, and the one that is run again in any case
    skipped: set[str]
    reached: set[str]  # what the targets need; with --from the stages before it stand as they are
    names: set[str]  # registered names that the run can judge at its end: it reaches all stages of them


def stages_of_names() -> dict[str, set[str]]:
    """Registered name -> the stages that train, merge and judge a version of it, with today's sets; and where several
    methods stand under one name, `assistant:<method>` -> those of one."""
    params, order = read_yaml(Path("params.yaml")), stage_names()
    names = [family.registered for family in FAMILIES]
    found: dict[str, set[str]] = {}
    for family in FAMILIES:
        judge = {family.evaluate, family.forgetting, family.keeping, family.alignment}
        own = ({family.merge} | judge) & set(order)
        own |= {stage for stage in order if split_name(stage)[0] == family.trains}
        if not own:  # a study makes them
            continue
        name = family.registered
        if "{set}" in name:
            name = name.format(set=lookup(params, f"validate.{family.encoded.name}.set"))
        found[name] = found.get(name, set()) | own
        if names.count(family.registered) > 1:
            found[f"{name}:{family.method}"] = own
    return found


def reach(asked: Asked) -> set[str]:
    """The stages that the targets need, up to `until`. Raises UsageError for a name that is none."""
    order = stage_names()
    for name in (asked.from_stage, asked.until):
        if name is not None and name not in order:
            raise UsageError(f"dvc.yaml has no stage `{name}`: stages are {', '.join(order)}")
    of_names = stages_of_names() if asked.targets else {}
    found: set[str] = set() if asked.targets else set(order)
    for target in asked.targets:
        own = {target} if target in order else of_names.get(target.removesuffix("-adapter"))
        if own is None:
            raise UsageError(f"`{target}` is neither a registered name nor a stage: names are {', '.join(of_names)}; "
                             f"stages are {', '.join(order)}")
        found |= own
    todo = list(found)
    while todo:
        new = lock.parents_of(todo.pop()) - found
        found |= new
        todo += new
    if asked.until:
        found &= set(order[: order.index(asked.until) + 1])
    if asked.from_stage and asked.from_stage not in found:
        raise UsageError(f"stage `{asked.from_stage}` is not among those that would run: {', '.join(sorted(found))}")
    return found


def check(asked: Asked) -> set[str]:
    """Refuse what cannot run: names, params, policy, raw data. Returns the stages that the run would reach."""
    check_params()
    check_policy()
    reached = reach(asked)
    dvc.heal()
    raw_data.check()
    return reached


def look(asked: Asked) -> Look:
    """Ask DVC once what is stale, and say what will run and how long it took last time."""
    order, reached = stage_names(), reach(asked)
    stale = dvc.status().keys() & set(order)
    skipped = set(order) - reached
    if asked.from_stage:
        stale |= {asked.from_stage}
        skipped |= set(order[: order.index(asked.from_stage)])
    todo: list[str] = []
    for name in order:  # a stage follows those that it reads
        if name not in skipped and (name in stale or not lock.parents_of(name).isdisjoint(todo)):
            todo.append(name)
    if todo:
        console.print(forecast(todo, len(order) - len(skipped)), soft_wrap=True, highlight=False)
        fresh = "evaluate_classify" in todo and all(last_seconds(name) is None for name in todo)
        if fresh and (known := recorded()):
            console.print(f"  {known}", soft_wrap=True, highlight=False)
    names = {name.partition(":")[0] for name, own in stages_of_names().items() if own <= reached}
    return Look(stale, skipped, reached, names)


def forecast(todo: list[str], of: int) -> str:
    """"to run: 2 of 9 stages, about 1 min 40 s by their last runs here", and a line of all of them."""
    seconds = {name: last_seconds(name) for name in todo}
    known = sum(value for value in seconds.values() if value is not None)
    new = sum(value is None for value in seconds.values())
    took = f"about {in_words(known)} by their last runs here" if new < len(todo) else "how long is not known yet"
    if 0 < new < len(todo):
        took += f", {new} of them not known yet"
    each = ", ".join(f"{name} {'?' if value is None else in_words(value)}" for name, value in seconds.items())
    return f"[bold]to run: {len(todo)} of {of} stages[/], {took}\n  {each}"


def last_seconds(name: str) -> float | None:
    """Seconds of a stage's last whole run in this home, None if there was none."""
    try:
        state = json.loads((home() / ".state" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return None if state.get("error") else state.get("seconds")


def in_words(seconds: float) -> str:
    """12.4 -> "12 s", 100 -> "1 min 40 s", 4000 -> "1 h 7 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# --- while Prefect starts, DVC is asked ------------------------------------------------------------------------------

_looking: dict[Asked, Future] = {}


def look_ahead(asked: Asked) -> None:
    """Begin to look, in a thread; `looked` takes the answer."""
    pool = ThreadPoolExecutor(1)
    _looking[asked] = pool.submit(look, asked)
    pool.shutdown(wait=False)


def looked(asked: Asked) -> Look:
    """The answer that `look_ahead` has begun, else one that is asked now."""
    return _looking.pop(asked).result() if asked in _looking else look(asked)
