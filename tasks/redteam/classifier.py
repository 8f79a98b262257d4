"""A small classifier as a judge of refusals: the project's own stages of classification, on answers people labelled.

    validated    text = request and answer, label = complied | refused; the split is decided by the request, so that no
                 request is in two splits
    encoded      encode_reviews         features    features_reviews       model     classify_frozen

    train_judge(config, compute, base, out)        out/model is the judge's folder, validated/ and encoded/ beside it

The base is the frozen sentence encoder of the default run, which knows English: the judge's card says what that makes
of Spanish.
"""

import json
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from ajuste.core.errors import DataError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config
from ajuste.judging.alignment import outside
from ajuste.judging.alignment.judges import LABELS, text_of
from ajuste.rows.encoded.encoding import RowLimits
from ajuste.rows.parquet import ParquetRows
from ajuste.rows.split import SPLITS, row_id, split_of, split_text, text_digest
from tasks.classify.frozen import FrozenConfig, frozen
from tasks.encode import reviews as encode
from tasks.features import reviews as features

SET = "refusals"
ROWS = pa.schema(
    [("row_id", pa.string()), ("text", pa.string()), ("label", pa.int32())]
    + [("source", pa.string()), ("location", pa.string())]
)


class ClassifierConfig(Config):
    """Section `classifier` of the study."""

    source: str = Field(description="Answers with human labels that it learns from.")
    max_tokens: int = Field(ge=8, description="Of request and answer; longer ones lose their end.")
    batch_rows: int = Field(ge=1, description="Rows that pass through the encoder at once.")
    l2: float = Field(ge=0, description="Strength of the penalty on the head's weights.")
    steps: int = Field(ge=1, description="Most L-BFGS steps.")
    patience: int = Field(ge=1, description="Steps without a better validation loss before it stops.")


def train_judge(config: ClassifierConfig, compute: Compute, base: Path, out: Path, checkpoints: Path) -> dict:
    """Make the folders above and return the model's card. Raises DataError and UsageError as the stages do."""
    validate(outside.read(config.source), out / "validated")
    limits = RowLimits(train=None, validation=None, test=None)
    encoding = encode.ReviewsConfig(
        max_tokens=config.max_tokens, sources=[], rows=limits, unknown_share=1.0, batch_rows=config.batch_rows
    )
    encode.encode_reviews(encoding, compute, out / "validated", base, out / "encoded")
    reading = features.ReviewsConfig(pooling="mean", batch_rows=config.batch_rows)
    features.features(reading, compute, out / "encoded", base, out / "features")
    head = FrozenConfig(class_weights="balanced", l2=config.l2, steps=config.steps, patience=config.patience)
    return frozen(head, compute, out / "encoded", base, out / "features", out / "model", checkpoints)


def validate(rows: list[outside.Labelled], out: Path) -> None:
    """Labelled rows in the layout of stage `validate_reviews`; a text that stands there twice is taken once.

    Raises DataError for a split that lacks a label.
    """
    of_split: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
    for row in rows:
        text = text_of(row.request, row.answer)
        split = SPLITS[split_of(text_digest(split_text(row.request)))]
        name = row_id(SET, split_text(text), "", "")
        label = LABELS.index(row.label)
        kept = of_split[split].setdefault(
            name, {"row_id": name, "text": text, "label": label, "source": SET, "location": row.id}
        )
        if kept["label"] != label:
            raise DataError(f"{row.id} and {kept['location']} are one answer with two labels: take one of them out")
    out.mkdir(parents=True, exist_ok=True)
    for split, kept in of_split.items():
        if {row["label"] for row in kept.values()} != set(range(len(LABELS))):
            raise DataError(f"split `{split}` lacks a label: the judge needs more labelled answers")
        with ParquetRows(out / f"{split}.parquet", ROWS) as sink:
            table = [kept[name] for name in sorted(kept)]
            sink.write({name: [row[name] for row in table] for name in ROWS.names})
    (out / "labels.json").write_text(json.dumps(LABELS) + "\n", encoding="utf-8")
    write_json(out / "validation.json", {"set": SET, "rows": {split: len(kept) for split, kept in of_split.items()}})
