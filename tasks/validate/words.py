"""Tagged words -> rows fit to train on, in three splits, and a quarantine for the rest (ajuste/rows/checks/spans.py).

    train|validation|test.parquet   row_id, words, tags, source, location
    quarantine.parquet              row_id, location, reasons, detail, text (the row as JSON)
    labels.json                     tags in id order
    validation.json                 every check with its rule and count of failing rows, words by tag

The split is decided by the words, joined by blanks; the same words with other tags are a conflict. Used by the study
`ner`: `ajuste study ner`.
"""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.rows.checks.spans import Kind, quarantined, read_all, rules
from ajuste.rows.checks.validation import SetConfig, finish, report_of, validating, write_rows
from ajuste.rows.clean import damage, lone
from ajuste.rows.read.files import printable
from ajuste.rows.read.words import Sentence, columns_in, needed, read_words
from ajuste.rows.sets.words import WordFile, read_set
from ajuste.rows.split import SPLITS, row_id, split_text

TEXTS = pa.list_(pa.string())
KEPT = pa.schema([("row_id", pa.string()), ("words", TEXTS), ("tags", TEXTS)]
                 + [("source", pa.string()), ("location", pa.string())])  # fmt: skip


class WordsConfig(SetConfig):
    """Section `validate` of the study. `set` is the folder of the set."""

    max_words: int = Field(gt=0, description="A longer sentence goes to quarantine.")


def validate_words(config: WordsConfig, compute: Compute, data: Path, out: Path) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder. Raises DataError: a file that cannot be read, no row left, or too many in quarantine.
    """
    data_set = read_set(data)
    kind = Kind("words", KEPT, ("words", "tags"), "max_words", "words", columns_in, needed, read_words,
                lambda file, row: _row(config, data_set.labels, data, file, row), "unknown_tag")  # fmt: skip
    with validating(config, out) as work:
        read_all(work, kind, data, data_set.files)
        write_rows(work, KEPT, lambda rows, k: [("tag", tag) for tag in rows["tags"][k]], quarantined(kind))
    write_json(out / "labels.json", data_set.labels, indent=2, ensure_ascii=False)
    report = report_of(work, rules(config, kind), ())
    report["splits"] = {split: _split(split, data_set.labels, work.counts) for split in SPLITS}
    return finish(work, report)


def _row(config: WordsConfig, labels: list[str], data: Path, file: WordFile, row: Sentence) -> dict:
    """A sentence with its names and measures; the row id is of what stands in the file."""
    source = Path(file.path).stem
    identity = row.raw if row.problem else json.dumps([row.words, row.tags])
    normal = split_text(row.raw if row.problem else " ".join(row.words))
    tags = [printable(tag) for tag in row.tags]
    return {
        "row_id": row_id(config.set, identity, "", source),
        "words": [printable(word) for word in row.words], "tags": tags,
        "source": source, "location": f"{data}/{file.path}:{row.line}",
        "raw": printable(row.raw) if row.problem else None, "problem": row.problem,
        "damage": sum(damage(word) for word in row.words) + sum(map(lone, row.tags)), "size": len(row.words),
        "unknown": next((printable(tag) for tag in row.tags if tag not in labels), None),
        "about": normal, "same": normal, "said": tags,
    }  # fmt: skip


def _split(split: str, labels: list[str], counts: Counter) -> dict:
    return {"rows": counts[f"kept:{split}"], "tags": {tag: counts[(split, "tag", tag)] for tag in labels}}
