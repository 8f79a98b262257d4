"""How `ajuste data add` and `show` treat files of instructions: which layout a file has, and what it holds."""

from pathlib import Path

import yaml

from ajuste.cli.data import use as in_params
from ajuste.cli.data.sets import BATCH_ROWS, Added, Asked, Seen, dropped, listed_columns
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.checks.turns import clean
from ajuste.rows.decontaminate import split_source
from ajuste.rows.layouts import preferences
from ajuste.rows.layouts.instructions import (
    LAYOUTS,
    Row,
    columns_known,
    columns_needed,
    needs_of_layouts,
    recognise,
    template_fields,
    to_row,
)
from ajuste.rows.layouts.meant import VERDICT_WORDS, unpaired
from ajuste.rows.read.files import columns_of, hint_of, printable
from ajuste.rows.read.records import TAG_BEGIN, check_needed, read_records, record_columns
from ajuste.rows.read.texts import check_columns
from ajuste.rows.sets.base import check_set
from ajuste.rows.sets.classification import Columns
from ajuste.rows.sets.instructions import InstructionFile, InstructionSet

TEMPLATES = Path("sources/templates")
SAMPLE_ROWS = 100


def prepare(asked: Asked, path: Path, own: str, form: str, old: InstructionSet | None) -> Added:
    """The set with the file, once the whole file was read."""
    layout = layout_of(path, form, asked.mapping, asked.layout, asked.templates)
    _check_paired(path, form, layout, asked.mapping)
    file = file_of(path, own, form, layout, asked.mapping, asked.templates, asked.labels, asked.source)
    seen = look(path, file)
    new = extend(old, file, asked.licence)
    sources = {part.name or Path(part.path).stem for part in new.files}
    changes = in_params.instruction_changes(asked.name, sources)
    used = {asked.mapping.get(key, key) for key in columns_known(layout, file.phrasings())}
    said = [f"categories: {categories(seen)}", *seen.unknown_roles(), *dropped(path, form, used)]
    return Added(new, seen, layout, said, lambda: in_params.use(changes, asked.use))


def _check_paired(path: Path, form: str, layout: str, mapping: dict[str, str]) -> None:
    """Raises DataError for completions that a label calls good or bad: as instructions the bad ones would be learnt."""
    if layout in ("templates", "text", "tagged") or form == "txt" or "label" in mapping.values():
        return
    first = next(read_records(path, form, SAMPLE_ROWS))
    if unpaired([record.values for record in first if record.values], VERDICT_WORDS):
        raise DataError(
            f"{path}: `label` says of each completion whether it is good: these are unpaired preferences (KTO), and no "
            "method here learns from them. Give pairs with prompt, chosen and rejected, or the good rows alone without "
            "the column `label`"
        )


def is_for_instructions(path: Path, form: str, mapping: dict[str, str]) -> bool:
    """Whether a file that makes a new set holds instructions: by its columns, unless it has a label."""
    own = {key for layout in LAYOUTS for key in columns_known(layout)} - {"text", "source"}
    if form == "txt" or mapping.keys() & own:
        return True
    found = record_columns(path, form)
    if "label" in mapping or {"text", "label"} <= set(found):
        return False
    layout = recognise(found, mapping, _is_tagged(path, form, found, mapping))
    return layout not in (None, "text")  # general text is named: it may as well be texts whose labels were forgotten


def check_labelled(path: Path, form: str, columns: Columns) -> None:
    """Raises DataError for a file that makes a new set and is neither labelled text, instructions nor preferences."""
    found = columns_of(path, form)
    try:
        check_columns(path, found, columns)
    except DataError as error:
        if hint_of(found):  # what is wrong is known
            raise
        raise DataError(
            f"{error}. Of instructions a layout needs: {needs_of_layouts()}; of preferences: "
            f"{preferences.needs_of_layouts()}; --layout names one"
        ) from None


def layout_of(path: Path, form: str, mapping: dict[str, str], given: str, templates: str) -> str:
    """The layout that was named, else the one that the columns show. Raises UsageError or DataError."""
    if templates and given not in ("", "templates"):
        raise UsageError(f"--templates makes instructions of labelled rows: leave out --layout {given}")
    if given == "templates" and not templates:
        raise UsageError("--layout templates needs --templates NAME: a file of sources/templates, or a path to one")
    if given or templates:
        return given or "templates"
    found = record_columns(path, form)
    layout = recognise(found, mapping, _is_tagged(path, form, found, mapping))
    if layout is None:
        raise DataError(
            f"{path}: no layout of instructions has its columns: {listed_columns(path, form)}. A layout needs: "
            f"{needs_of_layouts()}. Name your columns, such as --map instruction=COLUMN --map output=COLUMN"
        )
    return layout


