"""The policy's own answers, two a prompt, for a judge to compare (`python -m studies.rlaif.samples`).

    y_0, y_1 ~ pi(. | x)        pi: the model that is to be trained, at `temperature`

    samples.parquet   row_id (of the prompt), prompt, prefill, answers (two texts, each with its prefill), ended
    samples.json      prompts, pairs; left out: same (both answers are one text), empty, damaged (a character was cut or
                      is none: ajuste/rows/clean.py); tokens

Prompts are those of the training split, the lowest row ids; in a set of rated texts none of them stands in a
comparison. Seeded: equal bytes.
"""

from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.models import decoder
from ajuste.rows.clean import damage
from ajuste.rows.parquet import MESSAGES, ParquetRows
from tasks.evaluate.policy import Prompts, Sampling, read_prompts, respond, texts_of

FILE = "samples.parquet"
LEFT_OUT = ("same", "empty", "damaged")
SAMPLES = pa.schema(
    [("row_id", pa.string()), ("prompt", MESSAGES), ("prefill", pa.string()), ("answers", pa.list_(pa.string()))]
    + [("ended", pa.list_(pa.bool_()))]
)


class SamplesConfig(Config):
    """Section `samples` of the study; new_tokens and temperature are those of `ppo`."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the policy.")
    prompts: int = Field(ge=1, description="Training prompts, the lowest row ids.")
    new_tokens: int = Field(ge=1, description="Most tokens of an answer.")
    temperature: float = Field(gt=0, description="That it is drawn at.")
    batch_rows: int = Field(ge=2, description="Answers drawn at once.")


def draw_samples(
    config: SamplesConfig, compute: Compute, policy: Path, encoded: Path, validated: Path, out: Path
) -> dict:
    """Write the two files into `out` and return samples.json's content.

    policy: a whole decoder. encoded, validated: the preferences. Raises UsageError for a folder that is no such model
    or a missing input, DataError if no prompt has two different answers.
    """
    seed_everything(compute.seed, compute.threads)
    prompts = read_prompts(encoded, "train", config.prompts)
    asked = _asked(validated / "prompts_train.parquet", prompts.row_ids)
    try:
        model, tokenizer, _ = decoder.load(policy, dtype=getattr(torch, config.dtype))
        model.to(compute.torch_device())
        stop = chat.end_of_turn(tokenizer)
        twice = Prompts(*([value for value in column for _ in range(2)] for column in prompts_columns(prompts)))
        sampling = Sampling(config.new_tokens, config.temperature, config.batch_rows)
        responses = respond(model, twice.ids, sampling, stop, tokenizer.pad_token_id or 0, compute.seed)
    except ValueError as error:
        raise UsageError(f"samples: {error}") from None
    texts = [text.strip() for text in texts_of(twice, responses, tokenizer)]
    ended = [row[-1] in stop for row in responses]
    out.mkdir(parents=True, exist_ok=True)
    counts = {"prompts": len(asked), "pairs": 0, **dict.fromkeys(LEFT_OUT, 0), "tokens": sum(map(len, responses))}
    with ParquetRows(out / FILE, SAMPLES) as sink:
        for i, (row_id, prompt) in enumerate(zip(prompts.row_ids, asked, strict=True)):
            pair = texts[2 * i : 2 * i + 2]
            why = _unfit(pair)
            counts[why or "pairs"] += 1
            if why is None:
                row = (row_id, prompt, prompts.prefills[i], pair, ended[2 * i : 2 * i + 2])
                sink.write({name: [value] for name, value in zip(SAMPLES.names, row, strict=True)})
    if not counts["pairs"]:
        left_out = ", ".join(f"{counts[why]} {why}" for why in LEFT_OUT)
        raise DataError(f"none of {len(asked)} prompts got two answers to compare: {left_out}")
    write_json(out / "samples.json", counts)
    return counts


def prompts_columns(prompts: Prompts) -> tuple:
    """The columns of Prompts in its order."""
    return prompts.row_ids, prompts.ids, prompts.prefilled, prompts.prefills


def _unfit(pair: list[str]) -> str | None:
    """Which of LEFT_OUT the answers are, if any."""
    if not all(pair):
        return "empty"
    if any(map(damage, pair)):
        return "damaged"
    return "same" if pair[0] == pair[1] else None


def _asked(path: Path, row_ids: list[str]) -> list[list[dict]]:
    """The conversations of these prompts. Raises UsageError for a file that is missing or of another set."""
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `validate_preferences`")
    found = {row["row_id"]: row["prompt"] for row in pq.read_table(path, columns=["row_id", "prompt"]).to_pylist()}
    missing = [row_id for row_id in row_ids if row_id not in found]
    if missing:
        raise UsageError(f"{path} has no prompt {missing[0]}, which is encoded: run `dvc repro encode_preferences`")
    return [found[row_id] for row_id in row_ids]
