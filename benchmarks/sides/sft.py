"""One training run of benchmarks/sft.py, ours or TRL's, in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.sft ours|default|plain|group|packing  --work FOLDER --base FOLDER --rows NAME [...]

FOLDER/<rows>/train.parquet holds the rows, encoded. `ours` is stage `instruct` itself (tasks/instruct.py), watched.
The others are SFTTrainer of TRL on the same token ids: `default` is what its configuration says when nothing is set,
bfloat16 autocast over float32 weights with gradient checkpointing; the others hold the weights in bfloat16.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import psutil

STARTED = psutil.Process().create_time()  # start-up counts from here, imports included
WARM_UP = 2  # steps
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


class Watch:
    """Seconds, of the clock and of the processor, and trained tokens of each optimiser step."""

    def __init__(self) -> None:
        self.ready, self.ends, self.tokens, self.losses = 0.0, [], [0], []

    def begin(self) -> None:
        if not self.ready:
            self.ready = time.time()
            self.ends.append((time.perf_counter(), time.process_time()))

    def count(self, labels) -> None:
        self.tokens[-1] += int((labels[:, 1:] != -100).sum())

    def end(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))
        self.tokens.append(0)

    def follow_loop(self, tokens: int = 0) -> None:
        """Watch every step that tasks/supervised/loop.py takes in this process; each trains so many tokens more."""
        from tasks.supervised import loop

        step_end = loop._Follow.on_step_end

        def timed(follow, args, state, control, **kwargs):
            self.tokens[-1] += tokens
            self.end()
            step_end(follow, args, state, control, **kwargs)

        loop._Follow.on_step_begin = lambda *args, **kwargs: self.begin()
        loop._Follow.on_step_end = timed

    def result(self) -> dict:
        after = min(WARM_UP, len(self.ends) - 2)  # ends[0] is the beginning
        wall, cpu = (last - first for first, last in zip(self.ends[after], self.ends[-1], strict=True))
        return {
            "tokens_per_second": sum(self.tokens[after:]) / wall,
            "tokens_per_cpu_second": sum(self.tokens[after:]) / cpu,
            "steps": len(self.ends) - 1 - after,
            "startup_s": self.ready - STARTED,
            "first_step_s": self.ends[1][0] - self.ends[0][0],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
        }


def ours(options: argparse.Namespace, watch: Watch) -> None:
    """Stage `instruct` with one evaluation, on a single row, after the last step."""
    from ajuste.core.params import Compute
    from ajuste.learning.layers import ragged
    from tasks.instruct import InstructConfig, instruct

    config = InstructConfig(
        method="lora", r=8, alpha=16, lora_dropout=0.0, targets=["all-linear"], virtual_tokens=1, bottleneck_width=1,
        dtype=options.dtype, lr=options.lr, warmup=0.0, epochs=1, batch_rows=options.batch_rows, accumulation=1,
        weight_decay=0.0, l2_to_w0=0.0, max_grad_norm=1.0, evaluations=1, patience=1,
    )  # fmt: skip
    compute = Compute(dtype=options.dtype, device="cpu", threads=options.threads, seed=options.seed)
    loss = ragged.response_loss

    def counted(model, batch, items=None):
        watch.count(batch["labels"])
        return loss(model, batch, items)

    ragged.response_loss = counted
    watch.follow_loop()
    with tempfile.TemporaryDirectory() as folder:
        out, checkpoints = Path(folder) / "out", Path(folder) / "checkpoints"
        checkpoints.mkdir()
        instruct(config, compute, options.work / options.rows, options.base, out, checkpoints)
        history = [json.loads(line) for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    watch.losses = [row["loss"] for row in history if "loss" in row]


def theirs(options: argparse.Namespace, watch: Watch) -> None:
    """SFTTrainer of TRL, with what the name of the side says."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    default, half = options.side == "default", options.dtype == "bfloat16"

    class Watching(SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            watch.count(inputs["labels"])
            return super().training_step(model, inputs, *args, **kwargs)

    class Steps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            watch.begin()

        def on_step_end(self, *args, **kwargs):
            watch.end()

    rows = Dataset.from_parquet(str(options.work / options.rows / "train.parquet"), cache_dir=str(options.work / "hf"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Watching(
            model=AutoModelForCausalLM.from_pretrained(
                options.base, dtype=torch.bfloat16 if half and not default else torch.float32
            ),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=options.batch_rows,
                num_train_epochs=1,
                learning_rate=options.lr,
                max_length=options.max_tokens,
                bf16=half,
                use_cpu=True,
                gradient_checkpointing=default,
                packing=options.side == "packing",
                train_sampling_strategy="group_by_length" if options.side == "group" else "random",
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                seed=options.seed,
            ),
            train_dataset=rows.select_columns(["input_ids", "labels"]),
            processing_class=AutoTokenizer.from_pretrained(options.base),
            peft_config=LoraConfig(**LORA),
            callbacks=[Steps()],
        )
        trainer.train()
    watch.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", "default", "plain", "group", "packing"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-memory", action="store_true", help="the stage's own allocator settings")
    options = parser.parse_args()
    if options.keep_memory:
        from ajuste.core.allocator import keep_memory

        keep_memory()
    watch = Watch()
    (ours if options.side == "ours" else theirs)(options, watch)
    name = f"{options.side}{' + allocator' if options.keep_memory else ''}"
    load = os.getloadavg()[0]
    print("RESULT " + json.dumps({"side": name, "rows": options.rows, **watch.result(), "load": load}), flush=True)


if __name__ == "__main__":
    main()
