"""What the run would say of a file that makes a new set: its validation, run on the file before anything is published.

The stage's own function runs with the section of params.yaml, on all rows or on TRIAL_ROWS of them (by row id). A set
that the stage would stop at, or of which a split or a class of train would be empty, is refused with the reason. What a
set holds that is only extended is for the run: there the rows of all files count.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import ValidationError

from ajuste.cli.data import sets
from ajuste.cli.data.sets import Added
from ajuste.core.errors import DataError
from ajuste.core.params import Config
from ajuste.rows.sets.base import dump_set

TRIAL_ROWS = 20_000
FEW_ROWS = 100
STAGES = {"classification": "reviews", "instructions": "instructions", "preferences": "preferences"}


def check(name: str, own: str, file: Path, added: Added, workspace: Path) -> list[str]:
    """Lines on what validation keeps of the new set. Raises DataError if no run could use it."""
    kind = STAGES.get(added.set.kind)
    config, validate = _stage(kind) if kind else (None, None)
    if config is None:  # params.yaml has no such section: this project does not validate such sets
        return []
    data = workspace / "trial"
    (data / name).mkdir(parents=True)
    (data / name / "set.yaml").write_text(dump_set(added.set), encoding="utf-8")
    (data / name / own).symlink_to(file.resolve())
    changes = {"set": name, "sample": min(1.0, TRIAL_ROWS / added.seen.rows)}
    if kind == "preferences":
        changes["shared_with"] = []
    if kind == "instructions":
        judge = sets.DATA / config.decontaminate
        if judge.name != name and judge.exists():
            (data / judge.name).symlink_to(judge.resolve())
        elif judge.name != name:  # not pulled yet: what it judges is not known, all else is
            changes["decontaminate"] = _without_texts(data / "nothing")
    try:
        report = validate(config.model_copy(update=changes), None, data / name, workspace / "validated")
    except DataError as error:
        raise DataError(f"the run would stop at this file: {str(error).partition('. Every row: ')[0]}") from None
    return _said(file, report)


def _stage(kind: str) -> tuple[Config | None, Callable | None]:
    """The stage's configuration and function; none if params.yaml does not have its section, whole and valid."""
    module = importlib.import_module(f"tasks.validate.{kind}")
    try:
        values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["validate"][kind]
        return getattr(module, f"{kind.capitalize()}Config")(**values), getattr(module, f"validate_{kind}")
    except (OSError, KeyError, TypeError, ValidationError, yaml.YAMLError):
        return None, None


def _without_texts(folder: Path) -> str:
    """The name of a set that no row can share an n-gram with, made."""
    folder.mkdir()
    (folder / "few.jsonl").write_text('{"text": "-", "label": "a"}\n', encoding="utf-8")
    (folder / "set.yaml").write_text(
        "kind: classification\nlabels: [a, b]\nlicence: none\nfiles:\n"
        "- {path: few.jsonl, format: jsonl, columns: {text: text, label: label}, source: none}\n", encoding="utf-8"
    )  # fmt: skip
    return folder.name


def _said(file: Path, report: dict) -> list[str]:
    rows, splits = report["rows"], report["splits"]
    counts = {split: found["rows"] for split, found in splits.items()}
    shown = ", ".join(f"{split} {n:,}" for split, n in counts.items())
    empty = [split for split, n in counts.items() if not n]
    if empty:
        raise DataError(
            f"{file.name}: {rows['kept']:,} rows are kept, split into {shown}: {empty[0]} has none, so nothing can be "
            "trained and judged. A split is decided by each text's hash, 80/10/10: give at least some 100 rows"
        )
    without = [label for label, n in splits["train"].get("labels", {}).items() if not n]
    if without:
        raise DataError(f"{file.name}: class `{without[0][:60]}` has no row in train ({shown}): give more rows of it")
    said = [f"validation keeps {rows['kept']:,} of {rows['read']:,} rows: {shown}"]
    bad = {check["name"]: check["rows_failed"] for check in report["checks"][:-1]  # the last one is of all together
           if check["severity"] == "error" and check["rows_failed"]}  # fmt: skip
    if bad:
        said.append("quarantine: " + ", ".join(f"{check} {n:,}" for check, n in bad.items()))
    if rows["kept"] < FEW_ROWS:
        said.append(f"note: {rows['kept']} rows are few: figures on {counts['test']} rows of test say little")
    for split in ("validation", "test"):
        none = [label for label, n in splits[split].get("labels", {}).items() if not n]
        if none:
            said.append(f"note: {split} has no row of class {', '.join(none[:5])}: give more rows of it")
    return said
