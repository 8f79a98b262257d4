"""Before a stage starts: does its plan fit what is free? After it: how far was the plan off?

    refuse("instruct")       raises UsageError when it does not fit, with what to change; `ajuste run` asks it
    changes(...)             what makes it fit, each tried on the plan itself
    against("instruct", state)   {"cost/planned_memory_mb", "cost/plan_error"}: planned / measured - 1

The measured peak is the whole process's, so what the imports take is added to the plan; a stage that keeps freed memory
(ajuste/core/allocator.py) measures higher than what it needs.
"""

import copy
import json
import os

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.launch.where import launch_of
from ajuste.core.stages import split_name
from ajuste.learning.plan.parts import Plan, size
from ajuste.tracking.planning.room import PROCESS, Room, room
from ajuste.tracking.planning.stages import of_stage, read_params, trains

TOLD = "AJUSTE_BEYOND_MEMORY"  # set by `ajuste run --beyond-memory`
Change = tuple[str, Plan]


def refuse(name: str) -> None:
    """Raise UsageError unless the stage's plan fits. A stage that trains nothing, or whose base is missing, may go."""
    if os.environ.get(TOLD):
        return
    try:
        params = read_params()
        if not trains(name, params) or launch_of(params).by != "one":  # what is free elsewhere is not known here
            return
        here = room(params["compute"]["device"])
        plan = of_stage(name, params, sdpa=here.device == "cuda")
    except (UsageError, ValueError, KeyError):  # the stage itself says what it misses; a section of its own has no plan
        return
    if plan is not None and not fits(plan, here):
        raise UsageError(refusal(name, plan, here, changes(name, params, here)))


def fits(plan: Plan, here: Room) -> bool:
    return plan.total + here.process <= here.bytes


def refusal(name: str, plan: Plan, here: Room, ways: list[Change]) -> str:
    """One line: what it needs, what is free, what would fit."""
    largest = sorted((part for part in plan.parts if part.when in ("always", plan.peak)), key=lambda part: -part.bytes)
    parts = ", ".join(f"{part.name} {size(part.bytes)}" for part in largest[:3])
    cure = "; ".join(f"{words} needs {size(other.total + here.process)}" for words, other in ways)
    return (
        f"stage `{name}` would need {size(plan.total + here.process)} ({parts}) and {size(here.bytes)} are free on the "
        f"{here.device}: {cure or 'no setting of params.yaml makes it fit, take a smaller base'}; `ajuste plan {name}` "
        "shows all parts, `ajuste run --beyond-memory` starts it all the same"
    )


def changes(name: str, params: dict, here: Room) -> list[Change]:
    """Settings that fit, the mildest first: smaller pieces of a step, then bfloat16, LoRA and 4 bits, shorter rows."""
    found = []
    for words, changed in tried(name, params):
        plan = of_stage(name, changed, sdpa=here.device == "cuda")
        if plan is not None and fits(plan, here):
            found.append((words, plan))
    return found[:3]


def tried(name: str, params: dict) -> list[tuple[str, dict]]:
    """Every single change that there is for the stage, in words and as params."""
    verb, variant = split_name(name)
    place = f"{verb}.{variant}" if variant else verb
    own = {**params[verb], **params[verb].get(variant, {})} if variant else params[verb]
    settings: list[tuple[str, object]] = []
    if "micro_rows" in own:
        settings += [("micro_rows", rows) for rows in (own["micro_rows"] // 2, own["micro_rows"] // 4, 1) if rows]
    elif "accumulation" in own:
        rows = own["batch_rows"]
        pieces = [n for n in range(own["accumulation"] + 1, rows + 1) if rows % n == 0]
        settings += [("accumulation", n) for n in pieces]
    if own.get("dtype") == "float32":
        settings.append(("dtype", "bfloat16"))
    if own.get("method") == "full":
        settings.append(("method", "lora"))
    if own.get("method") in ("full", "lora", "rslora", "dora"):
        settings.append(("method", "qlora"))
    found = []
    for key, value in dict.fromkeys(settings):
        changed = copy.deepcopy(params)
        target = changed[verb][variant] if variant and key in changed[verb].get(variant, {}) else changed[verb]
        target[key] = value
        found.append((f"`{place}.{key}: {value}`", changed))
    return found


def last_state(name: str) -> dict:
    """.state of the stage's last run here, {} if there was none."""
    try:
        return json.loads((home() / ".state" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def against(name: str, state: dict) -> dict[str, float]:
    """The plan beside the peak that .state says, as metrics; {} for a stage without a plan or without a measurement."""
    measured = state.get("peak_memory_mb")
    if not measured or state.get("device") != "cpu":  # of a GPU the process's own memory says nothing
        return {}
    try:
        plan = of_stage(name, read_params())
    except (UsageError, ValueError, KeyError):
        return {}
    if plan is None:
        return {}
    planned = (plan.total + PROCESS) / 2**20  # .state counts in 2^20 bytes
    return {"cost/planned_memory_mb": round(planned, 1), "cost/plan_error": round(planned / measured - 1, 4)}
