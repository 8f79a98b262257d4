"""What the run would say of a set once a file is added: its validation, run before anything is published.

The stage's own function runs with its section of params.yaml (of tagged words and questions: of their study's), on all
files of the set, on all rows or on some TRIAL_ROWS of them (by row id); of a larger file the splits, and the classes in
them, are counted on all its rows. A set that the stage would stop at, or of which a split or a class of train would be
empty, is refused with the reason. Where the base is there, texts in a language that it does not know are told.
"""

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import ValidationError

from ajuste.cli.data import sets
from ajuste.cli.data.sets import Added
from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, Config
from ajuste.rows.read.values import class_of
from ajuste.rows.sets.base import dump_set
from ajuste.rows.split import SPLITS

TRIAL_ROWS = 20_000
FEW_ROWS = 100
STAGES = {"classification": "reviews"}  # kind -> stage and section, where they are not called alike
STUDIES = {"words": "ner", "questions": "qa"}  # kind -> the study whose params.yaml has the section
BASE = Path("artifacts/base/encoder")
UNKNOWN_ROWS = {"train": 2000, "validation": 200, "test": 200}  # that are tokenized, to tell what the base knows


def check(name: str, own: str, file: Path, added: Added, workspace: Path) -> list[str]:
    """Lines on what validation keeps of the set. Raises DataError if no run could use it."""
    kind = STAGES.get(added.set.kind, added.set.kind)
    config, validate = _stage(kind)
    if config is None:  # no params.yaml has such a section: this project does not validate such sets
        return []
    data = workspace / "trial"
    size = _placed(data / name, own, file, added)
    if not size:
        return []
    rows = added.seen.rows * size / file.stat().st_size  # of a file alone exactly, of more about so many
    changes = {"set": name, "sample": min(1.0, TRIAL_ROWS / rows), **_beside(kind, name, data, config)}
    try:
        report = validate(config.model_copy(update=changes), None, data / name, workspace / "validated")
    except DataError as error:
        words = str(error).partition(". Every row: ")[0].replace(f"{data}/", "data/")
        roles = "".join(f"; {line}" for line in added.seen.unknown_roles())
        raise DataError(f"the run would stop at this file: {words}{roles}") from None
    said = _said(file.name, report, _all_rows(added) if changes["sample"] < 1 else None)
    if set(added.seen.roles) == {"text"} and len(added.set.files) == 1:
        said.append("note: general text alone: validation and test need instructions too, so add some to this set")
    if kind == "reviews":
        _tell_unknown(workspace)
    return said


def _placed(folder: Path, own: str, file: Path, added: Added) -> int:
    """The set in a folder of its own, by links; bytes of all its files, 0 if one of them is not there."""
    folder.mkdir(parents=True)
    (folder / "set.yaml").write_text(dump_set(added.set), encoding="utf-8")
    size = 0
    for part in added.set.files:
        path = file if part.path == own else sets.DATA / folder.name / part.path
        if not path.is_file():
            return 0
        (folder / part.path).symlink_to(path.resolve())
        size += path.stat().st_size
    return size


def _stage(kind: str) -> tuple[Config | None, Callable | None]:
    """The stage's configuration and function; none if params.yaml does not have its section, whole and valid."""
    module = importlib.import_module(f"tasks.validate.{kind}")
    model, validate = getattr(module, f"{kind.capitalize()}Config"), getattr(module, f"validate_{kind}")
    try:
        if kind in STUDIES:
            path = Path("studies") / STUDIES[kind] / "params.yaml"
            values = yaml.safe_load(path.read_text(encoding="utf-8"))["validate"] | {"set": kind}
        else:
            values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["validate"][kind]
        return model(**values), validate
    except (OSError, KeyError, TypeError, ValidationError, yaml.YAMLError):
        return None, None


def _beside(kind: str, name: str, data: Path, config: Config) -> dict:
    """Other sets that the stage looks at, placed beside this one; what the configuration says of them."""
    if kind == "preferences":
        return {"shared_with": []}
    if kind != "instructions" or config.decontaminate == name:
        return {}
    judge = sets.DATA / config.decontaminate
    if judge.exists():
        (data / judge.name).symlink_to(judge.resolve())
        return {}
    return {"decontaminate": _without_texts(data / "nothing")}  # not pulled yet: what it judges is not known


