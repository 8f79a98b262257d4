"""Stage `instruct` on a tiny decoder: settings, rows that it can learn, one training, and what the model answers."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ajuste.core.params import Compute
from ajuste.learning.layers import ragged
from ajuste.learning.text import chat
from ajuste.models import decoder
from ajuste.rows.encoded.conversations import read_conversations
from tasks.instruct import InstructConfig, instruct

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = InstructConfig(
    method="lora",
    r=4,
    alpha=8,
    lora_dropout=0.0,
    targets=["all-linear"],
    virtual_tokens=4,
    bottleneck_width=8,
    dtype="float32",
    lr=1e-2,
    warmup=0.1,
    epochs=2,
    batch_rows=8,
    accumulation=1,
    weight_decay=0.01,
    l2_to_w0=0.0,
    max_grad_norm=1.0,
    evaluations=2,
    patience=3,
)
SUBJECTS = ["film", "plot", "scene", "actor", "story", "cast", "script", "ending"]
JUDGED = [("good", "bad"), ("warm", "cold"), ("slow", "fast"), ("dull", "funny")]


def of(method: str, **changes) -> InstructConfig:
    """The settings of these tests with another method: what they change is checked as at any other place."""
    return InstructConfig(**{**CONFIG.model_dump(), "method": method, **changes})


def judged_set(base: Path, folder: Path) -> Path:
    """Encoded rows of unequal length, 44 to train on, 12 and 6: "Is the plot good or bad?", "The plot is good"."""
    tokenizer = decoder.load_base(base)[1]
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        (f"Is the {subject} {left} or {right}?" + " Please tell me." * (number % 3), f"The {subject} is {left}.")
        for number, (subject, (left, right)) in enumerate((s, j) for s in SUBJECTS for j in [*JUDGED, JUDGED[0][::-1]])
    ]
    asked += [(f"What about the {subject}?", "I do not know.") for subject in SUBJECTS * 2]
    for split, part in (("train", asked[:44]), ("validation", asked[44:]), ("test", asked[44:50])):
        rows = []
        for number, (question, answer) in enumerate(part):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            (prompt, _), (response, _) = chat.segments(tokenizer, turns)
            ids = prompt + response
            rows.append(
                {
                    "row_id": f"{number:016x}",
                    "input_ids": ids,
                    "labels": [-100] * len(prompt) + response,
                    "prompt_tokens": len(prompt),
                }
            )
        kinds = pa.schema(
            {
                "row_id": pa.string(),
                "input_ids": pa.list_(pa.int32()),
                "labels": pa.list_(pa.int32()),
                "prompt_tokens": pa.int32(),
            }
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=kinds), folder / f"{split}.parquet")
    (folder / "encoding.json").write_text('{"max_tokens": 64, "set": "instructions"}')
    return folder


def run(config: InstructConfig, encoded: Path, base: Path, folder: Path) -> dict:
    """One training in `folder`/out with checkpoints in `folder`/checkpoints."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return instruct(config, COMPUTE, encoded, base, folder / "out", folder / "checkpoints")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def pairs(encoded: Path, split: str = "validation") -> list:
    return list(read_conversations(encoded, split))


def logits(model, rows: list) -> torch.Tensor:
    """Of a padded batch, in eval mode: [B, T, V] with padding set to 0."""
    batch = ragged.padded(rows, pad_id=0)
    with torch.no_grad():
        out = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    out = out[:, -batch["input_ids"].shape[1] :]  # prompt tuning answers at its own tokens too
    return out * batch["attention_mask"][..., None]
