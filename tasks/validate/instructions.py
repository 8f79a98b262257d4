"""Stage `validate_instructions`: instructions in any layout -> rows of messages in three splits, and a quarantine.

    1. read     rows in batches with file:line, turned into messages (ajuste/rows/layouts/instructions.py), cleaned, and
                judged each by itself by Great Expectations (ajuste/rows/checks/instructions.py); rows of train are
                compared with the set that judges the model (ajuste/rows/decontaminate.py)
    2. compare  exact and near duplicates over all splits, on the whole row (ajuste/rows/duplicates.py)
    3. judge    rows are written to their split, failing rows to quarantine with their reasons

    train|validation|test.parquet   row_id, messages [{role, content}], category, source, location; of a set that has
                                    answers of weight 0 also weights: 0 or 1 of each message of a row that has one
    quarantine.parquet              row_id, location, reasons, detail, text (the row as JSON)
    validation.json                 every check with its rule and count of failing rows; counts of rows, PII, splits

The split is decided by the first user turn (of general text by the text, of a templated row by what its template is
about), so rows that ask the same thing stand in one split. Duplicates are judged on all turns but the system's: many
chats begin alike, and one question may have several good answers. Every row read is kept or in quarantine.
Memory is a batch, some 60 bytes a row, and the n-grams of the set that judges.
"""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from ajuste.core.launch.where import Spread, spread
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.rows.checks.instructions import COLUMNS, TEXTS, measure, row_checks
from ajuste.rows.checks.turns import CLEANED, PII, clean, pii
from ajuste.rows.checks.validation import (
    SetConfig,
    Work,
    finish,
    judge_all,
    most_common,
    report_of,
    validating,
    write_rows,
)
from ajuste.rows.clean import lone
from ajuste.rows.decontaminate import ngrams_of, split_source
from ajuste.rows.layouts.instructions import Row, columns_needed, to_row
from ajuste.rows.ngrams import Ngrams
from ajuste.rows.parquet import MESSAGES, ParquetRows
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import check_needed, read_records, record_columns
from ajuste.rows.sets.instructions import InstructionFile, InstructionSet, read_set
from ajuste.rows.split import SPLITS, in_sample, row_id, split_of, split_text, text_digest

KEPT = pa.schema(
    [("row_id", pa.string()), ("messages", MESSAGES)]
    + [(name, pa.string()) for name in ("category", "source", "location")]
)
WEIGHED = pa.schema([*KEPT, ("weights", pa.list_(pa.int8()))])
STAGED = pa.schema(
    [*WEIGHED, ("detail", pa.string()), ("raw", pa.string()), ("split", pa.int8()), ("reasons", pa.list_(pa.string()))]
)


class InstructionsConfig(SetConfig):
    """Section `validate.instructions`."""

    max_chars: int = Field(gt=0, description="A row whose messages are longer together goes to quarantine.")
    max_repeats: int = Field(ge=1, description="How often the same sentence may stand in a response.")
    decontaminate: str = Field(description="Set that judges the model: no row of train may share n-grams with it.")
    ngram: int = Field(ge=2, description="Words in a row that a row of train may not share with that set.")


