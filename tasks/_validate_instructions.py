"""Stage `validate_instructions`: instructions in any layout -> rows of messages in three splits, and a quarantine.

    1. read     rows in batches with file:line, turned into messages (tasks/_formats.py), cleaned, and judged each by
                itself by Great Expectations (tasks/_instruction_checks.py); rows of train are compared with the set
                that judges the model (tasks/_decontaminate.py)
    2. compare  exact and near duplicates over all splits, on the whole row (tasks/_duplicates.py)
    3. judge    rows are written to their split, failing rows to quarantine with their reasons

    train|validation|test.parquet   row_id, messages [{role, content}], category, source, location
    quarantine.parquet              row_id, location, reasons, detail, text (the row as JSON)
    validation.json                 every check with its rule and count of failing rows; counts of rows, PII, splits

The split is decided by the first user turn (of general text by the text, of a templated row by what its template is
about), so rows that ask the same thing stand in one split. Duplicates are judged on all turns but the system's: many
chats begin alike, and one question may have several good answers. Every row read is kept or in quarantine.
Private to tasks/validate.py. Memory is a batch, some 60 bytes a row, and the n-grams of the set that judges.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from tasks._checks import RELATION_COLUMNS, WARNINGS, Judge, schema_checks
from tasks._decontaminate import Ngrams, ngrams_of, split_source
from tasks._duplicates import Duplicates
from tasks._formats import Row, columns_needed, to_row
from tasks._instruction_checks import CLEANED, COLUMNS, PII, TEXTS, clean, measure, pair_checks, pii, row_checks
from tasks._parquet import ParquetRows, read_batches
from tasks._read import printable
from tasks._read_records import check_needed, read_records, record_columns
from tasks._sets import InstructionFile, InstructionSet, read_set
from tasks._split import SPLITS, in_sample, row_id, split_of, split_text, text_digest
from tasks._stage import Compute, Config, DataError
from tasks._validation import most_common, places_of, report_of, stop_message, write_json

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
KEPT = pa.schema(
    [("row_id", pa.string()), ("messages", MESSAGES)]
    + [(name, pa.string()) for name in ("category", "source", "location")]
)
STAGED = pa.schema(
    [*KEPT, ("detail", pa.string()), ("raw", pa.string()), ("split", pa.int8()), ("reasons", pa.list_(pa.string()))]
)
QUARANTINE = pa.schema(
    [("row_id", pa.string()), ("location", pa.string()), ("reasons", pa.list_(pa.string())), ("detail", pa.string())]
    + [("text", pa.string())]
)


class InstructionsConfig(Config):
    """Section `validate.instructions`."""

    set: str = Field(description="The folder under data/.")
    sample: float = Field(gt=0, le=1, description="Share of rows that are kept, chosen by row id.")
    max_chars: int = Field(gt=0, description="A row whose messages are longer together goes to quarantine.")
    max_repeats: int = Field(ge=1, description="How often the same sentence may stand in a response.")
    near_duplicate_jaccard: float = Field(gt=0, le=1, description="Rows at least this similar count as one.")
    decontaminate: str = Field(description="Set that judges the model: no row of train may share n-grams with it.")
    ngram: int = Field(ge=2, description="Words in a row that a row of train may not share with that set.")
    max_quarantine_share: float = Field(ge=0, le=1, description="Above this share of bad rows the stage stops.")
    batch_rows: int = Field(gt=0, description="Rows in memory at a time; changes no result.")


def validate_instructions(config: InstructionsConfig, compute: Compute, data: Path, out: Path) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder, beside the one that `decontaminate` names. Raises DataError: a file that cannot be read, no
    row left, or too many rows in quarantine.
    """
    data_set = read_set(data, "instructions")
    ngrams = ngrams_of(data.parent, [config.decontaminate], config.ngram)
    scratch, failed = out.with_name(f".{out.name}.scratch"), out.with_name(f"{out.name}.failed")
    for folder in (scratch, failed, out):
        shutil.rmtree(folder, ignore_errors=True)
        if folder != failed:
            folder.mkdir(parents=True)
    judge = Judge()
    counts: Counter = Counter({"read": 0})
    try:
        duplicates = Duplicates(scratch, config.near_duplicate_jaccard)
        _read_all(config, data, data_set, judge, ngrams, duplicates, counts, scratch / "rows.parquet")
        relations = duplicates.judge()
        duplicates.close()
        _write_all(config, judge, (relations[0], relations[2]), counts, scratch / "rows.parquet", out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report = report_of(config.set, _rules(config), judge, counts, {}, CLEANED)
    report["pii"] = {kind: counts[f"pii:{kind}"] for kind in PII}
    report["splits"] = {split: _split(split, counts) for split in SPLITS}
    write_json(out / "validation.json", report)
    if not report["rows"]["kept"] or not report["checks"][-1]["passed"]:  # the last one: quarantine_share
        out.rename(failed)
        raise DataError(stop_message(config.set, config.max_quarantine_share, counts, failed))
    return report


# --- 1. read --------------------------------------------------------------------------------------------------------


def _read_all(config: InstructionsConfig, data: Path, data_set: InstructionSet, judge: Judge, ngrams: Ngrams,
              duplicates: Duplicates, counts: Counter, staged: Path) -> None:  # fmt: skip
    checks = row_checks(config.max_chars, config.max_repeats)
    with ParquetRows(staged, STAGED) as sink:
        for file in data_set.files:
            path, phrasings = data / file.path, file.phrasings()
            _check_schema(path, file, judge)
            for batch in read_records(path, file.format, config.batch_rows, file.layout == "tagged"):
                rows = [to_row(record, file.layout, file.columns, phrasings, file.label_names) for record in batch]
                typed = [_typed(config.set, file, row) for row in rows]
                typed = [row for row in typed if in_sample(row["row_id"], config.sample)]
                if typed:
                    _judge_batch(typed, judge, checks, ngrams, duplicates, counts, sink)


def _check_schema(path: Path, file: InstructionFile, judge: Judge) -> None:
    found = record_columns(path, file.format)
    needed = columns_needed(file.layout, file.columns, file.phrasings())
    frame = pd.DataFrame(columns=dict.fromkeys(found))
    if judge.judge(frame, schema_checks(needed))["schema"] or len(frame.columns) < len(found):
        check_needed(path, found, needed, file.layout)


def _typed(set_name: str, file: InstructionFile, row: Row) -> dict:
    """A row with its names, cleaned; the row id is of what stands in the file."""
    source = row.source or file.name or Path(file.path).stem
    category = row.category or file.category or ""
    identity = row.raw if row.problem else json.dumps([[turn["role"], turn["content"]] for turn in row.messages])
    messages, cleaned = [], []
    for turn in row.messages:
        content, needed = clean(turn["content"])
        cleaned += needed
        if content or turn["role"] != "system":  # an empty system turn says nothing
            messages.append({"role": printable(turn["role"]), "content": content})
    return {
        "row_id": row_id(set_name, identity, category, source),
        "measured": measure(messages, row.instruction),
        "messages": [{"role": turn["role"], "content": printable(turn["content"])} for turn in messages],
        "cleaned": sorted(set(cleaned)),
        "category": printable(category), "source": printable(source),
        "location": f"data/{set_name}/{file.path}:{row.line}",
        "normal": split_text(split_source(messages, row.split) if not row.problem else row.raw),
        "raw": printable(row.raw) if row.problem else None,
        "problem": row.problem,
    }  # fmt: skip


def _judge_batch(rows: list[dict], judge: Judge, checks: list, ngrams: Ngrams, duplicates: Duplicates,
                 counts: Counter, sink: ParquetRows) -> None:  # fmt: skip
    first = counts["read"]
    splits = np.array([split_of(text_digest(row["normal"])) for row in rows])
    for row, split in zip(rows, splits, strict=True):
        measured = row["measured"]
        texts = [turn["content"] for turn in row["messages"]]
        measured["contaminated_by"] = ngrams.find(texts) if split == 0 and texts else None
        found = pii(measured["text"])
        measured["pii"] = sum(found.values())
        measured["problem"] = row["problem"]
        counts.update({f"pii:{kind}": n for kind, n in found.items()})
        counts.update(f"cleaned:{kind}" for kind in row["cleaned"])
    frame = pd.DataFrame({"row": range(first, first + len(rows))})
    for name in COLUMNS[1:]:
        values = [row["measured"][name] for row in rows]
        frame[name] = pd.Series(values, dtype=object if name in TEXTS else "float64")
    reasons: list[list[str]] = [[] for _ in rows]
    for check, failing in judge.judge(frame, checks).items():
        for row in failing:
            if check in WARNINGS:
                counts[check] += 1
            elif check == "unreadable_row" or rows[row - first]["problem"] is None:  # of such a row no more is known
                reasons[row - first].append(check)
    whole = [split_text("\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"]
                                  if turn["role"] != "system")) for row in rows]  # fmt: skip
    good = np.array([not found for found in reasons])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    duplicates.add(whole, [text_digest(text) for text in whole], np.zeros(len(rows)), splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in (*KEPT.names, "raw")},
        "detail": [_detail(row, found) for row, found in zip(rows, reasons, strict=True)],
        "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    counts["read"] += len(rows)


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


