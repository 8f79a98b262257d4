"""Which version of a served name is `champion`: promotion, rollback, and the history of both.

    move      promote a version: champion -> it, previous -> the champion before
    rollback  champion -> previous; the one that is left becomes `previous`, so a second rollback goes back again
    settle    finish a move that was interrupted; called by whoever is about to read or move aliases
    history   the moves of a name, newest first

A move is these writes, in this order; a kill between any two leaves a state that `settle` can finish:

    1  tag `ajuste.move` on the registered model: the intent (id, kind, from, to, who, why, when), as JSON
    2  tag `alias.champion` on the version: since when and why, as `alias.challenger` says it
    3  alias `champion`: a single write of MLflow's, so a reader finds the old one or the new one, never none
    4  alias `previous`
    5  a run in experiment `promotions`, found by the move's id or made, then ended
    6  the tag of 1 is deleted

`settle` repeats what the tag says; each write may be done twice. Two moves it does not finish, and leaves no run of
them: to a version that somebody deleted since (champion goes back, if that left none), and of a name that got a third
champion by hand since (a person's choice stands).

`challenger` stays where it is: it means the best on validation (ajuste/tracking/registry/rank.py), whoever is champion.
After a promotion both aliases stand on one version; after a rollback `challenger` stands on the version that was left,
and `rolled_back` tells a gate not to promote that one again by itself.

One process at a time: a file lock in the home. Machines that share an MLflow server share no file, and MLflow has no
compare-and-set. There the tag is the lock, by Fischer's algorithm: look that there is none, write one's own, wait
(PAUSE), read it back. Of two machines that begin at once the later writer goes on and the other is told so. A machine
that meets the tag of a living one, or finds its own replaced, finishes what the tag says beside it: the same aliases,
and of two runs with one id one is deleted. This holds while no machine needs longer than PAUSE from its look to its
write, or between two writes; past that an alias may be the last writer's, and `history` shows it as moved outside.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.runs.store import PROMOTIONS, client, exists, experiment_id, locked, tracking_uri, without_password

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

INTENT = "ajuste.move"
LOCK = "promotion"
PAUSE = 1.0  # seconds
LONGEST = 2000  # characters of `why`; MLflow cuts a run's tag at 8,000
OUTSIDE = "moved outside of Ajuste"


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


def move(name: str, version: str, who: str, why: str, forced: bool = False) -> Move:
    """Promote a version to champion. Finishes an interrupted move first.

    Raises UsageError for an unknown name or version, for the version that is champion already, and if another machine
    moves the name at the same moment; DataError if the store fails, and then the next command goes on.
    """
    return _move(name, "promote", str(version), who, why, forced)


def rollback(name: str, who: str, why: str) -> Move:
    """Make `previous` the champion again. Raises UsageError where there is none; else as `move`."""
    return _move(name, "rollback", None, who, why, False)


def settle(name: str) -> None:
    """Finish or drop an interrupted move of the name. Without one, or without the name, it only reads."""
    with _told(name):
        if exists() and (model := _model(name)) and INTENT in model.tags:
            with locked(LOCK):
                _finish(name)


def history(name: str) -> list[Move]:
    """The moves of a name, newest first, with those that others made by hand, as far as they left a trace. Only reads.

    A move whose `from` is not the `to` of the one before, or a champion that is not the last `to`, was moved outside.
    Raises UsageError for an unknown name.
    """
    with _told(name):
        champion = _aliases(_existing(name)).get("champion")
        recorded = sorted(_recorded(name), key=lambda move: move.when)
    lines: list[Move] = []
    for made in recorded:
        lines += _outside(lines, name, made.before)
        lines.append(made)
    lines += _outside(lines, name, champion)
    ends = [*(line.when for line in lines[1:]), datetime.now(UTC)]
    timed = [replace(line, seconds=(end - line.when).total_seconds() if line.when and end else None)
             for line, end in zip(lines, ends, strict=False)]
    return timed[::-1]


def rolled_back(name: str) -> set[str]:
    """The versions whose last move was a rollback away from them: nothing promotes these again but a person."""
    last: dict[str | None, bool] = {}
    for made in reversed(history(name)):
        last |= {made.before: made.kind == "rollback", made.to: False}
    return {version for version, away in last.items() if away and version}


# --- a move ---------------------------------------------------------------------------------------------------------


def _move(name: str, kind: str, to: str | None, who: str, why: str, forced: bool) -> Move:
    if name.endswith("-adapter"):
        served = name.removesuffix("-adapter")
        raise UsageError(f"`{name}` has no champion: aliases stand on the served name, `{served}`")
    with _told(name), locked(LOCK):
        _finish(name)
        if kind == "promote" and to not in (numbers := _numbers(name)):
            raise UsageError(f"`{name}` has no version {to}: it has {', '.join(numbers) or 'none'}")
        aliases = _aliases(_finish(name)[0])  # the last look before the write: nothing is asked in between
        champion = aliases.get("champion")
        if kind == "rollback":
            to = aliases.get("previous")
            if to is None:
                raise UsageError(f"`{name}` has no previous champion to go back to: champion is "
                                 f"{champion or 'not set'}; `ajuste promote {name}/VERSION` sets it")
        if to == champion:
            raise UsageError(f"{name}/{to} is the champion already")
        made = Move(name, kind, champion, to, _line(who), _line(why), datetime.now(UTC), uuid.uuid4().hex, forced)
        client().set_registered_model_tag(name, INTENT, _to_json(made))
        mine = True
        if tracking_uri().startswith(("http://", "https://")):
            time.sleep(PAUSE)
            mine = _intent(_existing(name)) == made
        if not (mine and _finish(name)[1] == made) and made not in _recorded(name):
            raise UsageError(f"another moved `{name}` at this moment, and that stands: `ajuste history {name}` shows "
                             "it; ask again if it is still wanted")
    return made


def _finish(name: str) -> tuple[RegisteredModel, Move | None]:
    """Do what the intent says, until the store agrees: the name as it was read last, and the move that was finished."""
    written: set[str | None] = set()
    while intent := _intent(model := _existing(name)):
        numbers, aliases = _numbers(name), _aliases(model)
        if intent.to not in numbers:
            _undo(intent, numbers, aliases)
        elif aliases.get("champion") not in {intent.before, intent.to, *written}:
            client().delete_registered_model_tag(name, INTENT)  # somebody's own choice stands
        else:
            wanted = _wanted(intent, numbers, aliases)
            _apply(intent, wanted)
            written.add(intent.to)
            model = _existing(name)  # another machine may have written its own in between: then theirs is done
            found = _aliases(model)
            if _intent(model) == intent and all(found.get(alias) == wanted[alias] for alias in wanted):
                _record(intent)
                client().delete_registered_model_tag(name, INTENT)
                return model, intent
    return model, None


def _wanted(intent: Move, numbers: list[str], aliases: dict[str, str]) -> dict[str, str | None]:
    """The aliases after the move; None is for one that is to go. `previous` is never the champion itself."""
    previous = intent.before if intent.before in numbers else aliases.get("previous")
    return {"champion": intent.to, "previous": previous if previous != intent.to else None}


def _apply(intent: Move, wanted: dict[str, str | None]) -> None:
    """The writes 2 to 4."""
    opened, name = client(), intent.name
    word = "forced, " if intent.forced else ""
    before = f"before it version {intent.before}" if intent.before else "the first"
    text = f"{intent.when:%Y-%m-%d %H:%M} UTC: {intent.kind} by {intent.who}, {word}{intent.why}, {before}"
    opened.set_model_version_tag(name, intent.to, "alias.champion", text)
    for alias, number in wanted.items():
        if number is None:
            opened.delete_registered_model_alias(name, alias)
        else:
            opened.set_registered_model_alias(name, alias, number)


def _undo(intent: Move, numbers: list[str], aliases: dict[str, str]) -> None:
    """The version was deleted since, and MLflow deletes its aliases with it: champion goes back."""
    if "champion" not in aliases and intent.before in numbers:
        client().set_registered_model_alias(intent.name, "champion", intent.before)
        if aliases.get("previous") == intent.before:
            client().delete_registered_model_alias(intent.name, "previous")
    client().delete_registered_model_tag(intent.name, INTENT)


# --- runs -----------------------------------------------------------------------------------------------------------


def _record(made: Move) -> None:
    """The move's run, whole in one write; found by its id, so never a second one."""
    opened, experiment = client(), experiment_id(PROMOTIONS)
    moment = int(made.when.timestamp() * 1000)
    mine = f"tags.`{INTENT}.id` = '{made.id}'"
    found = opened.search_runs([experiment], mine)
    if not found:
        tags = {f"{INTENT}.{key}": value for key, value in json.loads(_to_json(made)).items() if value is not None}
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


