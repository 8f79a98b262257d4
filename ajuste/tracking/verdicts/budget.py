"""Where the looks at a test split are remembered: tag `gate.budget.<metric>` of the registered model.

    of(...)        which look a comparison is: the next one, or the one that it was before
    spend(...)     remember that it was made

A registered model is one for all clones and machines that share an MLflow store; an out of DVC would come back with
every checkout. Numbers, rules and reasons: ajuste/judging/verdicts/budget.py. The look of a version is also part of its
verdict (tag `gate`): the same weights beside the same champion on the same rows are no new look, whoever asks again. A
look in `dry-run` counts as well, since a person who reads the verdict may promote.

Two machines that judge the same name within the same second may count one look of two. Private to gate.py beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from ajuste.judging.verdicts.budget import Ledger, Look, refreshed, rows_digest, spent
from ajuste.tracking.registry.moves import existing
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs.store import client

TAG = "gate.budget."


def of(challenger: Version, champion: Version | None, metric: str, ids: list[str], before: Look | None
       ) -> tuple[Look, Ledger]:  # fmt: skip
    """(the look, the ledger before it). before: the look of the challenger's last verdict, None if there is none."""
    sides = [_weights(challenger), _weights(champion) if champion else "", metric, rows_digest(ids)]
    ledger = refreshed(_read(challenger.name, metric), ids)
    same = rows_digest(sides)
    if before is not None and before.of == same:
        return before, ledger
    return Look(ledger.used + 1, same), ledger


def spend(name: str, metric: str, ledger: Ledger) -> None:
    """Remember one look more."""
    client().set_registered_model_tag(name, TAG + metric, json.dumps(asdict(spent(ledger))))


def _read(name: str, metric: str) -> Ledger:
    text = existing(name).tags.get(TAG + metric)
    if text is None:
        return Ledger()
    read = json.loads(text)
    return Ledger(read["used"], read["rows"], tuple(read["seen"]))


def _weights(version: Version) -> str:
    return version.tags.get("sha256") or f"{version.name}/{version.version}"