# --- 3. judge and write ---------------------------------------------------------------------------------------------


def _write_all(config: InstructionsConfig, judge: Judge, relations: tuple[np.ndarray, np.ndarray], counts: Counter,
               staged: Path, out: Path) -> None:  # fmt: skip
    places = places_of(staged, relations)
    sinks = {split: ParquetRows(out / f"{split}.parquet", KEPT) for split in SPLITS}
    first = 0
    with sinks["train"], sinks["validation"], sinks["test"], ParquetRows(out / "quarantine.parquet", QUARANTINE) as bad:
        for batch in read_batches(staged, config.batch_rows):
            rows = {name: batch[name].to_pylist() for name in batch.schema.names}
            _relate(rows, first, [found[first : first + batch.num_rows] for found in relations], places, judge)
            good = np.array([not found for found in rows["reasons"]])
            for i, split in enumerate(SPLITS):
                kept = np.flatnonzero(good & (np.array(rows["split"]) == i))
                sinks[split].write({name: [rows[name][k] for k in kept] for name in KEPT.names})
                for what in ("category", "source"):
                    counts.update((split, what, rows[what][k] or "(none)") for k in kept)
            left = np.flatnonzero(~good)
            rows["text"] = [
                _as_json(rows, k) if rows["raw"][k] is None else rows["raw"][k] for k in range(batch.num_rows)
            ]
            bad.write({name: [rows[name][k] for k in left] for name in QUARANTINE.names})
            for k in left:
                for reason in rows["reasons"][k]:
                    counts[f"reason:{reason}"] += 1
                    counts.setdefault(("first", reason), rows["location"][k])
            first += batch.num_rows
    counts["quarantined"] = bad.rows
    counts.update({f"kept:{split}": sinks[split].rows for split in SPLITS})


