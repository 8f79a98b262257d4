"""Full fine-tuning and LoRA beside plain transformers Trainer, in one process, in turns.

    python -m benchmarks.classify [--rows 1600] [--rounds 2] [--out docs/measured/classify.md]

Both sides train the same base, rows, token ids, batch size, learning rates, schedule, dtype and threads for one epoch.
The peer is what a newcomer writes: AutoModelForSequenceClassification, DataCollatorWithPadding, TrainingArguments with
random batches, Trainer.train(). Ours is tasks/classify/training.py with its length-sorted batches, its loss and its
history, less the evaluations and checkpoints that the peer does not do. Speed is that of the loop alone, after two
steps of warm-up: rows a second of wall time, and rows a second of CPU time, which other work on the machine disturbs
less (under OMP_WAIT_POLICY=PASSIVE; else waiting threads count as work). Reads artifacts/ of the default run.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ajuste.core.params import Compute, read_yaml, section, typed
from ajuste.judging.objectives import SEQUENCE, scores
from ajuste.learning.seeds import seed_everything
from ajuste.models.classifier import build, logits_of
from ajuste.models.folder import load_tokenizer, quiet
from ajuste.models.layers import set_dropout
from ajuste.rows.encoded.labelled import Collate, Rows, read_labels, read_rows
from benchmarks.beside import in_turn, publish
from benchmarks.results import values
from tasks.classify.full import FullConfig
from tasks.classify.lora import LoraConfig, add_lora
from tasks.supervised import loop

WARM_UP = 2  # steps
CONFIGS = {"full": FullConfig, "lora": LoraConfig}


class Watch(TrainerCallback):
    """Wall and CPU seconds from the end of the warm-up to the end of the last step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append((time.perf_counter(), time.process_time()))

    def speed(self, rows: int, batch_rows: int) -> dict[str, float]:
        wall, cpu = (last - first for first, last in zip(self.times[WARM_UP - 1], self.times[-1], strict=True))
        timed = rows - WARM_UP * batch_rows
        return {"rows_per_second": timed / wall, "rows_per_cpu_second": timed / cpu}


def ours(model, rows: Rows, config, compute: Compute, labels: list[str], folder: Path) -> tuple[Watch, list[float]]:
    """One epoch through tasks.supervised.loop with a single evaluation that costs nothing, at the end."""
    watch = Watch()
    objective = SEQUENCE.objective(labels, None)

    def unmeasured(current) -> dict[str, float]:
        return {"loss": 0.0, "macro_f1": 0.0}

    original = loop._Follow.on_step_end

    def timed(self, args, state, control, **kwargs):
        watch.on_step_end(args, state, control)
        original(self, args, state, control, **kwargs)

    loop._Follow.on_step_end = timed
    try:
        collate = Collate("sequence", model.config.pad_token_id)
        history = loop.train(
            model, rows, rows.lengths(), collate,
            lambda current, batch, items: objective.loss(
                current(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]), batch["labels"], items
            ),
            unmeasured, "macro_f1", config, compute, folder,
        )  # fmt: skip
    finally:
        loop._Follow.on_step_end = original
    return watch, [row["loss"] for row in history if "loss" in row]


def peer(model, rows: Rows, config, compute: Compute, tokenizer, folder: Path) -> tuple[Watch, list[float]]:
    """One epoch of plain Trainer on the same rows."""
    watch = Watch()
    data = [{"input_ids": ids.tolist(), "labels": int(label)} for ids, label in zip(rows.ids, rows.labels, strict=True)]
    with quiet():
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=config.batch_rows,
                num_train_epochs=1,
                learning_rate=config.lr,
                warmup_steps=config.warmup,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                bf16=compute.dtype == "bfloat16",
                use_cpu=compute.torch_device() == "cpu",
                seed=compute.seed,
                save_strategy="no",
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def cut(rows: Rows, number: int) -> Rows:
    """The `number` rows of the lowest row ids: the files stand in the order of their sources, labels together."""
    kept = sorted(range(len(rows)), key=rows.table["row_id"].to_pylist().__getitem__)[:number]
    return Rows([rows.ids[i] for i in kept], rows.labels[kept], rows.table.take(kept))


