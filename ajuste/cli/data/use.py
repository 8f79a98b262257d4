"""What params.yaml needs so that the next run uses the rows that `ajuste data add` brought: said, or written."""

import io
from pathlib import Path

import typer
from ruamel.yaml import YAML

from ajuste.core.errors import UsageError
from ajuste.core.home import write_atomically

PARAMS = Path("params.yaml")


def _params() -> dict:
    """params.yaml with its comments, as ruamel.yaml reads it."""
    return _yaml().load(PARAMS.read_text(encoding="utf-8")) if PARAMS.exists() else {}


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    yaml.representer.add_representer(
        type(None), lambda node, _: node.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def classification_changes(name: str, stem: str, by_file: bool) -> list[tuple[str, object]]:
    """What params.yaml needs so that the next run uses the new rows of a classification set."""
    validate, encode = (_params().get(verb, {}).get("reviews", {}) for verb in ("validate", "encode"))
    if validate.get("set") != name:
        return [("validate.reviews.set", name)] + ([("encode.reviews.sources", [])] if encode.get("sources") else [])
    if encode.get("sources") and not (by_file and stem in encode["sources"]):
        return [("encode.reviews.sources", [*encode["sources"], stem] if by_file else [])]
    return []


def instruction_changes(name: str, sources: set[str]) -> list[tuple[str, object]]:
    """What params.yaml needs so that the next run uses the set: its name, and weights for no source that it lacks."""
    validate, encode = (_params().get(verb, {}).get("instructions", {}) for verb in ("validate", "encode"))
    if validate.get("set") == name:
        return []
    weights = dict(encode.get("weights") or {})
    kept = {source: weight for source, weight in weights.items() if source in sources}
    return [("validate.instructions.set", name)] + ([("encode.instructions.weights", kept)] if kept != weights else [])


def preference_changes(name: str) -> list[tuple[str, object]]:
    """What params.yaml needs so that the next run uses the set of preferences."""
    used = _params().get("validate", {}).get("preferences", {}).get("set")
    return [] if used == name else [("validate.preferences.set", name)]


def lacks_gold(stem: str, by_file: bool) -> bool:
    """Whether a classification set has not the source that RLHF's gold scorer learns from: its stages cannot run then.

    Sources are file names unless the set has a column for them, which is left for the stage to judge.
    """
    return by_file and _params().get("gold", {}).get("source", stem) != stem


def use_in_study(study: str, name: str, write: bool) -> None:
    """Say, or write, what the params.yaml of a study needs to train on the set, and how the study is run."""
    path = Path("studies") / study / "params.yaml"
    if write:
        if not path.is_file():
            raise UsageError(f"{path} is missing: the study cannot be pointed at the set")
        params = _yaml().load(path.read_text(encoding="utf-8"))
        params["set"] = f"data/{name}"
        text = io.StringIO()
        _yaml().dump(params, text)
        write_atomically(path, text.getvalue())
    typer.echo(f"{path if write else f'set in {path}'}: set: data/{name}")
    run = f"ajuste study {study}"
    typer.echo(f"next: {run}" if write else f"then: {run}   (--use writes this for you)")


def use(changes: list[tuple[str, object]], write: bool, alone: str = "") -> None:
    """Say, or write, what params.yaml needs. A change is a dotted key and its value.

    `alone`: the registered name that alone can be made with the set, "" if all can.
    """
    run = f"ajuste run {alone}".rstrip()
    if alone:
        typer.echo("note: RLHF's judge `gold` learns from a source of the set `reviews` that this set has not: run the "
                   "classifiers alone")
    if not changes:
        typer.echo(f"next: {run}")
        return
    params = _params()
    for key, value in changes:
        *parts, last = key.split(".")
        part = params
        for step in parts:
            part = part.get(step) if isinstance(part, dict) else None
        if write:
            if not isinstance(part, dict):
                raise UsageError(f"params.yaml has no section `{'.'.join(parts)}`: it cannot be pointed at the set")
            part[last] = value
        typer.echo(f"{'params.yaml' if write else 'set in params.yaml'}: {key}: {value}")
        share = part.get("sample", 1) if last == "set" and isinstance(part, dict) else 1
        if share < 1:
            typer.echo(f"note: {'.'.join(parts)}.sample is {share}: a run takes that share of the rows, 1.0 takes all")
    if write:
        text = io.StringIO()
        _yaml().dump(params, text)
        write_atomically(PARAMS, text.getvalue())
    typer.echo(f"next: {run}" if write else f"then: {run}   (--use writes these for you)")
