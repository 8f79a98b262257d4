"""Registered versions side by side: which is better, is the difference real, and what was done differently?

    metrics        of the test rows, each with its 95 % bootstrap interval; validation beside them
    paired         the difference in accuracy of two versions on the test rows that both were judged on:
                   d_i = 1[a right on row i] - 1[b right on row i],  mean(d) with the 2.5 % and 97.5 % percentiles of
                   its mean over 1000 resamples of rows. It is far sharper than two intervals that overlap or not.
    parameters     only those that differ, over everything that led to the version (its run and the runs that made
                   what that one read, found by DVC hash)
    from           data digest, DVC hash, git commit, base
    cost           seconds, peak memory, size; for features and head, and for adapter and merge, the sum

`compare` returns plain data; tracking/_compare_text.py makes tables of it.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tasks._params import split_name
from tasks._stage import UsageError
from tracking import registry
from tracking._facts import INTERVALS
from tracking._store import client, experiment_id
from tracking.registry import ALIASES, Version

RESAMPLES = 1000
TRAINING = ("features", "classify", "merge")  # the verbs whose time and memory a version costs


def compare(name: str, wanted: list[str] | None = None) -> dict:
    """The versions `wanted` (numbers or aliases; default: those with an alias and the newest of each strategy).

    Raises UsageError for an unknown name, alias or number, naming those that exist.
    """
    everything = registry.versions(name)
    chosen = _choose(name, everything, wanted or [])
    rows = [_row(version) for version in chosen]
    keys = sorted({key for row in rows for key in row["parameters"]})
    differing = {
        key: {row["version"]: row["parameters"].get(key) for row in rows}
        for key in keys if len({row["parameters"].get(key) for row in rows}) > 1
    }
    for row in rows:
        del row["parameters"]
    tested = {row["test"]["rows_digest"] for row in rows if row["test"]}
    return {
        "name": name,
        "versions": rows,
        "left_out": [] if wanted else [version.version for version in everything if version not in chosen],
        "differing_parameters": differing,
        "same_test_rows": len(tested) <= 1,
        "paired": _paired(chosen),
    }


def _choose(name: str, everything: list[Version], wanted: list[str]) -> list[Version]:
    if not wanted:
        newest = {version.tags.get("strategy"): version for version in everything}
        return [version for version in everything if version.aliases or version in newest.values()]
    by_number = {version.version: version for version in everything}
    by_alias = {alias: version for version in everything for alias in version.aliases}
    found = []
    for word in wanted:
        version = by_number.get(word) or by_alias.get(word.removeprefix("@"))
        if version is None:
            known = ", ".join([*by_number, *sorted(by_alias)])
            raise UsageError(f"`{name}` has no version `{word}`: it has {known}")
        if version not in found:
            found.append(version)
    return found


def _row(version: Version) -> dict:
    """Everything of one version; a number that nobody recorded is None."""
    tags, chain = version.tags, _chain(version.run_id)
    test = {}
    if "test.accuracy" in tags:
        test = {
            metric: {bound: _float(tags.get(f"test.{metric}{dot}")) for bound, dot in
                     (("value", ""), ("low", ".low"), ("high", ".high"))}
            for metric in INTERVALS if f"test.{metric}" in tags
        }
        test |= {"rows": _int(tags.get("test.rows")), "rows_digest": tags.get("test_rows")}
    runs = {split_name(run.data.tags["ajuste.stage"])[0]: run.data.metrics for run in chain}
    measured = [runs[verb] for verb in TRAINING if "cost/seconds" in runs.get(verb, {})]
    complete = bool(measured) and len(measured) == sum(verb in runs for verb in TRAINING)
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "alias_history": {key.removeprefix("alias."): tags[key] for key in sorted(tags) if key.startswith("alias.")},
        "created": version.created,
        "strategy": tags.get("strategy"),
        "method": tags.get("method"),
        "test": test,
        "validation": _group(tags, "validation."),
        "trained_parameters": {key: _float(value) for key, value in _group(tags, "parameters.").items()},
        "seconds": sum(numbers["cost/seconds"] for numbers in measured) if complete else None,
        "feature_seconds": runs.get("features", {}).get("cost/seconds"),
        "peak_memory_mb": max(n.get("cost/peak_memory_mb", 0.0) for n in measured) if complete else None,
        "size_bytes": _int(tags.get("size_bytes")),
        "proof": _proof(tags),
        "adapter_version": tags.get("adapter_version"),
        "base": {"id": tags.get("base_id"), "sha256": tags.get("base_sha256")},
        "sha256": tags.get("sha256"),
        "data": tags.get("data"),
        "dvc": tags.get("dvc"),
        "git_commit": tags.get("git_commit"),
        "dirty": {"true": True, "false": False}.get(tags.get("dirty", "")),
        "run_id": version.run_id,
        "parameters": _parameters(chain),
    }


# --- the runs that led to a version ---------------------------------------------------------------------------------


def _chain(run_id: str | None) -> list:
    """The version's run and, by DVC hash, every run that made something that it, or one of those, read."""
    from mlflow.exceptions import MlflowException

    found, seen = [], set()
    try:
        todo = [client().get_run(run_id)] if run_id else []
    except MlflowException:  # somebody deleted the run for good: the version's tags are left
        todo = []
    while todo:
        run = todo.pop()
        if run.info.run_id in seen:
            continue
        seen.add(run.info.run_id)
        found.append(run)
        for key, md5 in run.data.tags.items():
            if key.startswith("dvc.dep.artifacts/"):
                maker = _maker(key.removeprefix("dvc.dep."), md5)
                todo += [maker] if maker else []
    return found