def one(side: str, strategy: str, number: int, encoded: Path, base: Path, params: dict, compute: Compute) -> dict:
    """Train one side once from the same initial weights; rows per second, last losses and validation accuracy."""
    seed_everything(compute.seed, compute.threads)
    labels, tokenizer = read_labels(encoded), load_tokenizer(base)
    rows, validation = (
        cut(read_rows(encoded, "train", "sequence"), number),
        read_rows(encoded, "validation", "sequence"),
    )
    validation = cut(validation, min(len(validation), 400))
    values = {**section(params, "classify", strategy), "epochs": 1, "evaluations": 1, "accumulation": 1}
    config = typed(CONFIGS[strategy], values, f"classify.{strategy}")
    model = set_dropout(build(base, labels, pooling=config.pooling), config.dropout)
    if strategy == "lora":
        model = add_lora(model, config, base)
    model.to(compute.torch_device())
    with tempfile.TemporaryDirectory() as folder:
        if side == "ours":
            watch, losses = ours(model, rows, config, compute, labels, Path(folder))
        else:
            watch, losses = peer(model, rows, config, compute, tokenizer, Path(folder))
    quality = scores(logits_of(model.eval(), validation.ids), validation.flat_labels())
    return {
        "side": side,
        "strategy": strategy,
        **watch.speed(number, config.batch_rows),
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "validation_loss": quality["loss"],
        "validation_accuracy": quality["accuracy"],
    }


def report(results: list[dict], arguments: argparse.Namespace, compute: Compute) -> str:
    """The results as Markdown, medians over the rounds."""
    lines = [
        "# Fine-tuning beside plain Trainer",
        "",
        f"`python -m benchmarks.classify --rows {arguments.rows} --rounds {arguments.rounds}`: same base, rows, token",
        f"ids, batch, schedule, {compute.dtype}, {compute.threads} threads, in turns, in one process. Medians.",
        "Speed in rows a second of CPU time, and of wall time; loss: mean of the last 20 steps; quality on 400",
        f"validation rows after one epoch. Load average at the end: {os.getloadavg()[0]:.1f}.",
        "",
        "| strategy | side | rows / CPU s | each round | rows / s | loss | validation loss | validation accuracy |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for strategy in ("full", "lora"):
        speed = {}
        for side in ("ours", "peer"):
            mine = [r for r in results if r["side"] == side and r["strategy"] == strategy]
            speed[side] = [median(r[key] for r in mine) for key in ("rows_per_cpu_second", "rows_per_second")]
            rounds = ", ".join(f"{r['rows_per_cpu_second']:.1f}" for r in mine)
            name = "Ajuste" if side == "ours" else "plain Trainer"
            quality = " | ".join(f"{mine[-1][key]:.4f}" for key in ("loss", "validation_loss", "validation_accuracy"))
            lines.append(
                f"| {strategy} | {name} | {speed[side][0]:.1f} | {rounds} | {speed[side][1]:.1f} | {quality} |"
            )
        cpu, wall = (a / b for a, b in zip(speed["ours"], speed["peer"], strict=True))
        lines.append(f"| {strategy} | **ratio** | **{cpu:.2f}** | | **{wall:.2f}** | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--out", type=Path, default=Path("docs/measured/classify.md"))
    arguments = parser.parse_args()
    params = read_yaml(Path("params.yaml"))
    compute = typed(Compute, params["compute"], "compute")
    torch.set_num_threads(compute.threads)
    encoded, base = arguments.artifacts / "encoded/reviews", arguments.artifacts / "base/encoder"
    results = []
    for strategy in ("full", "lora"):
        for turn in range(arguments.rounds):
            for side in in_turn(("ours", "peer"), turn):
                results.append(one(side, strategy, arguments.rows, encoded, base, params, compute))
                print(json.dumps(results[-1]), flush=True)
    values(results, {"rows_per_second": "rows/s", "rows_per_cpu_second": "rows/CPU s"}, "strategy", "side")
    publish(arguments.out, report(results, arguments, compute))


if __name__ == "__main__":
    main()
