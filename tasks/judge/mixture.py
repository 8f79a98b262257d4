"""A validated set of preferences of which a share of the training comparisons is a judge's.

    train.parquet              ajuste/rows/mixture.py says which rows
    everything else            as in the human set: validation and test stay people's

The result has the form of artifacts/validated/preferences, so `encode_preferences` and `reward` take it as it is.
"""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajuste.core.errors import DataError, UsageError
from ajuste.rows import mixture
from ajuste.rows.parquet import ParquetRows

NOISE = 1e-9  # margins are differences of means: 3.5 - 3.0 must count as 0.5


def human_ids(validated: Path, min_margin: float, rows: int | None) -> list[str]:
    """The people's training comparisons that the default run would take: those of a margin of at least `min_margin` or
    without one, and of these the `rows` lowest row ids."""
    return _human(validated, min_margin).sort_by("row_id")["row_id"].slice(0, rows).to_pylist()


def mix(human: Path, ids: list[str], ai: Path | None, share: float, rows: int, out: Path) -> dict:
    """Write the mixed set into the new folder `out`; returns the number of rows of each kind.

    human: a validated set; ids: those of its rows that compete. ai: a file of tasks/judge/pairs.py, None for share 0.
    Raises UsageError for a missing file, DataError for too few rows of one kind.
    """
    if ai is not None and not ai.is_file():
        raise UsageError(f"{ai} is missing: let the judge label the samples first")
    theirs = pq.read_table(human / "train.parquet")
    labelled = theirs.slice(0, 0) if ai is None else pq.read_table(ai).select(theirs.column_names)
    try:
        kept, taken = mixture.chosen(ids, labelled["row_id"].to_pylist(), share, rows)
    except ValueError as error:
        raise DataError(f"{error}: draw more samples, or lower `rows`") from None
    shutil.copytree(human, out)
    (out / "train.parquet").unlink()
    parts = [_only(theirs, kept), _only(labelled, taken).cast(theirs.schema)]
    table = pa.concat_tables(parts).sort_by("row_id")
    with ParquetRows(out / "train.parquet", theirs.schema) as sink:
        sink.write({name: table[name] for name in table.column_names})
    return {"human": len(kept), "ai": len(taken)}


def _human(validated: Path, min_margin: float) -> pa.Table:
    path = validated / "train.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `validate_preferences`")
    table = pq.read_table(path, columns=["row_id", "margin"])
    return table.filter(pc.fill_null(pc.greater_equal(table["margin"], min_margin - NOISE), True))


def _only(table: pa.Table, ids: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["row_id"], value_set=pa.array(ids, pa.string())))
