"""Stage `validate_preferences`: comparisons in any layout -> a prompt and its responses, best first, in three splits.

    1. read     rows in batches with file:line, turned into comparisons (ajuste/rows/layouts/preferences.py), cleaned,
                and judged each by itself by Great Expectations (ajuste/rows/checks/preferences.py)
    2. compare  the same responses to the same prompt: in the same order a duplicate, in another one contradictory, so
                that none stays; prompts (rated texts: the texts) that are nearly the same in two splits
    3. write    comparisons as they are; of rated texts comparisons are formed (tasks/validate/comparisons.py)
    4. report   ajuste/rows/quality/report.py

    train|validation|test.parquet      row_id, prompt [{role, content}], responses (best first), ratings, agreement,
                                       margin, one_against_rest, split_half (ajuste/learning/statistics/agreement.py),
                                       source, location
    prompts_<split>.parquet            row_id, prompt, prefill, source, location: what a policy answers
    texts.parquet                      row_id, text, rating, raters, split: the rated texts
    quarantine.parquet                 row_id, location, reasons, detail, text (the row as JSON)
    validation.json, quality.json      checks and counts; what may be wrong with the comparisons. No text of a row

The split is decided by the first user turn, as of instructions, so that a dialogue stands in one split with whatever it
grows into; of rated texts by the text. Comparisons may resemble each other (many answers to one prompt), so near
duplicates leave only where they stand in two splits. A prompt of rated texts is continued from the first words of a
text (`prefill`), in train of a text that stands in no comparison.
Memory is a batch and some 300 bytes a row.
"""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.launch.where import Spread, spread
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.rows.checks.preferences import (
    COLUMNS,
    CONTRADICTORY,
    MEASURED,
    TEXTS,
    comparison_checks,
    measure,
    row_checks,
)
from ajuste.rows.checks.turns import CLEANED, clean
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
from ajuste.rows.layouts.preferences import FAULTS, Comparison
from ajuste.rows.parquet import MESSAGES, ParquetRows, read_batches
from ajuste.rows.quality.noise import label_noise
from ajuste.rows.quality.report import Quality
from ajuste.rows.quality.shared import texts_of_sets
from ajuste.rows.read.comparisons import columns_in, read_comparisons
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import check_needed
from ajuste.rows.sets.preferences import PreferenceFile, PreferenceSet, read_set
from ajuste.rows.split import SPLITS, in_sample, row_id, split_of, split_text, text_digest
from tasks.validate.comparisons import RATED, write_split

LABELS = pa.list_(pa.float64())
ROWS = pa.schema(
    [("row_id", pa.string()), ("prompt", MESSAGES), ("responses", pa.list_(pa.string())), ("ratings", LABELS)]
    + [("agreement", pa.float64()), ("position", pa.int32()), ("raters", LABELS)]
    + [("source", pa.string()), ("location", pa.string())]
)
STAGED = pa.schema(
    [*ROWS, ("detail", pa.string()), ("raw", pa.string()), ("split", pa.int8()), ("reasons", pa.list_(pa.string()))]
)


class PreferencesConfig(SetConfig):
    """Section `validate.preferences`."""

    max_chars: int = Field(gt=0, description="A row whose prompt and responses are longer together is quarantined.")
    prompt_share: float = Field(ge=0, le=1, description="Rated texts of train kept for prompts, out of comparisons.")
    shared_with: list[str] = Field(description="Sets whose texts are looked for in this one.")