def _without_texts(folder: Path) -> str:
    """The name of a set that no row can share an n-gram with, made."""
    folder.mkdir()
    (folder / "few.jsonl").write_text('{"text": "-", "label": "a"}\n', encoding="utf-8")
    (folder / "set.yaml").write_text(
        "kind: classification\nlabels: [a, b]\nlicence: none\nfiles:\n"
        "- {path: few.jsonl, format: jsonl, columns: {text: text, label: label}, source: none}\n", encoding="utf-8"
    )  # fmt: skip
    return folder.name


def _all_rows(added: Added) -> dict[str, Counter]:
    """Split -> label -> rows, of all rows of the file that can be read; without labels there is one, ""."""
    found = {split: Counter() for split in SPLITS}
    labels = getattr(added.set, "labels", None)
    names = getattr(added.set.files[-1], "label_names", None)
    for (split, value), n in added.seen.splits.items():
        found[SPLITS[split]][class_of(value, labels, names) if labels and value else value] += n
    return found


def _said(name: str, report: dict, every: dict[str, Counter] | None) -> list[str]:
    """What validation found, in lines. every: of a set that was sampled, the rows of its new file by split and label.
    Raises DataError for an empty split, or a class without a row in train."""
    rows, splits = report["rows"], report["splits"]
    counts = {split: found["rows"] if every is None else every[split].total() for split, found in splits.items()}
    shown = ", ".join(f"{split} {n:,}" for split, n in counts.items())
    empty = [split for split, n in counts.items() if not n]
    if empty:
        raise DataError(
            f"{name}: {rows['kept']:,} rows are kept, split into {shown}: {empty[0]} has none, so nothing can be "
            "trained and judged. A split is decided by each text's hash, 80/10/10: give at least some 100 rows"
        )
    lacking = {split: [label for label, n in found.get("labels", {}).items() if not n and not (every or {}).get(
        split, {}).get(label)] for split, found in splits.items()}  # fmt: skip
    if lacking["train"]:
        raise DataError(f"{name}: class `{lacking['train'][0][:60]}` has no row in train ({shown}): give more rows of "
                        "it")  # fmt: skip
    if every is None:
        said = [f"validation keeps {rows['kept']:,} of {rows['read']:,} rows: {shown}"]
    else:
        said = [f"all rows of the file: {shown}",
                f"of a sample of {rows['read']:,} rows of the set validation keeps {rows['kept']:,}"]  # fmt: skip
    bad = {check["name"]: check["rows_failed"] for check in report["checks"][:-1]  # the last one is of all together
           if check["severity"] == "error" and check["rows_failed"]}  # fmt: skip
    if bad:
        said.append("quarantine: " + ", ".join(f"{check} {n:,}" for check, n in bad.items()))
    if rows["kept"] < FEW_ROWS:
        said.append(f"note: {rows['kept']} rows are few: figures on {counts['test']} rows of test say little")
    for split, found in splits.items():
        if none := lacking[split]:
            said.append(f"note: {split} has no row of class {', '.join(none[:5])}: give more rows of it")
        if none := [tag for tag, n in found.get("tags", {}).items() if not n]:
            said.append(f"note: {split} has no word tagged {', '.join(none[:5])}")
    return said


def _tell_unknown(workspace: Path) -> None:
    """Stage `encode_reviews` on some of the validated rows, for its warning of texts that the base cannot read."""
    from ajuste.rows.encoded.encoding import RowLimits
    from tasks.encode.reviews import ReviewsConfig, encode_reviews

    if not (BASE / "tokenizer.json").is_file():  # not brought yet: the stage says it later
        return
    try:
        params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        values = {**params["encode"]["reviews"], "sources": [], "rows": RowLimits(**UNKNOWN_ROWS)}
        encode_reviews(ReviewsConfig(**values), Compute(**params["compute"]), workspace / "validated", BASE,
                       workspace / "encoded")  # fmt: skip
    except (KeyError, TypeError, ValidationError, UsageError):  # what is wrong there is no fault of this file
        return
