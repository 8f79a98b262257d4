"""What `compare` reads from the evaluations' own files: which rows a version had right, its losses, its answers."""

import json
import tempfile
from functools import cache
from pathlib import Path

from tracking._families import ASSISTANT, of_name
from tracking._store import client
from tracking.registry import ALIASES, Version

RESAMPLES = 1000


def paired(chosen: list[Version]) -> list[dict]:
    """Each version against the reference (champion, else challenger, else the first), on the rows that both share."""
    import numpy as np

    from learning import statistics

    if len(chosen) < 2:
        return []
    loss = of_name(chosen[0].name) is ASSISTANT
    reference = next((v for alias in ALIASES[:2] for v in chosen if alias in v.aliases), chosen[0])
    rows = {version.version: losses(version) if loss else right(version) for version in chosen}
    found = []
    for version in chosen:
        a, b = rows[version.version], rows[reference.version]
        shared = sorted(row for row in a.keys() & b.keys() if a[row][1] == b[row][1])
        if version is reference or not shared:
            continue
        d = np.array([a[row][0] - b[row][0] for row in shared])
        weights = np.array([a[row][1] for row in shared])
        counts = statistics.resamples(len(d), RESAMPLES, seed=0)
        low, high = statistics.percentile_interval((counts @ d) / (counts @ weights))
        better, worse = (high < 0, low > 0) if loss else (low > 0, high < 0)
        found.append({
            "version": version.version, "against": reference.version,
            "metric": "held-out loss" if loss else "accuracy",
            "difference": float(d.sum() / weights.sum()), "low": low, "high": high, "rows": len(d),
            "verdict": "better" if better else "worse" if worse else "no clear difference",
        })
    return found


def right(version: Version) -> dict[str, tuple[float, float]]:
    """(1 if the version was right else 0, 1) by test row; {} if its evaluation left no predictions."""
    return {row["row_id"]: (float(row["label"] == row["prediction"]), 1.0)
            for row in _table(version, "predictions.parquet") if row["strategy"] == version.tags.get("strategy")}


def losses(version: Version) -> dict[str, tuple[float, float]]:
    """(sum of -log p, tokens) by held-out row; {} if its evaluation left none."""
    return {row["row_id"]: (row["instruct"], float(row["tokens"])) for row in _table(version, "rows.parquet")}


def answers(chosen: list[Version]) -> list[dict]:
    """The prompts that all have in common: {"id", "prompt", "base", "versions": {"1": text, ...}}; [] of classifiers.

    `base` is None where the versions have different bases, whose answers differ.
    """
    if of_name(chosen[0].name) is not ASSISTANT:
        return []
    said = {version.version: {(row["id"], row["prompt"]): row for row in _lines(version)} for version in chosen}
    said = {version: rows for version, rows in said.items() if rows}
    if not said:
        return []
    first = next(iter(said.values()))
    found = []
    for key, row in first.items():
        if all(key in rows for rows in said.values()):
            bases = {rows[key]["base"] for rows in said.values()}
            found.append({"id": row["id"], "prompt": row["prompt"], "base": row["base"] if len(bases) == 1 else None,
                          "versions": {version: rows[key]["instruct"] for version, rows in said.items()}})
    return found


def _table(version: Version, name: str) -> list[dict]:
    import pyarrow.parquet as pq

    content = _result(version.tags.get("evaluate_run"), name)
    if content is None:
        return []
    import pyarrow as pa

    return pq.read_table(pa.BufferReader(content)).to_pylist()


def _lines(version: Version) -> list[dict]:
    content = _result(version.tags.get("evaluate_run"), "answers.jsonl") or b""
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]


@cache
def _result(run_id: str | None, name: str) -> bytes | None:
    """A small file of the evaluation's run; None if there is none."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(run_id, f"results/{name}", folder)).read_bytes()
        except (MlflowException, OSError):
            return None