def validate_preferences(
    config: PreferencesConfig, compute: Compute, data: Path, out: Path, spread: Spread = map
) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder, beside those that `shared_with` names. spread: where batches are judged
    (core/launch/where.py). Raises DataError: a file that cannot be read, no row left, or too many rows in quarantine.
    """
    data_set = read_set(data)
    with validating(config, out) as work:
        _read_all(work, data, data_set, spread)
        write_rows(work, ROWS, lambda rows, k: [("source", rows["source"][k])], _text, _relations(work),
                   comparison_checks())  # fmt: skip
        quality = Quality()
        with ParquetRows(out / "texts.parquet", RATED) as texts:
            for split in SPLITS:
                write_split(work, split, quality, texts)
    counts = work.counts
    report = report_of(work, _rules(config), CLEANED)
    report["splits"] = {split: _split(split, counts) for split in SPLITS}
    duplicates = {"exact": counts["reason:exact_duplicate"], "contradictory": counts[f"reason:{CONTRADICTORY}"],
                  "near": counts["reason:near_duplicate"]}  # fmt: skip
    shared = quality.shared(texts_of_sets(data.parent, [name for name in config.shared_with if name != config.set]))
    noise = label_noise(out / "train.parquet")
    found = {"set": config.set} | quality.report(duplicates, noise, shared)
    write_json(out / "quality.json", found, indent=2, ensure_ascii=False)
    return finish(work, report)


# --- 1. read --------------------------------------------------------------------------------------------------------


def _read_all(work: Work, data: Path, data_set: PreferenceSet, spread: Spread) -> None:
    config = work.config
    checks = row_checks(config.max_chars)
    with ParquetRows(work.staged, STAGED) as sink:
        for file in data_set.files:
            _check_schema(work, data / file.path, file)
            if file.layout == "raters":
                continue
            batches = read_comparisons(data, data_set, file, config.batch_rows)
            judge_all(work, sink, partial(_judge_comparisons, file=file, checks=checks), batches, spread)


def _judge_comparisons(work: Work, sink: ParquetRows, batch: list[Comparison], file: PreferenceFile,
                       checks: list) -> None:  # fmt: skip
    typed = [_typed(work.config.set, file, row) for row in batch]
    typed = [row for row in typed if in_sample(row["row_id"], work.config.sample)]
    if typed:
        _judge_batch(work, typed, checks, sink)


def _check_schema(work: Work, path: Path, file: PreferenceFile) -> None:
    found = columns_in(path, file)
    if not work.has_columns(found, file.needed()):
        check_needed(path, found, file.needed(), file.layout)


def _typed(set_name: str, file: PreferenceFile, row: Comparison) -> dict:
    """A row with its names, cleaned; the row id is of what stands in the file."""
    source = row.source or file.name or Path(file.path).stem
    asked = [[turn["role"], turn["content"]] for turn in row.prompt]
    identity = row.raw if row.fault else json.dumps([asked, row.responses])
    cleaned: list[str] = []

    def cleaned_text(text: str) -> str:
        text, needed = clean(text)
        cleaned.extend(needed)
        return text

    prompt = [{"role": turn["role"], "content": cleaned_text(turn["content"])} for turn in row.prompt]
    responses = [cleaned_text(response) for response in row.responses]
    measured = dict.fromkeys(MEASURED) if row.fault else measure(prompt, responses, row.roles, row.raters is not None)
    if not row.fault:
        measured["damage"] += lone(row.roles) + lone(source)
    whole = [] if row.raters is not None else [(turn["role"], split_text(turn["content"])) for turn in prompt]
    normal = [split_text(response) for response in responses]
    return {
        "row_id": row_id(set_name, identity, "", source),
        "measured": {**dict.fromkeys(FAULTS), **measured, **dict([row.fault] if row.fault else [])},
        "prompt": [{name: printable(text) for name, text in turn.items()} for turn in prompt],
        "responses": [printable(response) for response in responses],
        "ratings": row.ratings, "agreement": row.agreement, "position": row.position, "raters": row.raters,
        "source": printable(source),
        "location": f"data/{set_name}/{file.path}:{row.line}",
        "raw": printable(row.raw) if row.fault else None,
        "cleaned": sorted(set(cleaned)),
        "about": split_text(row.raw if row.fault else clean(row.about())[0]),
        "same": json.dumps([whole, sorted(normal), row.raw]),
        # which of the orders of the same responses this is: two that differ contradict each other
        "order": int(text_digest(json.dumps(normal)).hex()[:7], 16),
    }  # fmt: skip


def _judge_batch(work: Work, rows: list[dict], checks: list, sink: ParquetRows) -> None:
    for row in rows:
        work.counts.update(f"cleaned:{kind}" for kind in row["cleaned"])
    columns = {
        name: pd.Series([row["measured"][name] for row in rows], dtype=object if name in TEXTS else "float64")
        for name in COLUMNS[1:]
    }
    reasons = work.reasons(columns, checks, [None] * len(rows))
    good = np.array([not found for found in reasons])
    splits = np.array([split_of(text_digest(row["about"])) for row in rows])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    work.duplicates.add([row["about"] for row in rows], [text_digest(row["same"]) for row in rows],
                        np.array([row["order"] for row in rows]), splits, ids, good)  # fmt: skip
    sink.write({
        **{name: [row[name] for row in rows] for name in (*ROWS.names, "raw")},
        "detail": [_detail(row["measured"], found) for row, found in zip(rows, reasons, strict=True)],
        "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    work.counts["read"] += len(rows)


def _detail(measured: dict, reasons: list[str]) -> str:
    parts = {
        **{fault: measured[fault] for fault in FAULTS},
        "encoding_damage": f"{measured['damage']} damaged characters",
        "role_order": f"turns: {(measured['roles'] or 'none')[:200]}",
        "too_few_responses": f"{measured['responses']} responses",
        "over_long": f"{measured['chars']} characters",
        "template_characters": f"`{measured['template']}`",
    }
    return printable("; ".join(str(parts[reason]) for reason in reasons if reason in parts))


# --- 2. compare -----------------------------------------------------------------------------------------------------


def _relations(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Duplicates as ajuste/rows/duplicates.py finds them, without comparisons that are near each other inside a
    split."""
    duplicate_of, conflict_with, near_of = work.duplicates.judge()
    parts = [(batch["split"].to_numpy(), batch["raters"].is_valid().to_numpy(zero_copy_only=False))
             for batch in read_batches(work.staged, work.config.batch_rows, ["split", "raters"])]  # fmt: skip
    parts.append((np.zeros(0, np.int8), np.zeros(0, bool)))  # `sample` may have left no row
    splits, rated = (np.concatenate(part) for part in zip(*parts, strict=True))
    inside = (near_of >= 0) & ~rated & (splits == splits[near_of])
    return duplicate_of, conflict_with, np.where(inside, -1, near_of)


