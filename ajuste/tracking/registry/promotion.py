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

import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ajuste.core.errors import UsageError
from ajuste.tracking.registry.moves import (
    INTENT,
    Move,
    aliases_of,
    existing,
    intent_of,
    line_of,
    model_of,
    numbers_of,
    record,
    recorded,
    to_json,
    told,
    version_of,
)
from ajuste.tracking.runs.store import client, exists, locked, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

LOCK = "promotion"
PAUSE = 1.0  # seconds
OUTSIDE = "moved outside of Ajuste"


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
    with told(name):
        if exists() and (model := model_of(name)) and INTENT in model.tags:
            with locked(LOCK):
                _finish(name)


def history(name: str) -> list[Move]:
    """The moves of a name, newest first, with those that others made by hand, as far as they left a trace. Only reads.

    A move whose `from` is not the `to` of the one before, or a champion that is not the last `to`, was moved outside.
    Raises UsageError for an unknown name.
    """
    with told(name):
        champion = aliases_of(existing(name)).get("champion")
        known = sorted(recorded(name), key=lambda move: move.when)
    lines: list[Move] = []
    for made in known:
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


def _outside(lines: list[Move], name: str, champion: str | None) -> list[Move]:
    """A line for the move that nobody recorded, if the champion is not what the last line says."""
    last = lines[-1].to if lines else None
    return [] if champion == last else [Move(name, "outside", last, champion, "", OUTSIDE)]


# --- a move ---------------------------------------------------------------------------------------------------------


def _move(name: str, kind: str, to: str | None, who: str, why: str, forced: bool) -> Move:
    if name.endswith("-adapter"):
        served = name.removesuffix("-adapter")
        raise UsageError(f"`{name}` has no champion: aliases stand on the served name, `{served}`")
    with told(name), locked(LOCK):
        _finish(name)
        if kind == "promote" and version_of(name, to) is None:
            raise UsageError(f"`{name}` has no version {to}: it has {', '.join(numbers_of(name)) or 'none'}")
        aliases = aliases_of(_finish(name)[0])  # the last look before the write: nothing is asked in between
        champion = aliases.get("champion")
        if kind == "rollback":
            to = aliases.get("previous")
            if to is None:
                raise UsageError(f"`{name}` has no previous champion to go back to: champion is "
                                 f"{champion or 'not set'}; `ajuste promote {name}/VERSION` sets it")
        if to == champion:
            raise UsageError(f"{name}/{to} is the champion already")
        made = Move(name, kind, champion, to, line_of(who), line_of(why), datetime.now(UTC), uuid.uuid4().hex, forced)
        client().set_registered_model_tag(name, INTENT, to_json(made))
        mine = True
        if tracking_uri().startswith(("http://", "https://")):
            time.sleep(PAUSE)
            mine = intent_of(existing(name)) == made
        if not (mine and _finish(name)[1] == made) and made not in recorded(name):
            raise UsageError(f"another moved `{name}` at this moment, and that stands: `ajuste history {name}` shows "
                             "it; ask again if it is still wanted")
    return made


def _finish(name: str) -> tuple[RegisteredModel, Move | None]:
    """Do what the intent says, until the store agrees: the name as it was read last, and the move that was finished."""
    written: set[str | None] = set()
    while intent := intent_of(model := existing(name)):
        numbers, aliases = numbers_of(name), aliases_of(model)
        if intent.to not in numbers:
            _undo(intent, numbers, aliases)
        elif aliases.get("champion") not in {intent.before, intent.to, *written}:
            client().delete_registered_model_tag(name, INTENT)  # somebody's own choice stands
        else:
            wanted = _wanted(intent, numbers, aliases)
            _apply(intent, wanted)
            written.add(intent.to)
            model = existing(name)  # another machine may have written its own in between: then theirs is done
            found = aliases_of(model)
            if intent_of(model) == intent and all(found.get(alias) == wanted[alias] for alias in wanted):
                record(intent)
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
