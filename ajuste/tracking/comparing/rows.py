"""What `compare` reads from the evaluations' own files: which rows a version had right, its losses, its answers."""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ajuste.tracking.registry.families import ASSISTANT, BEFORE, PPO, kind_of
from ajuste.tracking.registry.registry import ALIASES, Version
from ajuste.tracking.runs.store import client

RESAMPLES = 1000
METRICS = {"held-out loss": True, "gold score": False, "proxy reward": False, "accuracy": False}  # lower is better?
JUDGES = {"gold score": "gold", "proxy reward": "reward"}  # of answers.jsonl: the column, and the judge's tag
Values = dict[object, tuple[float, float]]  # by row: (sum, weight)


def paired(chosen: list[Version]) -> list[dict]:
    """Each version against the reference (champion, else challenger, else the first), on the rows that both share.

    One entry a metric that both have; a PPO version and the SFT version that it was made from share gold and proxy.
    """
    import numpy as np

    from ajuste.learning.statistics import metrics

    if len(chosen) < 2:
        return []
    reference = next((v for alias in ALIASES[:2] for v in chosen if alias in v.aliases), chosen[0])
    rows = values(chosen)
    found = []
    for version in chosen:
        for metric, lower in METRICS.items():
            a, b = rows.get((version.version, metric), {}), rows.get((reference.version, metric), {})
            shared = sorted(row for row in a.keys() & b.keys() if a[row][1] == b[row][1])
            if version is reference or not shared:
                continue
            d = np.array([a[row][0] - b[row][0] for row in shared])
            weights = np.array([a[row][1] for row in shared])
            counts = metrics.resamples(len(d), RESAMPLES, seed=0)
            low, high = metrics.percentile_interval((counts @ d) / (counts @ weights))
            better, worse = (high < 0, low > 0) if lower else (low > 0, high < 0)
            found.append({
                "version": version.version, "against": reference.version, "metric": metric,
                "difference": float(d.sum() / weights.sum()), "low": low, "high": high, "rows": len(d),
                "unit": "prompts" if metric in JUDGES else "pairs" if kind_of(version.name) == "reward"
                else "test rows",
                "verdict": "better" if better else "worse" if worse else "no clear difference",
            })
    return found


def values(chosen: list[Version]) -> dict[tuple[str, str], Values]:
    """{(version, metric): its value of each test row}, as the versions' own evaluations left them.

    The scores of a PPO's prompts are kept apart by their judge: another reward model's are another scale.
    """
    found: dict[tuple[str, str], Values] = {}
    for version in chosen:
        if kind_of(version.name) == "classifier":
            found[version.version, "accuracy"] = right(version)
        elif kind_of(version.name) == "reward":
            found[version.version, "accuracy"] = ordered(version)
        elif version.tags.get("method") != PPO.method:
            found[version.version, "held-out loss"] = losses(version)
    for version, of, lines in _of_ppo(chosen):
        for metric, judge in JUDGES.items():
            column = f"{metric.partition(' ')[0]}_{of}"
            known = found.setdefault((version.version, metric), {})
            known |= {(row["id"], lines.judges.get(judge)): (row[column], 1.0) for row in lines.rows if column in row}
    return found


def right(version: Version) -> Values:
    """(1 if the version was right else 0, 1) by test row; {} if its evaluation left no predictions."""
    return {row["row_id"]: (float(row["label"] == row["prediction"]), 1.0)
            for row in _table(version, "predictions.parquet") if row["strategy"] == version.tags.get("strategy")}


def ordered(version: Version) -> Values:
    """(1 if the better response scored higher, 1/2 for a tie, else 0; 1) by test pair; {} where none are kept."""
    return {row["row_id"]: (row["right"], 1.0) for row in _table(version, "pairs.parquet")}


def losses(version: Version) -> Values:
    """(sum of -log p, tokens) by held-out row; {} if its evaluation left none."""
    return {row["row_id"]: (row["instruct"], float(row["tokens"])) for row in _table(version, "rows.parquet")}


@dataclass(frozen=True)
class Lines:
    """answers.jsonl of a PPO's evaluation, and the DVC hashes of the models that judged it."""

    rows: list[dict]
    judges: dict[str, str | None]


def _of_ppo(chosen: list[Version]) -> list[tuple[Version, str, Lines]]:
    """(version, "ppo" or "sft", lines): each PPO version, and the chosen version that it was made from."""
    by_reference = {f"{version.name}/{version.version}": version for version in chosen}
    found = []
    for version in chosen:
        if version.tags.get("method") == PPO.method and not version.name.endswith("-adapter"):
            lines = Lines(_lines(version), {judge: version.tags.get(f"judge.{judge}") for judge in JUDGES.values()})
            found.append((version, "ppo", lines))
            if before := by_reference.get(version.tags.get("base_version")):
                found.append((before, BEFORE.rstrip("_"), lines))
    return found


def answers(chosen: list[Version]) -> list[dict]:
    """The prompts that most have in common: {"id", "prompt", "base", "versions": {"1": text, ...}}; [] of classifiers.

    `base` is None where the versions have different bases, whose answers differ, or where it was not asked.
    """
    if kind_of(chosen[0].name) != ASSISTANT:
        return []
    said: dict[tuple[str, str], dict[str, str]] = {}
    bases: dict[tuple[str, str], set[str | None]] = {}
    for version in chosen:
        if version.tags.get("method") != PPO.method:
            for row in _lines(version):
                said.setdefault((row["id"], row["prompt"]), {})[version.version] = row["instruct"]
                bases.setdefault((row["id"], row["prompt"]), set()).add(row["base"])
    for version, of, lines in _of_ppo(chosen):
        for row in lines.rows:
            said.setdefault((row["id"], row["prefill"]), {})[version.version] = row[of]
    most = max(map(len, said.values()), default=0)
    first = next((list(texts) for texts in said.values() if len(texts) == most), [])
    found = []
    for key, texts in said.items():
        if set(texts) == set(first):
            known = bases.get(key, {None})
            found.append({"id": key[0], "prompt": key[1], "base": next(iter(known)) if len(known) == 1 else None,
                          "versions": {v.version: texts[v.version] for v in chosen if v.version in texts}})
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