@cache
def _maker(path: str, md5: str) -> object | None:
    """The run that wrote `path` with that hash."""
    found = client().search_runs([experiment_id()], f"tags.`dvc.out.{path}` = '{md5}'", max_results=1)
    return found[0] if found else None


def _parameters(chain: list) -> dict[str, str]:
    """lr, epochs, ... of the training as they are; those of the other stages behind their verb (encode.max_tokens)."""
    found = {}
    for run in chain:
        verb = split_name(run.data.tags["ajuste.stage"])[0]
        for key, value in run.data.params.items():
            found[key if verb == "classify" or key.startswith("compute.") else f"{verb}.{key}"] = value
    return found


# --- the difference on the same rows --------------------------------------------------------------------------------


def _paired(chosen: list[Version]) -> list[dict]:
    """Each version against the reference (champion, else challenger, else the first), on the rows that both share."""
    import numpy as np

    from learning import statistics

    if len(chosen) < 2:
        return []
    reference = next((v for alias in ALIASES[:2] for v in chosen if alias in v.aliases), chosen[0])
    right = {version.version: _right(version) for version in chosen}
    found = []
    for version in chosen:
        a, b = right[version.version], right[reference.version]
        shared = sorted(a.keys() & b.keys())
        if version is reference or not shared:
            continue
        d = np.array([float(a[row]) - float(b[row]) for row in shared])
        means = statistics.resamples(len(d), RESAMPLES, seed=0) @ d / len(d)
        low, high = statistics.percentile_interval(means)
        found.append({
            "version": version.version, "against": reference.version, "metric": "accuracy",
            "difference": float(d.mean()), "low": low, "high": high, "rows": len(d),
            "verdict": "better" if low > 0 else "worse" if high < 0 else "no clear difference",
        })
    return found


def _right(version: Version) -> dict[str, bool]:
    """Whether the version was right, by test row; {} if its evaluation left no predictions."""
    import pyarrow.parquet as pq
    from mlflow.exceptions import MlflowException

    run_id = version.tags.get("evaluate_run")
    if not run_id:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client().download_artifacts(run_id, "results/predictions.parquet", folder)
        except (MlflowException, OSError):
            return {}
        table = pq.read_table(Path(path), columns=["row_id", "label", "strategy", "prediction"]).to_pylist()
    return {row["row_id"]: row["label"] == row["prediction"] for row in table
            if row["strategy"] == version.tags.get("strategy")}


def _proof(tags: dict[str, str]) -> dict | None:
    if "proof.max_logit_difference" not in tags:
        return None
    numbers = ("max_logit_difference", "tolerance", "equal_predictions")
    return {key: _float(tags.get(f"proof.{key}")) for key in numbers} | {
        "rows": _int(tags.get("proof.rows")), "dtype": tags.get("proof.dtype")}


def _group(tags: dict[str, str], prefix: str) -> dict[str, float | None]:
    return {key.removeprefix(prefix): _float(value) for key, value in sorted(tags.items()) if key.startswith(prefix)}


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