def _is_tagged(path: Path, form: str, found: list[str], mapping: dict[str, str]) -> bool:
    column = mapping.get("text", "text")
    if column not in found:
        return False
    first = next(read_records(path, form, SAMPLE_ROWS))
    texts = [record.values[column] for record in first if record.values and isinstance(record.values.get(column), str)]
    return 2 * sum(TAG_BEGIN in text for text in texts) > len(texts)


def file_of(path: Path, own: str, form: str, layout: str, mapping: dict[str, str], templates: str, labels: str,
            source: str) -> InstructionFile:  # fmt: skip
    """The entry of set.yaml for a file. Raises UsageError or DataError that says what to do."""
    category, phrasings = _read_templates(templates) if templates else (None, None)
    known = columns_known(layout, phrasings)
    wrong = sorted(mapping.keys() - set(known))
    if wrong:
        raise UsageError(
            f"--map {wrong[0]}={mapping[wrong[0]]}: layout {layout} has no `{wrong[0]}`; it has {', '.join(known)}"
        )
    if labels and (layout != "templates" or "label" not in template_fields(phrasings or [])):
        raise UsageError("--labels names the values of {label} in templates: here is no such column")
    names = None
    if labels:
        pairs = [part.partition("=") for part in labels.split(",") if part.strip()]
        if not all(is_map for _, is_map, _ in pairs):
            raise UsageError(f"--labels {labels}: for templates write VALUE=name,VALUE=name")
        names = {value.strip(): name.strip() for value, _, name in pairs}
    if form == "txt" and layout not in ("text", "tagged"):
        raise UsageError(f"{path}: a .txt file has no columns, so its layout is text or tagged, not {layout}")
    values = {"path": own, "format": form, "layout": layout, "columns": mapping, "source": source or f"path:{own}",
              "category": category, "templates": phrasings, "label_names": names}  # fmt: skip
    found = {"kind": "instructions", "licence": "unknown", "files": [values]}
    made = check_set(found, str(path), InstructionSet).files[0]
    check_needed(path, record_columns(path, form), columns_needed(layout, mapping, phrasings), layout)
    return made


def _read_templates(name: str) -> tuple[str | None, list[dict]]:
    """Category and phrasings of a file of templates."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else TEMPLATES / f"{name}.yaml"
    known = ", ".join(sorted(other.stem for other in TEMPLATES.glob("*.yaml"))) or "none"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        category, phrasings = values.get("category"), values["templates"]
        phrasings = [{part: str(phrasing[part]) for part in ("prompt", "response")} for phrasing in phrasings]
    except FileNotFoundError:
        raise UsageError(f"--templates {name}: {path} does not exist; sources/templates has {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: write `category: NAME` and `templates:`, a list of `prompt:` and `response:` texts in which "
            "{column} stands for the row's value"
        ) from None
    return category and str(category), phrasings


def extend(old: InstructionSet | None, file: InstructionFile, licence: str) -> InstructionSet:
    """The set with one more file."""
    files = [part.model_dump(exclude_none=True) for part in [*(old.files if old else []), file]]
    values = {"kind": "instructions", "licence": old.licence if old else licence, "files": files}
    return check_set(values, "set.yaml", InstructionSet)


def look(path: Path, file: InstructionFile) -> Seen:
    """Read the whole file once. Raises DataError for what is wrong with it as a whole."""
    seen = Seen()
    phrasings = file.phrasings()
    for batch in read_records(path, file.format, BATCH_ROWS, file.layout == "tagged"):
        rows = [to_row(record, file.layout, file.columns, phrasings, file.label_names) for record in batch]
        good = seen.readable(path, rows, [row.problem for row in rows])
        seen.values.update(printable(row.category or file.category or "(none)") for row in good)
        seen.roles.update(turn["role"] for row in good for turn in row.messages)
        for row in good:
            seen.place(clean(split_source(row.messages, row.split))[0])
    seen.check_any(path, file.layout)
    return seen


def shown(row: Row) -> str:
    """One line that says what a row holds."""
    turns = (f"{turn['role']}: {' '.join(printable(turn['content']).split())[:80]}" for turn in row.messages[:4])
    return f"  line {row.line}: " + " | ".join(turns) + (" | ..." if len(row.messages) > 4 else "")


def categories(seen: Seen) -> str:
    """The most frequent categories with their rows, in one line."""
    listed = ", ".join(f"{name[:40]} {n:,}" for name, n in seen.values.most_common(10))
    return listed + (", ..." if len(seen.values) > 10 else "")
