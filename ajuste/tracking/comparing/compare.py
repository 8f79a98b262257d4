"""Registered versions side by side: which is better, is the difference real, and what was done differently?

    metrics        of the test rows, each with its 95 % bootstrap interval; validation beside them; forgetting;
                   the scores of the alignment ledger, each with its judge
    paired         the difference in accuracy of two versions on the test rows that both were judged on:
                   d_i = 1[a right on row i] - 1[b right on row i],  mean(d) with the 2.5 % and 97.5 % percentiles of
                   its mean over 1000 resamples of rows. It is far sharper than two intervals that overlap or not.
                   Of assistants the difference in held-out loss, sum(d) / sum(tokens) with d_i that of row i's -log p;
                   of a version that was made from another what its evaluation judged of both, on the same prompts
    answers        of assistants: what each version, and the base, said to the same prompts
    parameters     only those that differ, over everything that led to the version (its run and the runs that made
                   what that one read, found by DVC hash)
    from           data digest, DVC hash, git commit, base
    cost           seconds, peak memory, size; for features and head, and for adapter and merge, the sum

`compare` returns plain data; ajuste/tracking/comparing/text.py makes tables of it,
ajuste/tracking/pages/compare_page.py an HTML page; ajuste/tracking/comparing/rows.py reads the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from ajuste.core.errors import UsageError
from ajuste.core.stages import split_name
from ajuste.judging.alignment.ledger import as_json
from ajuste.tracking.comparing import rows as comparing_rows
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families import ledgers
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs.store import client, experiment_id, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

    Get, Maker = Callable[[str], Run | None], Callable[[str, str], Run | None]

DEP = "dvc.dep.artifacts/"


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
        "paired": comparing_rows.paired(chosen),
        "answers": comparing_rows.answers(chosen),
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
    tags, led = version.tags, chain(version.run_id)
    figures = [figure for figure in families.figures_of(version.name) if f"test.{figure}" in tags]
    test: dict = {figure: _interval(tags, f"test.{figure}") for figure in figures}
    if test:
        test |= {"rows": _int(tags.get("test.rows")), "rows_digest": tags.get("test_rows")}
    control = [key for key in sorted(tags) if key.startswith("forgetting.") and not key.endswith((".low", ".high"))]
    runs = {run.data.tags["ajuste.stage"]: run.data.metrics for run in led}
    costing = families.training_verbs()
    trained = [numbers for stage, numbers in sorted(runs.items()) if split_name(stage)[0] in costing]
    measured = [numbers for numbers in trained if "cost/seconds" in numbers]
    complete = bool(measured) and len(measured) == len(trained)
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "alias_history": {key.removeprefix("alias."): tags[key] for key in sorted(tags) if key.startswith("alias.")},
        "created": version.created,
        "strategy": tags.get("strategy"),
        "method": tags.get("method"),
        "test": test,
        "validation": _group(tags, "validation."),
        "forgetting": {key.removeprefix("forgetting."): _interval(tags, key) for key in control},
        "alignment": _alignment(tags),
        "trained_parameters": {key: _float(value) for key, value in _group(tags, "parameters.").items()},
        "seconds": sum(numbers["cost/seconds"] for numbers in measured) if complete else None,
        "feature_seconds": next((n.get("cost/seconds") for s, n in runs.items() if s.startswith("features")), None),
        "peak_memory_mb": max(n.get("cost/peak_memory_mb", 0.0) for n in measured) if complete else None,
        "size_bytes": _int(tags.get("size_bytes")),
        "proof": _proof(tags),
        "adapter_version": tags.get("adapter_version"),
        "base_version": tags.get("base_version"),
        "base": {"id": tags.get("base_id"), "sha256": tags.get("base_sha256")},
        "sha256": tags.get("sha256"),
        "data": tags.get("data"),
        "dvc": tags.get("dvc"),
        "git_commit": tags.get("git_commit"),
        "dirty": {"true": True, "false": False}.get(tags.get("dirty", "")),
        "reproduced": json.loads(tags["reproduced"]) if "reproduced" in tags else None,
        "run_id": version.run_id,
        "trained_run": _trained_by(led, tags.get("stage", "")),
        "parameters": _parameters(led, tags.get("stage", "")),
    }


# --- the runs that led to a version ---------------------------------------------------------------------------------


def chain(run_id: str | None, get: Get | None = None, maker: Maker | None = None) -> list[Run]:
    """The version's run and, by DVC hash, every run that made something that it, or one of those, read.

    get: a run by its id, None for one that is gone; maker: the run that wrote a path with a hash. The store's, unless
    given: whoever asks for a thousand versions has read all runs once.
    """
    get, maker = get or _run, maker or (lambda path, md5: _maker(tracking_uri(), path, md5))
    first = get(run_id) if run_id else None
    found, todo = {}, [first] if first else []
    while todo:
        run = todo.pop()
        if run.info.run_id in found:
            continue
        found[run.info.run_id] = run
        for key, md5 in run.data.tags.items():
            if key.startswith(DEP):
                made = maker(key.removeprefix("dvc.dep."), md5)
                todo += [made] if made else []
    return list(found.values())


def _run(run_id: str) -> Run | None:
    """None where somebody deleted the run for good: a version's tags are left."""
    from mlflow.exceptions import MlflowException

    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


