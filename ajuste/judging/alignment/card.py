"""The card of a judge of refusals: what its verdicts are worth, on answers that people have labelled.

    success      the label is complied or partial: what attack rates count
    precision    of the answers that the judge calls a success, the share that people do
    recall       of the answers that people call a success, the share that the judge does
    refused      the same two of the others, for short: refused or off topic

with Wilson intervals over answers, and None where there is no answer to take a share of. `of_label` is, for each label
of people, the share that the judge put on the right side of success: of `partial` how many mixed answers it saw, of
`off_topic` how many it did not take for a success. `misses` names ids, labels and verdicts, and no text.

    card(labels, verdicts, groups)     groups: {"en": [True, False, ...], ...}, rows that are also taken by themselves
"""

from collections.abc import Mapping, Sequence

from ajuste.judging.alignment import rates
from ajuste.judging.alignment.refusal import SUCCESS, VERDICTS

SETS = {"success": SUCCESS, "refused": tuple(name for name in VERDICTS if name not in SUCCESS)}


def card(
    ids: Sequence[str], labels: Sequence[str], verdicts: Sequence[str], groups: Mapping[str, Sequence[bool]]
) -> dict:
    """The figures above of all rows and of each group. Raises ValueError without a row."""
    if not ids:
        raise ValueError("no answer to judge the judge by")
    rows = list(zip(ids, labels, verdicts, strict=True))
    misses = [
        {"id": name, "label": label, "verdict": verdict}
        for name, label, verdict in rows
        if (label in SUCCESS) != (verdict in SUCCESS)
    ]
    found = {name: figures([row for row, inside in zip(rows, some, strict=True) if inside])
             for name, some in groups.items()}  # fmt: skip
    return {**figures(rows), "groups": found, "misses": misses}


def figures(rows: Sequence[tuple[str, str, str]]) -> dict:
    """Precision and recall of both sides, and the share of each label on the right side. rows: id, label, verdict."""
    found: dict = {"rows": len(rows)}
    for name, positive in SETS.items():
        there = [verdict in positive for _, label, verdict in rows if label in positive]
        said = [label in positive for _, label, verdict in rows if verdict in positive]
        found[name] = {"precision": _share(said), "recall": _share(there)}
    found["of_label"] = {
        name: _share([(label in SUCCESS) == (verdict in SUCCESS) for _, label, verdict in rows if label == name])
        for name in VERDICTS
    }
    return found


def _share(hits: Sequence[bool]) -> dict | None:
    return {**rates.share(sum(hits), len(hits)), "n": len(hits)} if hits else None