def _as_json(rows: dict, k: int) -> str:
    return json.dumps({name: rows[name][k] for name in ("messages", "category", "source")}, ensure_ascii=False)


def _relate(rows: dict, first: int, relations: list[np.ndarray], places: dict, judge: Judge) -> None:
    """Add the reasons that come from other rows, with the place of the other row."""
    duplicate_of, near_of = ([places.get(int(row)) for row in found] for found in relations)
    columns = {
        "duplicate_of": [place and place[0] for place in duplicate_of],
        "conflicts_with": [None] * len(near_of),
        "near_duplicate_of": [place and place[0] for place in near_of],
        "split": [SPLITS[split] for split in rows["split"]],
        "kept_split": [place and SPLITS[place[1]] for place in near_of],
    }
    frame = pd.DataFrame({"row": range(first, first + len(near_of))})
    for name in RELATION_COLUMNS[1:]:
        frame[name] = pd.Series(columns[name], dtype=object)
    for check, failing in judge.judge(frame, pair_checks()).items():
        for row in failing:
            rows["reasons"][row - first].append(check)
    for i, found in enumerate(zip(duplicate_of, near_of, strict=True)):
        for word, place in zip(("repeats", "is nearly the same as"), found, strict=True):
            if place:
                rows["detail"][i] = f"{word} {place[0]}"


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
