"""Parquet files that are a function of their rows alone: fixed row groups, no pandas metadata, no time, no path.

Rows come in batches of any size; memory is one row group.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 4096
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))  # of a conversation


def read_batches(path: Path, batch_rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of a file that ParquetRows wrote, one row group in memory at a time.

    Not iter_batches: it reads ahead, and its memory grows with the file.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns, use_threads=False).to_batches(batch_rows)


class ParquetRows:
    """A file under construction. Use it in a `with`; `write` takes columns by name, lists or arrays of one length."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", store_schema=False)

    def write(self, columns: dict) -> None:
        table = pa.table({name: columns[name] for name in self.schema.names}, schema=self.schema)
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self.rows += table.num_rows
        if self._waiting_rows >= GROUP_ROWS:
            self._flush(self._waiting_rows // GROUP_ROWS * GROUP_ROWS)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        for begin in range(0, rows, GROUP_ROWS):
            part = table.slice(begin, min(GROUP_ROWS, rows - begin)).combine_chunks()
            self._writer.write_table(part, row_group_size=GROUP_ROWS)
        self._waiting = [table.slice(rows).combine_chunks()]  # a copy: the slice would hold the whole table
        self._waiting_rows -= rows

    def __enter__(self) -> "ParquetRows":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._waiting_rows:
            self._flush(self._waiting_rows)
        self._writer.close()
