"""A judge card: a judge compares pairs that people have judged, and is judged (`python -m studies.rlaif.card JUDGE`).

    card.json          the figures of ajuste/judging/judges/card.py, and `refused`: why its labels may not train
    verdicts.parquet   row_id, better, first, second, principle, problem: every single verdict

The pairs are of the validation split: a judge is admitted by them, and what its labels are worth for training is
measured on the test split, which nothing is chosen by.
"""

from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.judging.judges import alpha
from ajuste.judging.judges.card import Admission, card, refusals
from ajuste.judging.judges.opened import JudgeConfig, WordsConfig, judge_of
from ajuste.judging.judges.people import judged_pairs
from ajuste.learning.seeds import seed_everything
from ajuste.rows.parquet import ParquetRows
from ajuste.rows.raters import ratings_of

CARD = "card.json"
VERDICTS = pa.schema(
    [("row_id", pa.string()), ("better", pa.int8()), ("first", pa.float64()), ("second", pa.float64())]
    + [("principle", pa.string()), ("problem", pa.string())]
)


class CardConfig(Admission):
    """Section `card` of the study."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of judges that are decoders.")
    pairs: int | None = Field(ge=1, description="Validation pairs, the lowest row ids; null: all.")
    min_margin: float = Field(ge=0, description="Difference of mean ratings that a pair must have.")
    bootstrap: int = Field(ge=100, description="Resamples of the pairs behind each interval.")


def judge_card(
    config: CardConfig, compute: Compute, name: str, judge: JudgeConfig, words: WordsConfig, validated: Path,
    data: Path, out: Path,
) -> dict:  # fmt: skip
    """Write the two files into `out` and return the card.

    validated, data: the preferences as validated, and the set that they come from. Raises UsageError for a judge that
    cannot be opened, DataError without a pair, ConnectionError for an endpoint that does not answer.
    """
    alpha.library()  # before the judge's work, not after it
    seed_everything(compute.seed, compute.threads)
    pairs = judged_pairs(validated, "validation", config.min_margin, config.pairs, ratings_of(data))
    opened = judge_of(judge, words, config.dtype, compute)
    opinions = opened.compare([one.pair for one in pairs])
    found = {"judge": name, "kind": judge.kind, "principles": judge.principles}
    found |= card(pairs, opinions, opened.cost, config.bootstrap, compute.seed)
    found["rule"] = {key: getattr(config, key) for key in Admission.model_fields}
    found["refused"] = refusals(found, config)
    out.mkdir(parents=True, exist_ok=True)
    with ParquetRows(out / "verdicts.parquet", VERDICTS) as sink:
        sink.write({
            "row_id": [one.pair.row_id for one in pairs], "better": [one.better for one in pairs],
            **{key: [getattr(opinion, key) for opinion in opinions] for key in VERDICTS.names[2:]},
        })  # fmt: skip
    write_json(out / CARD, found)
    return found


def said(card: dict) -> str:
    """The card in one line."""
    ceiling = card["one_against_rest"]
    people = f", one person with the rest on {ceiling['value']:.3f}" if ceiling else ""
    end = f"; REFUSED as a source of labels: {'; '.join(card['refused'])}" if card["refused"] else "; admitted"
    agreed, swap = (card[key]["value"] for key in ("agreement", "swap_consistency"))
    return (
        f"judge `{card['judge']}` agrees with people on {agreed:.3f} of {card['pairs']} pairs{people}; the order "
        f"changes nothing on {swap:.3f}{end}"
    )
