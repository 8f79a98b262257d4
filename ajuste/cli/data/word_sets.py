"""How `ajuste data add` and `show` treat files of tagged words: which tags there are, and what the file holds."""

from pathlib import Path

from ajuste.cli.data import use as in_params
from ajuste.cli.data.sets import BATCH_ROWS, Added, Asked, Seen, dropped, listed_columns
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.read.files import columns_of, printable
from ajuste.rows.read.words import Sentence, columns_in, needed, read_words
from ajuste.rows.sets.base import check_set
from ajuste.rows.sets.words import WordColumns, WordFile, WordSet

STUDY = "ner"  # trains on such sets
LAYOUTS = ("words", "conll")
FORMATS = ("json", "jsonl", "parquet", "conll")


def is_for_words(path: Path, form: str, mapping: dict[str, str]) -> bool:
    """Whether a file that makes a new set holds tagged words: by its ending, or its columns."""
    if form == "conll":
        return True
    return form in FORMATS and {mapping.get(key, key) for key in ("words", "tags")} <= set(columns_of(path, form))


def prepare(asked: Asked, path: Path, own: str, form: str, old: WordSet | None) -> Added:
    """The set with the file, once the whole file was read."""
    file, given = file_of(path, own, form, asked)
    seen = look(path, file)
    labels = tags_of(asked.file, seen, given, old.labels if old else [])
    files = [part.model_dump(exclude_none=True) for part in [*(old.files if old else []), file]]
    values = {"kind": "words", "labels": labels, "licence": old.licence if old else asked.licence, "files": files}
    new = check_set(values, "set.yaml", WordSet)
    said = ["tags: " + ", ".join(f"{tag} {seen.values[tag]:,}" for tag in labels)]
    if other := [tag for tag in seen.values if tag not in labels]:
        said.append(f"no tag of the set, so their rows will go to quarantine as unknown_tag: {', '.join(other[:10])}")
    said += dropped(path, form, {file.columns.words, file.columns.tags})
    layout = "conll" if form == "conll" else "words"
    return Added(new, seen, layout, said, lambda: in_params.use_in_study(STUDY, asked.name, asked.use))


def file_of(path: Path, own: str, form: str, asked: Asked) -> tuple[WordFile, list[str]]:
    """The entry of set.yaml for a file, and the tags that were named. Raises UsageError or DataError."""
    form = "conll" if form == "txt" and asked.layout == "conll" else form
    if form not in FORMATS:
        raise UsageError(f"{path}: give tagged words as JSON, JSON Lines, Parquet or CoNLL (.conll), not {form}")
    wrong = sorted(asked.mapping.keys() - {"words", "tags"})
    if wrong:
        raise UsageError(f"--map {wrong[0]}={asked.mapping[wrong[0]]}: write words=COLUMN or tags=COLUMN")
    pairs = [part.strip().partition("=") for part in asked.labels.split(",") if part.strip()]
    names = {value.strip(): name.strip() for value, is_map, name in pairs if is_map} or None
    file = WordFile(path=own, format=form, columns=WordColumns(**asked.mapping), label_names=names,
                    source=asked.source or f"path:{own}")  # fmt: skip
    if form != "conll" and not set(needed(file)) <= set(columns_in(path, file)):
        raise DataError(
            f"{path} has not the columns of tagged words, {' and '.join(needed(file))}: its columns are "
            f"{listed_columns(path, form)}. Name yours with --map words=COLUMN --map tags=COLUMN"
        )
    return file, list(dict.fromkeys((name if is_map else value).strip() for value, is_map, name in pairs))


def tags_of(where: str, seen: Seen, given: list[str], existing: list[str]) -> list[str]:
    """Tags in id order: the existing ones, then those that were named, else O and the BIO tags of the file."""
    found = given or ["O", *sorted((tag for tag in seen.values if tag != "O"), key=lambda tag: (tag[2:], tag))]
    labels = existing + [tag for tag in found if tag not in existing]
    wrong = [tag for tag in labels if tag != "O" and tag[:2] not in ("B-", "I-")]
    if wrong:
        raise UsageError(
            f"{where}: `{wrong[0][:60]}` is no BIO tag (O, B-TYPE, I-TYPE): name what the values of the file mean "
            "with --labels 0=O,1=B-PER,2=I-PER"
        )
    return labels


def look(path: Path, file: WordFile) -> Seen:
    """Read the whole file once. Raises DataError for what is wrong with it as a whole."""
    seen = Seen()
    for batch in read_words(path, file, BATCH_ROWS):
        for row in seen.readable(path, batch, [row.problem for row in batch]):
            seen.values.update(printable(tag) for tag in row.tags)
            seen.place(" ".join(row.words))
    seen.check_any(path, "tagged words")
    return seen


def shown(row: Sentence) -> str:
    """One line that says what a row holds."""
    pairs = zip(row.words[:12], row.tags, strict=False)
    text = " ".join(printable(word) if tag == "O" else f"{printable(word)}/{printable(tag)}" for word, tag in pairs)
    return f"  line {row.line}: {text}{' ...' if len(row.words) > 12 else ''}"
