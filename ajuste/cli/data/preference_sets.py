"""How `ajuste data add` and `show` treat files of preferences: which layout a file has, and what it holds."""

from pathlib import Path

from ajuste.cli.data import use as in_params
from ajuste.cli.data.sets import BATCH_ROWS, Added, Asked, Seen, dropped, listed_columns
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.checks.turns import clean
from ajuste.rows.layouts.preferences import LAYOUTS, Comparison, columns_known, needs_of_layouts, recognise
from ajuste.rows.read.comparisons import read_comparisons
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import check_needed, read_records, record_columns
from ajuste.rows.sets.base import check_set
from ajuste.rows.sets.preferences import PreferenceFile, PreferenceSet

OFFERED = [layout for layout in LAYOUTS if layout != "raters"]
SAMPLE_ROWS = 100


def prepare(asked: Asked, path: Path, own: str, form: str, old: PreferenceSet | None) -> Added:
    """The set with the file, once the whole file was read."""
    file = file_of(path, own, form, asked.layout, asked.mapping, asked.source)
    new = extend(old, file, asked.licence, asked.prompt)
    seen = look(path, new, file)
    changes = in_params.preference_changes(asked.name)
    used = {asked.mapping.get(key, key) for key in columns_known(file.layout)}
    said = [contents(seen), *dropped(path, form, used)]
    return Added(new, seen, file.layout, said, lambda: in_params.use(changes, asked.use))


def is_for_preferences(path: Path, form: str, mapping: dict[str, str]) -> bool:
    """Whether a file that makes a new set holds preferences: by its columns and first rows, unless it has a label."""
    if form == "txt" or "label" in mapping:
        return False
    return recognised(path, form, mapping) is not None


def recognised(path: Path, form: str, mapping: dict[str, str]) -> str | None:
    """The layout that columns and first rows show, or None."""
    return recognise(record_columns(path, form), mapping, next(read_records(path, form, SAMPLE_ROWS)))


def file_of(path: Path, own: str, form: str, given: str, mapping: dict[str, str], source: str) -> PreferenceFile:
    """The entry of set.yaml for a file, of the named layout or else the recognised one. Raises UsageError or
    DataError."""
    if form == "txt":
        raise UsageError(f"{path}: a .txt file has no columns: give preferences as CSV, JSON, JSON Lines or Parquet")
    layout = given or recognised(path, form, mapping)
    if layout is None:
        raise DataError(
            f"{path}: no layout of preferences has its columns: {listed_columns(path, form)}. A layout needs: "
            f"{needs_of_layouts()}. Name your columns, such as --map chosen=COLUMN --map rejected=COLUMN"
        )
    known = columns_known(layout)
    wrong = sorted(mapping.keys() - set(known))
    if wrong:
        raise UsageError(
            f"--map {wrong[0]}={mapping[wrong[0]]}: layout {layout} has no `{wrong[0]}`; it has {', '.join(known)}"
        )
    made = PreferenceFile(path=own, format=form, layout=layout, columns=mapping, source=source or f"path:{own}")
    check_needed(path, record_columns(path, form), made.needed(), layout)
    return made


def extend(old: PreferenceSet | None, file: PreferenceFile, licence: str, prompt: str) -> PreferenceSet:
    """The set with one more file. Raises UsageError for rated texts without a prompt, or with another one."""
    asked = prompt or (old.prompt if old else None)
    if file.layout == "ratings" and not asked:
        raise UsageError("rated texts need what they all answer: --prompt 'Write a one-sentence movie review.'")
    if old and old.prompt and asked != old.prompt:
        raise UsageError(f"the set's texts answer `{old.prompt[:60]}`: leave out --prompt, or choose another set name")
    values = {
        "kind": "preferences", "prompt": asked, "licence": old.licence if old else licence,
        "files": [part.model_dump(exclude_none=True) for part in [*(old.files if old else []), file]],
    }  # fmt: skip
    return check_set(values, "set.yaml", PreferenceSet)


def look(path: Path, data_set: PreferenceSet, file: PreferenceFile) -> Seen:
    """Read the whole file once; path: where it lies now. Raises DataError for what is wrong with it as a whole."""
    seen = Seen()
    placed = file.model_copy(update={"path": path.name})
    for batch in read_comparisons(path.parent, data_set, placed, BATCH_ROWS):
        good = seen.readable(path, batch, [row.fault[1] if row.fault else None for row in batch])
        seen.values.update(len(row.responses) for row in good)
        for row in good:
            seen.place(clean(row.about())[0])
    seen.check_any(path, file.layout)
    return seen


def contents(seen: Seen) -> str:
    """What the rows hold, in one line."""
    names = {1: "rated texts", 2: "pairs"}
    return ", ".join(f"{names.get(k, f'rankings of {k}')} {n:,}" for k, n in sorted(seen.values.items()))


def shown(row: Comparison) -> str:
    """One line that says what a row holds."""

    def short(text: str, most: int) -> str:
        text = " ".join(printable(text).split())
        return text[:most] + ("..." if len(text) > most else "")

    if row.raters is not None:
        return f"  line {row.line}: {short(row.responses[0], 80)} | {len(row.raters)} raters, mean {row.ratings[0]:.2f}"
    asked = short(row.prompt[-1]["content"], 60) if row.prompt else ""
    return f"  line {row.line}: {asked} | " + " > ".join(short(text, 60) for text in row.responses[:4])