def _recorded(name: str) -> list[Move]:
    """The moves that have a run, each once."""
    experiment = client().get_experiment_by_name(PROMOTIONS)
    runs: list[Run] = []
    token: str | None = ""
    while experiment and token is not None:
        page = client().search_runs(
            [experiment.experiment_id], f"tags.`{INTENT}.name` = '{name}'", max_results=1000, page_token=token or None)
        runs += page
        token = page.token or None
    found = {}
    for run in runs:
        tags = {key.removeprefix(f"{INTENT}."): value for key, value in run.data.tags.items()}
        found[tags["id"]] = Move(name, tags["kind"], tags.get("from"), tags["to"], tags["who"], tags["why"],
                                 datetime.fromisoformat(tags["when"]), tags["id"], tags["forced"] == "true")
    return list(found.values())


def _outside(lines: list[Move], name: str, champion: str | None) -> list[Move]:
    """A line for the move that nobody recorded, if the champion is not what the last line says."""
    last = lines[-1].to if lines else None
    return [] if champion == last else [Move(name, "outside", last, champion, "", OUTSIDE)]


# --- what the store has -----------------------------------------------------------------------------------------------


def _model(name: str) -> RegisteredModel | None:
    """The registered name; None if there is none."""
    from mlflow.exceptions import MlflowException

    opened = client()
    try:
        return opened.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _existing(name: str) -> RegisteredModel:
    found = _model(name) if exists() else None
    if found is None:
        known = sorted(model.name for model in client().search_registered_models()) if exists() else []
        there = f"registered are {', '.join(known)}" if known else "nothing is registered yet (`ajuste run` registers)"
        raise UsageError(f"no registered model `{name}`: {there}")
    return found


def _aliases(model: RegisteredModel) -> dict[str, str]:
    return {alias: str(number) for alias, number in model.aliases.items()}


def _numbers(name: str) -> list[str]:
    """All versions, oldest first."""
    return sorted((str(item.version) for item in client().search_model_versions(f"name='{name}'")), key=int)


def _intent(model: RegisteredModel) -> Move | None:
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


def _to_json(made: Move) -> str:
    return json.dumps({"id": made.id, "kind": made.kind, "from": made.before, "to": made.to, "who": made.who,
                       "why": made.why, "when": made.when.isoformat(), "forced": made.forced}, ensure_ascii=False)


def _line(text: str) -> str:
    """One printable line that every tag can hold."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


@contextmanager
def _told(name: str) -> Iterator[None]:
    """A store that fails in the middle is said in one line; what was begun is finished by the next command."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = without_password(" ".join(str(error).split()))[:300]
        raise DataError(f"MLflow's store failed in a move of `{name}`: {reason}; what was begun is finished by the "
                        f"next command, for example `ajuste history {name}`") from None
