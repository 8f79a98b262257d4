"""The pairs that people have judged, as a judge is shown them: which of the two texts comes first is decided by the
last digit of the row id, so that "the first one" is right as often as not.

    artifacts/validated/preferences/<split>.parquet      comparisons of two, with a margin of at least `min_margin`
    data/<set>                                           the single ratings, where the set has rated texts
"""

from pathlib import Path

import pyarrow.parquet as pq

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.judges.card import NOISE, Judged
from ajuste.judging.judges.opinions import Pair
from ajuste.rows.raters import of_pair

COLUMNS = ("row_id", "prompt", "responses", "margin", "one_against_rest", "location")


def judged_pairs(
    validated: Path, split: str, min_margin: float, rows: int | None, ratings: dict[str, list[float]]
) -> list[Judged]:
    """The pairs of a split, by row id, `rows` of them at most. Rankings of more than two are left out.

    ratings: of ajuste/rows/raters.py. Raises UsageError for a missing file, DataError if no pair is left.
    """
    path = validated / f"{split}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `validate_preferences`")
    found = []
    for row in pq.read_table(path, columns=list(COLUMNS)).sort_by("row_id").to_pylist():
        enough = row["margin"] is None or row["margin"] >= min_margin - NOISE
        if len(row["responses"]) == 2 and enough:
            found.append(_judged(row, ratings))
    if not found:
        raise DataError(f"{path} has no pair with a margin of {min_margin:g} to judge a judge by: lower it, add data")
    return found[:rows]


def _judged(row: dict, ratings: dict[str, list[float]]) -> Judged:
    better = int(row["row_id"], 16) % 2
    raters = of_pair(row["location"], ratings)
    order = slice(None, None, -1 if better else 1)
    pair = Pair(row["row_id"], row["prompt"], tuple(row["responses"][order]))
    return Judged(pair, better, row["margin"], row["one_against_rest"], raters and tuple(raters[order]))