def _text(rows: dict, k: int) -> str:
    """The row as JSON, or as it stands in the file if it could not be read."""
    if rows["raw"][k] is not None:
        return rows["raw"][k]
    names = ("prompt", "responses", "ratings", "source")
    return json.dumps({name: rows[name][k] for name in names}, ensure_ascii=False)


# --- 4. report ------------------------------------------------------------------------------------------------------


def _rules(config: PreferencesConfig) -> dict[str, dict]:
    """Every check in the order of the report, with its numbers."""
    limit = {"max_share_of_rows": config.max_quarantine_share}
    alone = (*FAULTS, "encoding_damage", "role_order", "empty_prompt", "too_few_responses", "missing_response",
             "equal_responses")  # fmt: skip
    return {
        "schema": {}, **{check: limit for check in alone}, "over_long": {"max_chars": config.max_chars, **limit},
        "template_characters": limit, CONTRADICTORY: limit, "exact_duplicate": limit,
        "near_duplicate": {"jaccard": config.near_duplicate_jaccard, **limit}, "leakage": limit, "mojibake": {},
        "pii": {}, "quarantine_share": limit,
    }  # fmt: skip


def _split(split: str, counts: Counter) -> dict:
    return {
        "rows": counts[f"kept:{split}"],
        "comparisons": counts[f"comparisons:{split}"],
        "prompts": counts[f"prompts:{split}"],
        "unpaired": counts[f"unpaired:{split}"],
        "sources": most_common(counts, split, "source"),
    }


def main() -> None:
    with start("validate_preferences", PreferencesConfig) as stage:
        data = Path("data") / stage.config.set
        validate_preferences(stage.config, stage.compute, data, Path("artifacts/validated/preferences"), spread)


if __name__ == "__main__":
    main()
