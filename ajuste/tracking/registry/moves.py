"""What the store knows of moves of `champion`: the open one, as a tag; those that were made, as runs; the aliases.

    tag `ajuste.move` on a registered model     the move that is under way (registry/promotion.py makes and ends it)
    runs of experiment `promotions`             the moves that were made, one run each, found by the move's id
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.runs.store import PROMOTIONS, client, exists, experiment_id, paged, without_password

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

INTENT = "ajuste.move"
PAGE = 1000  # names of one answer, the most that MLflow gives
QUOTES = set("'\"`")
LONGEST = 2000  # characters of `why`; MLflow cuts a run's tag at 8,000


@dataclass(frozen=True)
class Move:
    """One change of `champion`. `before` and `to` are version numbers, None where there is no champion."""

    name: str
    kind: str  # promote, rollback; outside: not by Ajuste, seen by its result alone
    before: str | None
    to: str | None
    who: str
    why: str
    when: datetime | None = None  # UTC; None of a move outside
    id: str = ""
    forced: bool = False
    seconds: float | None = None  # for how long `to` was champion, by `history`; None where nobody knows


# --- runs -----------------------------------------------------------------------------------------------------------


def record(made: Move) -> None:
    """The move's run, whole in one write; found by its id, so never a second one."""
    opened, experiment = client(), experiment_id(PROMOTIONS)
    moment = int(made.when.timestamp() * 1000)
    mine = f"tags.`{INTENT}.id` = '{made.id}'"
    found = opened.search_runs([experiment], mine)
    if not found:
        tags = {f"{INTENT}.{key}": value for key, value in json.loads(to_json(made)).items() if value is not None}
        tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in tags.items()}
        note = f"{made.kind} of `{made.name}`: version {made.before or 'none'} to {made.to}, by {made.who}. {made.why}"
        tags |= {f"{INTENT}.name": made.name, "mlflow.user": made.who, "mlflow.note.content": note}
        opened.create_run(experiment, moment, tags, f"{made.name} {made.before or 'none'} to {made.to}")
        found = opened.search_runs([experiment], mine)
    kept, *twice = sorted(found, key=lambda run: run.info.run_id)
    for run in twice:  # another machine finished the same move at the same moment
        opened.delete_run(run.info.run_id)
    if kept.info.status != "FINISHED":
        opened.set_terminated(kept.info.run_id, "FINISHED", moment)


def recorded(name: str) -> list[Move]:
    """The moves that have a run, each once."""
    experiment = client().get_experiment_by_name(PROMOTIONS)
    mine = f"tags.`{INTENT}.name` = '{name}'"
    runs: list[Run] = paged(client().search_runs, [experiment.experiment_id], mine) if experiment else []
    found = {}
    for run in runs:
        tags = {key.removeprefix(f"{INTENT}."): value for key, value in run.data.tags.items()}
        found[tags["id"]] = Move(name, tags["kind"], tags.get("from"), tags["to"], tags["who"], tags["why"],
                                 datetime.fromisoformat(tags["when"]), tags["id"], tags["forced"] == "true")
    return list(found.values())


# --- what the store has -----------------------------------------------------------------------------------------------


def models() -> list[RegisteredModel]:
    """Every registered name, with its tags and aliases."""
    return paged(client().search_registered_models, max_results=PAGE)


def model_of(name: str) -> RegisteredModel | None:
    """The registered name; None if there is none.

    By a search: MLflow's `get_registered_model` reads every version of the name, to tell the latest.
    """
    if not name or QUOTES & set(name):
        return None
    found = client().search_registered_models(f"name = '{name}'", max_results=1)
    return found[0] if found else None


def existing(name: str) -> RegisteredModel:
    found = model_of(name) if exists() else None
    if found is None:
        known = sorted(model.name for model in models()) if exists() else []
        there = f"registered are {', '.join(known)}" if known else "nothing is registered yet (`ajuste run` registers)"
        raise UsageError(f"no registered model `{name}`: {there}")
    return found


def versions_of(name: str | None, more: str = "") -> list[ModelVersion]:
    """The versions of a name, or of all, oldest first. more: a condition of MLflow's, as "tags.stage_key = '...'"."""
    wanted = " and ".join([*([f"name='{name}'"] if name else []), *([more] if more else [])])
    return sorted(paged(client().search_model_versions, wanted or None), key=lambda item: int(item.version))


def version_of(name: str, number: str) -> ModelVersion | None:
    """One version with its aliases, without a look at the others; None if there is none."""
    found = _or_none(client().get_model_version, name, number)
    return found if found and str(found.version) == number else None  # MLflow reads "03" as 3


def version_by_alias(name: str, alias: str) -> ModelVersion | None:
    """The version that an alias stands on, with all its aliases; None if nothing has that alias."""
    if alias.lower() == "latest":  # which MLflow reads as the newest version, alias or not
        return None
    return _or_none(client().get_model_version_by_alias, name, alias)


def _or_none(get: Callable[[str, str], ModelVersion], name: str, what: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return get(name, what)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def aliases_of(model: RegisteredModel) -> dict[str, str]:
    return {alias: str(number) for alias, number in model.aliases.items()}


def numbers_of(name: str) -> list[str]:
    """All versions, oldest first."""
    return [str(item.version) for item in versions_of(name)]


def intent_of(model: RegisteredModel) -> Move | None:
    """The open move. Raises DataError for a tag that is no intent of ours: a person must look at it."""
    text = model.tags.get(INTENT)
    if text is None:
        return None
    try:
        read = json.loads(text)
        return Move(model.name, read["kind"], read["from"], read["to"], read["who"], read["why"],
                    datetime.fromisoformat(read["when"]), read["id"], read["forced"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"tag `{INTENT}` of registered model `{model.name}` is no move of Ajuste's: delete it in "
                        f"MLflow's page of the model, then look at `ajuste history {model.name}`") from None


def to_json(made: Move) -> str:
    return json.dumps({"id": made.id, "kind": made.kind, "from": made.before, "to": made.to, "who": made.who,
                       "why": made.why, "when": made.when.isoformat(), "forced": made.forced}, ensure_ascii=False)


def line_of(text: str) -> str:
    """One printable line that every tag can hold."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


@contextmanager
def told(name: str) -> Iterator[None]:
    """A store that fails in the middle is said in one line; what was begun is finished by the next command."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = without_password(" ".join(str(error).split()))[:300]
        raise DataError(f"MLflow's store failed in a move of `{name}`: {reason}; what was begun is finished by the "
                        f"next command, for example `ajuste history {name}`") from None
