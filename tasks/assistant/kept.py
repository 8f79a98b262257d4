"""Is the assistant after a training for preferences still the assistant that it was? Beside the SFT model before it.

    held-out     loss of the instructions' test rows: loss = -sum log p(y_t | y_<t, x) / tokens
    rules        share of the prompts with rules whose answer keeps every one
    references   exact match, ROUGE-1 and ROUGE-L of greedy answers to test prompts
    difference   after - before, paired: the same rows, the same resamples

A training can win its reward and lose all else, and its reward does not say so: the gate asks these figures too. They
are measured as stage `evaluate_instruct` measures the model before (ajuste/judging/assistant.py, section
`evaluate.instruct`), whose rows and answers are read and not made again; so the model after alone is measured, on fewer
rows. Stages `assistant_ppo` and `assistant_dpo` share section `assistant`.

Writes  assistant.json; rows.parquet (row_id, tokens, sums of -log p of both), answers.jsonl (a line a prompt: both
        answers, and whether each kept every rule), references.jsonl (a line a row: the reference, both answers and
        their ROUGE-L). The model after stands under its method's name, the one before under `sft`.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded, write_json, write_lines
from ajuste.core.params import Compute, Config, read_yaml, section, typed
from ajuste.core.stage import Stage
from ajuste.judging import assistant
from ajuste.judging.prompts import Prompt, read_prompts
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.models import decoder
from ajuste.rows.encoded.conversations import read_conversations

BEFORE = "sft"
Phase = Callable[[str], AbstractContextManager]


class KeptConfig(Config):
    """Section `assistant`."""

    rows: int | None = Field(ge=1, description="Of evaluate.instruct's test rows, the lowest row ids; null: all.")
    references: int | None = Field(ge=1, description="Of its answers with references, the first; null: all.")


def measure_config() -> assistant.MeasureConfig:
    """Section `evaluate.instruct` of params.yaml: another arithmetic or other prompts would not compare."""
    values = section(read_yaml(Path("params.yaml")), "evaluate", "instruct")
    wanted = {key: values[key] for key in assistant.MeasureConfig.model_fields if key in values}
    return typed(assistant.MeasureConfig, wanted, "evaluate.instruct")


def measure_kept(
    config: KeptConfig, measure: assistant.MeasureConfig, compute: Compute, method: str, model: Path, before: Path,
    encoded: Path, prompts: Path, out: Path, phase: Phase = nullcontext,
) -> dict:  # fmt: skip
    """Measure the model folder, made by `method`, beside what `before`, the out of `evaluate_instruct`, holds.

    Returns assistant.json. Raises UsageError for a folder that is no model or a missing input, DataError if `before` is
    of other rows.
    """
    seed_everything(compute.seed, compute.threads)
    asked = [prompt for prompt in read_prompts(prompts) if prompt.rules]
    table, said, answered = _read(before, config)
    rows = assistant.lowest(read_conversations(encoded, "test"), len(table))
    if rows.table["row_id"].to_pylist() != table["row_id"].to_pylist():
        raise DataError(f"{before}/rows.parquet is of other rows than {encoded}: run stage `evaluate_instruct` again")
    if missing := [prompt.id for prompt in asked if prompt.id not in said]:
        raise DataError(f"{before}/answers.jsonl has no answer to prompt `{missing[0]}`: run `evaluate_instruct` again")
    try:
        net, tokenizer, _ = decoder.load(model, dtype=getattr(torch, measure.dtype))
    except ValueError as error:
        raise UsageError(str(error)) from None
    with phase(method):
        wanted = measure.model_copy(update={"references": len(answered)})
        seen = assistant.see(assistant.ready(net, compute.torch_device()), tokenizer, rows, asked, wanted)
    tokens = table["tokens"].to_numpy()
    losses = {BEFORE: np.stack([table["instruct"].to_numpy(), tokens], axis=1), method: seen.losses}
    texts = {BEFORE: [said[prompt.id] for prompt in asked], method: seen.prompts}
    kept = {name: assistant.rules_kept(asked, some) for name, some in texts.items()}
    references = [row["reference"] for row in answered]
    replies = {BEFORE: [row["instruct"] for row in answered], method: seen.references}
    scores = {name: assistant.reference_scores(some, references) for name, some in replies.items()}
    report = {
        "held_out": assistant.held_out(losses, measure.bootstrap, compute.seed),
        "references": {name: assistant.means(some, measure.bootstrap, compute.seed) for name, some in scores.items()}
        | {"difference": _difference(scores, method, measure.bootstrap, compute.seed)},
        "rules": {name: assistant.rules_report(asked, some) for name, some in kept.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    sums = {name: rounded(found[:, 0].tolist()) for name, found in losses.items()}
    pq.write_table(pa.table({"row_id": table["row_id"], "tokens": table["tokens"], **sums}), out / "rows.parquet")
    write_lines(out / "answers.jsonl", _answers(asked, texts, kept))
    write_lines(out / "references.jsonl", [
        {"row_id": row["row_id"], "reference": row["reference"], **{name: some[i] for name, some in replies.items()},
         **{f"rougeL_{name}": some["rougeL"][i] for name, some in scores.items()}}
        for i, row in enumerate(answered)
    ])  # fmt: skip
    write_json(out / "assistant.json", report, sort_keys=True)
    return {**report, "tokens": sum(rows.lengths())}


def _read(before: Path, config: KeptConfig) -> tuple[pa.Table, dict[str, str], list[dict]]:
    """Of the model before, as far as they are asked for: rows, answers by prompt, answers with references."""
    names = ("rows.parquet", "answers.jsonl", "references.jsonl")
    for name in names:
        if not (before / name).is_file():
            raise UsageError(f"{before / name} is missing: run stage `evaluate_instruct`")
    said, answered = ([json.loads(line) for line in (before / name).read_text(encoding="utf-8").splitlines()]
                      for name in names[1:])  # fmt: skip
    table = pq.read_table(before / names[0]).slice(0, config.rows)
    # the rows with references are the first of all rows
    answered = answered[: config.references][: len(table)]
    return table, {row["id"]: row["instruct"] for row in said}, answered


def _difference(scores: dict[str, dict[str, list[float]]], after: str, bootstrap: int, seed: int) -> dict:
    """after - before of each score, paired."""
    gaps = {key: np.array(scores[after][key]) - np.array(scores[BEFORE][key]) for key in scores[after]}
    rows = len(next(iter(gaps.values())))
    counts, ones = metrics.resamples(rows, bootstrap, seed), np.ones(rows)
    return {key: metrics.estimate(gap, ones, counts) for key, gap in gaps.items()}


def _answers(asked: list[Prompt], texts: dict[str, list[str]], kept: dict[str, list[list[bool]]]) -> list[dict]:
    """A line a prompt: both answers, and whether each kept every rule."""
    return [
        {"id": prompt.id, "prompt": prompt.prompt, **{name: texts[name][i] for name in texts},
         **{f"kept_{name}": all(kept[name][i]) for name in kept}}
        for i, prompt in enumerate(asked)
    ]  # fmt: skip


def run(stage: Stage, method: str) -> None:
    """What stage `assistant_<method>` does in the folders of artifacts/, and its words."""
    artifacts = Path("artifacts")
    report = measure_kept(
        stage.config, measure_config(), stage.compute, method, artifacts / "merged" / method,
        artifacts / "evaluated/instruct", artifacts / "encoded/instructions", Path("sources/prompts"),
        artifacts / "evaluated" / f"assistant_{method}", stage.phase,
    )  # fmt: skip
    stage.count(tokens=report["tokens"])
    gap, rouge = report["held_out"]["difference"], report["references"]["difference"]["rougeL"]
    kept = {name: report["rules"][name]["passed"]["value"] for name in (BEFORE, method)}
    print(f"held-out loss {gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}) against SFT, "
          f"ROUGE-L {rouge['value']:+.3f} ({rouge['low']:+.3f} to {rouge['high']:+.3f}), "
          f"rules {kept[BEFORE]:.2f} -> {kept[method]:.2f}")  # fmt: skip