def validate_instructions(
    config: InstructionsConfig, compute: Compute, data: Path, out: Path, spread: Spread = map
) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder, beside the one that `decontaminate` names. spread: where batches are judged
    (core/launch/where.py). Raises DataError: a file that cannot be read, no row left, or too many rows in quarantine.
    """
    data_set = read_set(data)
    ngrams = ngrams_of(data.parent, config.decontaminate, config.ngram)
    with validating(config, out) as work:
        _read_all(work, data, data_set, ngrams, spread)
        write_rows(work, WEIGHED if work.counts["weighed"] else KEPT, _tally, _text)
    report = report_of(work, _rules(config), CLEANED)
    report["pii"] = {kind: work.counts[f"pii:{kind}"] for kind in PII}
    report["splits"] = {split: _split(split, work.counts) for split in SPLITS}
    if work.counts["weighed"]:
        report["rows"]["with_answers_of_weight_0"] = work.counts["weighed"]
    return finish(work, report)


def _read_all(work: Work, data: Path, data_set: InstructionSet, ngrams: Ngrams, spread: Spread) -> None:
    config = work.config
    checks = row_checks(config.max_chars, config.max_repeats)
    with ParquetRows(work.staged, STAGED) as sink:
        for file in data_set.files:
            path = data / file.path
            _check_schema(work, path, file)
            batches = read_records(path, file.format, config.batch_rows, file.layout == "tagged")
            judge_all(work, sink, partial(_judge_records, file=file, checks=checks, ngrams=ngrams), batches, spread)


def _judge_records(work: Work, sink: ParquetRows, batch: list, file: InstructionFile, checks: list,
                   ngrams: Ngrams) -> None:  # fmt: skip
    phrasings = file.phrasings()
    rows = [to_row(record, file.layout, file.columns, phrasings, file.label_names) for record in batch]
    typed = [_typed(work.config.set, file, row) for row in rows]
    typed = [row for row in typed if in_sample(row["row_id"], work.config.sample)]
    if typed:
        _judge_batch(work, typed, checks, ngrams, sink)


def _check_schema(work: Work, path: Path, file: InstructionFile) -> None:
    found = record_columns(path, file.format)
    needed = columns_needed(file.layout, file.columns, file.phrasings())
    if not work.has_columns(found, needed):
        check_needed(path, found, needed, file.layout)


def _typed(set_name: str, file: InstructionFile, row: Row) -> dict:
    """A row with its names, cleaned; the row id is of what stands in the file."""
    source = row.source or file.name or Path(file.path).stem
    category = row.category or file.category or ""
    identity = row.raw if row.problem else json.dumps([list(turn.values()) for turn in row.messages])
    messages, weights, cleaned = [], [], []
    for turn in row.messages:
        content, needed = clean(turn["content"])
        cleaned += needed
        if content or turn["role"] != "system":  # an empty system turn says nothing
            messages.append({"role": printable(turn["role"]), "content": content})
            weights.append(turn.get("weight", 1))
    measured = measure(messages, row.instruction)
    measured["damage"] += sum(map(lone, (category, source, *(turn["role"] for turn in messages))))
    return {
        "row_id": row_id(set_name, identity, category, source),
        "measured": measured,
        "messages": [{"role": turn["role"], "content": printable(turn["content"])} for turn in messages],
        "weights": weights if 0 in weights else None,
        "cleaned": sorted(set(cleaned)),
        "category": printable(category), "source": printable(source),
        "location": f"data/{set_name}/{file.path}:{row.line}",
        "normal": split_text(split_source(messages, row.split) if not row.problem else row.raw),
        "raw": printable(row.raw) if row.problem else None,
        "problem": row.problem,
    }  # fmt: skip


def _judge_batch(work: Work, rows: list[dict], checks: list, ngrams: Ngrams, sink: ParquetRows) -> None:
    splits = np.array([split_of(text_digest(row["normal"])) for row in rows])
    for row, split in zip(rows, splits, strict=True):
        measured = row["measured"]
        texts = [turn["content"] for turn in row["messages"]]
        measured["contaminated_by"] = ngrams.find(texts) if split == 0 and texts else None
        found = pii(measured["text"])
        measured["pii"] = sum(found.values())
        measured["problem"] = row["problem"]
        work.counts.update({f"pii:{kind}": n for kind, n in found.items()})
        work.counts.update(f"cleaned:{kind}" for kind in row["cleaned"])
        work.counts["weighed"] += row["weights"] is not None
    columns = {
        name: pd.Series([row["measured"][name] for row in rows], dtype=object if name in TEXTS else "float64")
        for name in COLUMNS[1:]
    }
    reasons = work.reasons(columns, checks, [row["problem"] for row in rows])
    whole = [split_text("\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"]
                                  if turn["role"] != "system")) for row in rows]  # fmt: skip
    good = np.array([not found for found in reasons])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    work.duplicates.add(whole, [text_digest(text) for text in whole], np.zeros(len(rows)), splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in (*WEIGHED.names, "raw")},
        "detail": [_detail(row, found) for row, found in zip(rows, reasons, strict=True)],
        "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    work.counts["read"] += len(rows)


def _detail(row: dict, reasons: list[str]) -> str:
    measured = row["measured"]
    parts = {
        "unreadable_row": row["problem"],
        "encoding_damage": f"{measured['damage']} damaged characters",
        "role_order": f"turns: {measured['roles'][:200] or 'none'}",
        "over_long": f"{measured['chars']} characters",
        "repeated_response": f"one passage {measured['repeats']} times",
        "template_characters": f"`{measured['template']}`",
        "contaminated": f"shares words with {measured['contaminated_by']}",
    }
    return printable("; ".join(parts[reason] for reason in reasons if reason in parts))


def _tally(rows: dict, k: int) -> list[tuple[str, str]]:
    return [(what, rows[what][k] or "(none)") for what in ("category", "source")]


def _text(rows: dict, k: int) -> str:
    """The row as JSON, or as it stands in the file if it could not be read."""
    if rows["raw"][k] is not None:
        return rows["raw"][k]
    return json.dumps({name: rows[name][k] for name in ("messages", "category", "source")}, ensure_ascii=False)


def _rules(config: InstructionsConfig) -> dict[str, dict]:
    """Every check in the order of the report, with its numbers."""
    limit = {"max_share_of_rows": config.max_quarantine_share}
    alone = ("unreadable_row", "encoding_damage", "role_order", "empty_instruction", "empty_response", "empty_text",
             "response_equals_instruction")  # fmt: skip
    return {
        "schema": {}, **{check: limit for check in alone},
        "over_long": {"max_chars": config.max_chars, **limit},
        "repeated_response": {"max_repeats": config.max_repeats, **limit}, "template_characters": limit,
        "contaminated": {"set": config.decontaminate, "ngram": config.ngram, **limit}, "exact_duplicate": limit,
        "near_duplicate": {"jaccard": config.near_duplicate_jaccard, **limit}, "leakage": limit, "mojibake": {},
        "pii": {}, "quarantine_share": limit,
    }  # fmt: skip


def _split(split: str, counts: Counter) -> dict:
    return {
        "rows": counts[f"kept:{split}"],
        "categories": most_common(counts, split, "category"),
        "sources": most_common(counts, split, "source"),
    }


def main() -> None:
    with start("validate_instructions", InstructionsConfig) as stage:
        data = Path("data") / stage.config.set
        validate_instructions(stage.config, stage.compute, data, Path("artifacts/validated/instructions"), spread)


if __name__ == "__main__":
    main()
