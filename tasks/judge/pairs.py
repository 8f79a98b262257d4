"""Preference rows whose label is a judge's: the policy's own answers compared (`python -m studies.rlaif.pairs JUDGE`).

    P = (p_1 + p_2) / 2 of both orders      the better answer first; `agreement` = max(P, 1 - P), the soft label

    pairs.parquet   the columns of validated preferences, and judge, principle, p_first and p_second: P(the preferred
                    answer is better) where it was shown first, and second
    pairs.jsonl, set.yaml   the same as a set of preferences, for `ajuste data add` and stage `validate_preferences`
    pairs.json      counts: asked, kept, ties, inconsistent (the order decided), no opinion; the cost

A judge whose card says `refused` makes none: DataError, with the numbers. Seeded and without a clock: equal bytes.
"""

import json
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config
from ajuste.judging.judges.opened import JudgeConfig, WordsConfig, judge_of
from ajuste.judging.judges.opinions import Opinion, Pair
from ajuste.learning.seeds import seed_everything
from ajuste.rows.parquet import MESSAGES, ParquetRows
from ajuste.rows.split import row_id

FILE = "pairs.parquet"
FIGURES = ("agreement", "margin", "one_against_rest", "split_half")
PAIRS = pa.schema(
    [("row_id", pa.string()), ("prompt", MESSAGES), ("responses", pa.list_(pa.string()))]
    + [("ratings", pa.list_(pa.float64())), *((name, pa.float64()) for name in FIGURES)]
    + [(name, pa.string()) for name in ("source", "location", "judge", "principle")]
    + [("p_first", pa.float64()), ("p_second", pa.float64())]
)


class PairsConfig(Config):
    """Section `pairs` of the study."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of judges that are decoders.")


def label_pairs(
    config: PairsConfig, compute: Compute, name: str, judge: JudgeConfig, words: WordsConfig, card: Path,
    samples: Path, out: Path,
) -> dict:  # fmt: skip
    """Write the four files into `out` and return pairs.json's content.

    card: the judge's card.json. samples: of tasks/judge/samples.py. Raises DataError for a judge that is refused, or
    that leaves no pair; UsageError for a missing input or a judge that cannot be opened.
    """
    admitted(card)
    seed_everything(compute.seed, compute.threads)
    if not samples.is_file():
        raise UsageError(f"{samples} is missing: draw the policy's answers first")
    rows = pq.read_table(samples).to_pylist()
    opened = judge_of(judge, words, config.dtype, compute)
    opinions = opened.compare([Pair(row["row_id"], row["prompt"], tuple(row["answers"])) for row in rows])
    kept, counts = [], {"asked": len(rows), "kept": 0, "ties": 0, "inconsistent": 0, "no_opinion": 0}
    for row, opinion in zip(rows, opinions, strict=True):
        why = fate(opinion)
        counts[why] += 1
        if why == "kept":
            kept.append(_row(name, row, opinion))
    if not kept:
        raise DataError(f"judge `{name}` left none of {len(rows)} pairs: {_words(counts)}")
    out.mkdir(parents=True, exist_ok=True)
    with ParquetRows(out / FILE, PAIRS) as sink:
        sink.write({column: [row[column] for row in kept] for column in PAIRS.names})
    _write_set(out, name, kept)
    report = {"judge": name, **counts, "calls": opened.cost.calls, "tokens": opened.cost.tokens}
    write_json(out / "pairs.json", report)
    return report


def admitted(card: Path) -> dict:
    """The card of a judge whose labels may train. Raises DataError with the numbers for others, UsageError without.
    """
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
        refused = found["refused"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{card} is missing or no judge card: measure the judge first") from None
    if refused:
        raise DataError(f"judge `{found['judge']}` may not label training data: {'; '.join(refused)}")
    return found


def fate(opinion: Opinion) -> str:
    """What becomes of a pair: kept, ties, inconsistent or no_opinion."""
    if opinion.problem:
        return "no_opinion"
    if opinion.preference == 0.5:
        return "ties"
    return "kept" if opinion.consistent else "inconsistent"


def _row(name: str, row: dict, opinion: Opinion) -> dict:
    """The preferred answer first."""
    turned = opinion.preference < 0.5
    # of the preferred answer: where answer 1 is preferred, answer 0 shown first is answer 1 shown second
    p_first, p_second = (1 - opinion.second, 1 - opinion.first) if turned else (opinion.first, opinion.second)
    return {
        "row_id": row_id(f"ai:{name}", row["row_id"], "", "comparison"),
        "prompt": row["prompt"], "responses": row["answers"][:: -1 if turned else 1], "ratings": None,
        **dict.fromkeys(FIGURES), "agreement": max(opinion.preference, 1 - opinion.preference),
        "source": f"ai:{name}", "location": f"samples:{row['row_id']}", "judge": name,
        "principle": opinion.principle, "p_first": p_first, "p_second": p_second,
    }  # fmt: skip


def _write_set(out: Path, name: str, rows: list[dict]) -> None:
    """pairs.jsonl in layout `conversational`, and set.yaml."""
    lines = []
    for row in rows:
        better, worse = ([{"role": "assistant", "content": text}] for text in row["responses"])
        line = {"prompt": row["prompt"], "chosen": better, "rejected": worse, "agreement": row["agreement"],
                "source": row["source"]}  # fmt: skip
        lines.append(json.dumps(line, ensure_ascii=False))
    (out / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file = {"path": "pairs.jsonl", "format": "jsonl", "layout": "conversational", "source": f"path:judge {name}"}
    licence = "Answers of this project's own model, compared by a model; no person has read them."
    values = {"kind": "preferences", "licence": licence, "files": [file]}
    (out / "set.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _words(counts: dict) -> str:
    left_out = {key: value for key, value in counts.items() if key not in ("asked", "kept")}
    return ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in left_out.items())