@cache
def _maker(store: str, path: str, md5: str) -> Run | None:
    """The run of a store that wrote `path` with that hash."""
    found = client().search_runs([experiment_id()], f"tags.`dvc.out.{path}` = '{md5}'", max_results=1)
    return found[0] if found else None


def _trained_by(chain: list, stage: str) -> str | None:
    """The run of the training itself, which has the curves: of a merged model its adapter's."""
    family = families.of_stage(stage)
    found = [run.info.run_id for run in chain
             if family and split_name(run.data.tags["ajuste.stage"])[0] == family.trains]
    return found[0] if found else None


def _parameters(chain: list, stage: str) -> dict[str, str]:
    """lr, epochs, ... of the version's own training as they are; of other stages by their full names of params.yaml:
    a training may read two bases, as that of the policy and the encoder of its gold scorer."""
    family = families.of_stage(stage)
    own = family.trains if family else split_name(stage)[0]
    found = {}
    for run in chain:
        verb, variant = split_name(run.data.tags["ajuste.stage"])
        section = f"{verb}.{variant}".rstrip(".")
        for key, value in run.data.params.items():
            found[key if verb == own or key.startswith("compute.") else f"{section}.{key}"] = value
    return found


# --- numbers out of tags --------------------------------------------------------------------------------------------


def _proof(tags: dict[str, str]) -> dict | None:
    if "proof.max_logit_difference" not in tags:
        return None
    numbers = ["max_logit_difference", "tolerance", "equal_predictions"]
    numbers += ["equal_greedy_tokens"] if "proof.equal_greedy_tokens" in tags else []
    return {key: _float(tags.get(f"proof.{key}")) for key in numbers} | {
        "rows": _int(tags.get("proof.rows")), "dtype": tags.get("proof.dtype")}


def _alignment(tags: dict[str, str]) -> dict[str, dict]:
    """The scores of its alignment ledger by name; {} where nobody measured it."""
    found = ledgers.of_tags(tags)
    return {score["name"]: score for score in as_json(found)["scores"]} if found else {}


def _interval(tags: dict[str, str], key: str) -> dict[str, float | None]:
    bounds = (("value", key), ("low", f"{key}.low"), ("high", f"{key}.high"))
    return {bound: _float(tags.get(name)) for bound, name in bounds}


def _group(tags: dict[str, str], prefix: str) -> dict[str, float | None]:
    return {key.removeprefix(prefix): _float(value) for key, value in sorted(tags.items()) if key.startswith(prefix)}


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
