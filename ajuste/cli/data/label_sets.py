"""How `ajuste data add` and `show` treat files of texts and classes: their columns, their classes, folders by label."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from ajuste.cli.data import instruction_sets
from ajuste.cli.data import use as in_params
from ajuste.cli.data.sets import BATCH_ROWS, Added, Asked, Seen, dropped
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.clean import INVISIBLE, clean, lone
from ajuste.rows.read.files import printable
from ajuste.rows.read.texts import read_rows
from ajuste.rows.read.values import class_of, same_name
from ajuste.rows.sets.base import check_set
from ajuste.rows.sets.classification import ClassificationSet, Columns, SourceFile

PARTS = {"train", "test", "dev", "val", "valid", "validation"}  # folders between a set and its labels, as in aclImdb
UNLABELLED = {"unsup"}  # aclImdb's reviews without a label
MIN_CLASS_SHARE, MIN_CLASS_ROWS = 0.1, 2  # a rarer value is taken for a slip, not for a class, unless it is named
PACKED = Columns(text="text", label="label", file="file")  # of a folder of texts by label
RARE_ROWS = 5  # fewer rows of a rare value are slips
MAX_CLASSES = 1000
NUMBER = re.compile(r"[+-]?\d+(?:\.0+)?")
MAX_VALUES = 100_000  # distinct labels that are counted: a column of texts is no column of labels


def prepare(asked: Asked, path: Path, own: str, form: str, old: ClassificationSet | None) -> Added:
    """The set with the file, once the whole file was read. A folder of texts by label was packed into `path`."""
    packed = Path(asked.file).expanduser().is_dir()
    columns = PACKED if packed else columns_from(asked.mapping)
    if old is None and not packed:
        instruction_sets.check_labelled(path, form, columns)
    file = SourceFile(path=own, format=form, columns=columns, source=asked.source or f"path:{own}")
    seen = look(path, file)
    classes, mapped = choose_labels(asked.file, seen, asked.labels, old.labels if old else [])
    new = extend(old, file.model_copy(update={"label_names": mapped}), classes, asked.licence)
    stem, by_file = Path(own).stem, columns.source is None
    alone = f"{asked.name}-classifier" if in_params.lacks_gold(stem, by_file) else ""
    changes = in_params.classification_changes(asked.name, stem, by_file)
    said = _said(seen, new, mapped or {}) + dropped(path, form, set(columns.names()))
    return Added(new, seen, "", said, lambda: in_params.use(changes, asked.use, alone))


def _said(seen: Seen, new: ClassificationSet, mapped: dict[str, str]) -> list[str]:
    """Rows by class, and what will go to quarantine for having none."""
    counts = Counter({label: 0 for label in new.labels})
    for value, n in seen.values.items():
        if (label := class_of(value, new.labels, mapped)) in counts:
            counts[label] += n
    said = ["classes: " + ", ".join(f"{label} {n:,}" for label, n in counts.items())]
    looks = Counter(_look(label) for label in new.labels)
    alike = [label for label in new.labels if looks[_look(label)] > 1]
    if alike:
        shown = ", ".join(ascii(label)[1:-1][:60] for label in alike[:6])
        said.append(f"note: classes that look alike, are they one? {shown}: --labels VALUE=name,... merges them")
    if seen.damaged:
        said.append(f"damaged labels, so {seen.damaged:,} rows will go to quarantine as encoding_damage")
    other = {value: n for value, n in seen.values.items() if class_of(value, new.labels, mapped) not in new.labels}
    if other:
        shown = sorted(other.items(), key=lambda item: (-item[1], item[0]))[:10]
        listed = ", ".join(f"{value[:40] or '(empty)'} {n:,}" for value, n in shown) + (
            ", ..." if len(other) > 10 else ""
        )
        rows = sum(other.values())
        said.append(f"no class, so {rows:,} rows will go to quarantine as unknown_label: {listed}")
    return said


def look(path: Path, file: SourceFile) -> Seen:
    """Read the whole file once. Raises DataError for what is wrong with it as a whole."""
    seen = Seen()
    for batch in read_rows(path, file.format, file.columns, BATCH_ROWS):
        good = seen.readable(path, batch, [row.problem for row in batch])
        for row in good:
            label = row.label.strip()
            seen.damaged += bool(lone(label))
            if not lone(label):  # its row goes to quarantine: it names no class
                seen.values[label] += 1
                seen.place(clean(row.text)[0], label)
        if len(seen.values) > MAX_VALUES:
            raise DataError(f"{path.name}: column `{file.columns.label}` has over {MAX_VALUES} different values: "
                            "is it the label column?")  # fmt: skip
    seen.check_any(path, "a text with its label")
    return seen


def choose_labels(where: str, seen: Seen, given: str, existing: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """Class names in id order, the existing ones first, and the map from values of the file if one was given.

    given: "a,b,c" or "0=a,1=b"; empty: the values with 2 rows and a tenth of the most frequent one's.
    """
    if given:
        pairs = [part.strip().partition("=") for part in given.split(",") if part.strip()]
        names = [(name if is_map else value).strip() for value, is_map, name in pairs]
        mapped = {value.strip(): name.strip() for value, is_map, name in pairs if is_map} or None
        labels = existing + [name for name in dict.fromkeys(names) if name not in existing]
        if not any(class_of(value, labels, mapped) in names for value in seen.values):
            raise UsageError(
                f"{where}: --labels {given} finds no row: the values of the label column are "
                f"{_shown([value for value, _ in seen.values.most_common()])}"
            )
    else:
        known = set(existing)
        least = max(MIN_CLASS_ROWS, MIN_CLASS_SHARE * max(seen.values.values(), default=0))
        found = [value for value, rows in seen.values.items() if value and rows >= least]
        _check_rare(where, seen, found, existing)
        if all(NUMBER.fullmatch(value) for value in found):
            found = list(dict.fromkeys(same_name(value) for value in found))  # 1.0, of a column with a gap, is 1
        if existing and not any(class_of(value, existing, None) in known for value in seen.values):
            raise UsageError(
                f"{where}: none of its labels ({_shown(found or list(seen.values))}) is a class of the set "
                f"({_shown(existing)}): give --labels {found[0] if found else 'VALUE'}={existing[0]},..., "
                "or --replace, or another set name"
            )
        labels, mapped = existing + sorted((value for value in found if value not in known), key=_natural), None
    if not 2 <= len(labels) <= MAX_CLASSES:
        raise DataError(
            f"{where}: {len(labels)} classes; a value counts as one with {MIN_CLASS_ROWS} rows and a tenth of those of "
            f"the most frequent one; the values are {_shown([value for value, _ in seen.values.most_common()])}: "
            "is it the label column? Name the classes with --labels a,b,c"
        )
    return labels, mapped


def _check_rare(where: str, seen: Seen, found: list[str], existing: list[str]) -> None:
    """Raise DataError for a value with too many rows for a slip and too few for a class: a person decides."""
    rare = [(value, rows) for value, rows in seen.values.most_common()
            if value and rows >= RARE_ROWS and value not in found and class_of(value, existing, None) not in existing]
    if not rare or len(found) < 2:
        return
    named = ", ".join(f"{value[:40]} {rows:,}" for value, rows in rare[:5]) + (", ..." if len(rare) > 5 else "")
    most = ",".join(value[:40] for value in sorted(found, key=_natural)[:10])
    one = rare[0][0][:40]
    raise DataError(
        f"{where}: few rows have the label {named} of {seen.rows:,}: a rare class, or slips? Keep it: --labels "
        f"{most},{one} (and classify.class_weights: balanced); merge it: --labels {most},{one}={found[0][:40]}; leave "
        f"its rows out, in quarantine: --labels {most}"
    )


def _look(label: str) -> str:
    return INVISIBLE.sub("", unicodedata.normalize("NFC", label)).casefold()


def _natural(value: str) -> tuple:
    return (0, int(value), "") if re.fullmatch(r"-?\d{1,18}", value) else (1, 0, value)


def _shown(values: list[str]) -> str:
    return ", ".join(value[:40] or "(empty)" for value in values[:10]) + (", ..." if len(values) > 10 else "") or "none"


def columns_from(mapping: dict[str, str]) -> Columns:
    """The mapping as Columns; text and label are their own names if left out."""
    for key, column in mapping.items():
        if key not in ("text", "label", "source"):
            raise UsageError(f"--map {key}={column}: write text=COLUMN, label=COLUMN or source=COLUMN")
    return Columns(**{"text": "text", "label": "label", **mapping})


def pack(folder: Path, out: Path) -> None:
    """A folder of .txt files by label, <label>/*.txt or <train|test>/<label>/*.txt, as one Parquet file."""
    import pyarrow as pa

    from ajuste.rows.parquet import ParquetRows

    def folders(parent: Path) -> list[Path]:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))

    parts = [path for path in folders(folder) if path.name in PARTS]
    labels = [path for part in parts or [folder] for path in folders(part) if path.name not in UNLABELLED]
    files = [(label.name, path) for label in labels for path in sorted(label.glob("*.txt"))]
    if not files:
        raise DataError(f"{folder} holds no texts by label: make folders like pos/ and neg/ with one .txt file a text")
    with ParquetRows(out, pa.schema([("file", pa.string()), ("label", pa.string()), ("text", pa.binary())])) as sink:
        for begin in range(0, len(files), 1000):
            part = files[begin : begin + 1000]
            sink.write({
                "file": [printable(path.relative_to(folder).as_posix()) for _, path in part],
                "label": [printable(label) for label, _ in part],
                "text": [path.read_bytes() for _, path in part],
            })  # fmt: skip


def extend(old: ClassificationSet | None, file: SourceFile, labels: list[str], licence: str) -> ClassificationSet:
    """The set with one more file."""
    files = [part.model_dump(exclude_none=True) for part in [*(old.files if old else []), file]]
    values = {"kind": "classification", "labels": labels, "licence": old.licence if old else licence, "files": files}
    return check_set(values, "set.yaml", ClassificationSet)
