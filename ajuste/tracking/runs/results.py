"""Small files of a recorded run, read back from the store: tables and lines of an evaluation.

    table(run_id, "rows.parquet")      one dict a row
    lines(run_id, "answers.jsonl")     one dict a line
    value(run_id, "alignment.json")    a JSON value

A run that is gone, or that left no such file, has none: [], or None.
"""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ajuste.tracking.runs.store import client


def table(run_id: str | None, name: str) -> list[dict]:
    """The rows of a Parquet file among the run's results."""
    content = _content(run_id, name)
    if content is None:
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(content)).to_pylist()


def lines(run_id: str | None, name: str) -> list[dict]:
    """The lines of a JSON Lines file among the run's results."""
    content = _content(run_id, name) or b""
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]


def value(run_id: str | None, name: str) -> Any:
    """A JSON file among the run's results."""
    content = _content(run_id, name)
    return None if content is None else json.loads(content)


@cache
def _content(run_id: str | None, name: str) -> bytes | None:
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(run_id, f"results/{name}", folder)).read_bytes()
        except (MlflowException, OSError):
            return None
