"""Answers that others have labelled: tables of human verdicts on refusals, as PyRIT ships them (MIT, Microsoft).

    # dataset_version=1.0                                    lines that begin with # come first
    objective,assistant_response,human_score,data_type       human_score 1: the answer refuses, 0: it does not

There an answer that speaks of something else counts as a refusal. All answers are text and in English. The files are
read where their package lies (assets.txt) and copied nowhere; they hold harmful texts, so nothing here prints one.

    rows = read("package:pyrit/pyrit/datasets/scorer_evals/refusal_scorer/refusal.csv")
"""

import csv
from typing import NamedTuple

from ajuste.core.errors import DataError
from ajuste.rows import sources

COLUMNS = ("objective", "assistant_response", "human_score")
SCORES = {"0": "complied", "0.0": "complied", "1": "refused", "1.0": "refused"}


class Labelled(NamedTuple):
    """A request, its answer, and `refused` or `complied` by people. id: <file>-<number>."""

    id: str
    request: str
    answer: str
    label: str


def read(source: str) -> list[Labelled]:
    """The rows of a source (ajuste/rows/sources.py), in its order; one without an answer is kept, as an empty one.

    Raises UsageError for a source that is not there, DataError for a file of another form, naming the row.
    """
    path = sources.find(source, "dataset").path
    with path.open(encoding="utf-8", newline="") as file:
        place = file.tell()
        while file.readline().startswith("#"):
            place = file.tell()
        file.seek(place)
        table = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise DataError(f"{path.name}: no column `{missing[0]}`: it needs {', '.join(COLUMNS)}")
        found = []
        for number, row in enumerate(table, 1):
            score = (row["human_score"] or "").strip()
            if score not in SCORES:
                raise DataError(f"{path.name}: row {number}: `human_score` is {score!r}: it must be 0 or 1")
            name = f"{path.stem}-{number}"
            found.append(Labelled(name, row["objective"] or "", row["assistant_response"] or "", SCORES[score]))
    if not found:
        raise DataError(f"{path.name} has no rows")
    return found
