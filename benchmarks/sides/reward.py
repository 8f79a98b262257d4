"""One run of benchmarks/reward.py, ours or TRL's, in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.reward ours|default|plain|group  --work FOLDER --base FOLDER [--check] [...]

FOLDER/pairs holds the comparisons as artifacts/encoded/preferences does. `ours` is stage `reward` itself
(tasks/reward.py), watched. The others are RewardTrainer of TRL on the same token ids: `default` is what its
configuration says when nothing is set, bfloat16 autocast over float32 weights with gradient checkpointing; the others
hold the weights in bfloat16 and keep the activations, `group` takes pairs of similar length together.

With --check no step is taken: the reward model at FOLDER/adapter gets the pairs as one batch, and its loss and
gradients go into FOLDER/<side>.safetensors.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.sides.sft import LORA, Watch

PEERS = ("default", "plain", "group")


def pairs(folder: Path) -> list[dict]:
    """The pairs by row id, as TRL wants them: chosen_ids and rejected_ids, prompt and response together."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "train.parquet").sort_by("row_id").to_pylist()
    names = ("chosen_ids", "rejected_ids")
    return [
        {name: row["prompt_ids"] + response for name, response in zip(names, row["responses"], strict=True)}
        for row in rows
    ]


def ours(options: argparse.Namespace, watch: Watch) -> None:
    """Stage `reward`, with one evaluation, on a single comparison, after the last step."""
    from ajuste.core.params import Compute
    from tasks.reward import RewardConfig, train_reward_model

    config = RewardConfig(
        r=8, alpha=16, lora_dropout=0.0, targets=["all-linear"], dtype=options.dtype, margin=0.0, soft_labels=False,
        lr=options.lr, warmup=0.0, epochs=1, batch_rows=options.batch_pairs, accumulation=1, weight_decay=0.0,
        max_grad_norm=1.0, evaluations=1, patience=1, samples=2, new_tokens=2, temperature=1.0,
    )  # fmt: skip
    compute = Compute(dtype=options.dtype, device="cpu", threads=options.threads, seed=options.seed)
    watch.follow_loop(options.batch_pairs)
    with tempfile.TemporaryDirectory() as folder:
        out, checkpoints = Path(folder) / "out", Path(folder) / "checkpoints"
        checkpoints.mkdir()
        train_reward_model(config, compute, options.work / "pairs", options.base, out, checkpoints)
        history = [json.loads(line) for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    watch.losses = [row["loss"] for row in history if "loss" in row]


def theirs(options: argparse.Namespace, watch: Watch) -> None:
    """RewardTrainer of TRL, with what the name of the side says."""
    import torch
    from transformers import AutoModelForSequenceClassification, TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            watch.begin()

        def on_step_end(self, *args, **kwargs):
            watch.tokens[-1] += options.batch_pairs
            watch.end()

    half = options.dtype == "bfloat16" and options.side != "default"
    model = AutoModelForSequenceClassification.from_pretrained(
        options.base, dtype=torch.bfloat16 if half else torch.float32, num_labels=1
    )
    trainer = reward_trainer(model, options, LORA | {"task_type": "SEQ_CLS"}, [Steps()])
    rows = trainer.train_dataset  # a column of lengths that it was given is gone by now
    lengths = [sum(len(row[name]) for name in rows.column_names) for row in rows]
    trainer.train_dataset = rows.add_column("length", lengths)
    trainer.train()
    watch.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def reward_trainer(model, options: argparse.Namespace, lora: dict | None, callbacks: list):
    """RewardTrainer on the pairs; its padding token is one that ends no turn, or the end would be padding."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.utils import logging
    from trl import RewardConfig, RewardTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(options.pad_id)
    model.config.pad_token_id = options.pad_id
    return RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(options.work / "trl"),
            per_device_train_batch_size=options.batch_pairs,
            num_train_epochs=1,
            learning_rate=options.lr,
            bf16=options.dtype == "bfloat16",
            use_cpu=True,
            gradient_checkpointing=options.side == "default",
            train_sampling_strategy="group_by_length" if options.side == "group" else "random",
            length_column_name="length",
            remove_unused_columns=False,  # it would remove the lengths before they are read
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=options.seed,
        ),
        train_dataset=Dataset.from_list(pairs(options.work / "pairs")),
        processing_class=tokenizer,
        peft_config=LoraConfig(**lora) if lora else None,
        callbacks=callbacks,
    )


def check(options: argparse.Namespace) -> float:
    """Loss of all pairs as one batch; it and the gradients of A, B and w are written."""
    import torch
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(options.threads)
    rows = pairs(options.work / "pairs")
    dtype = getattr(torch, options.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(options.base, dtype=dtype, num_labels=1)
    model = PeftModel.from_pretrained(model, options.work / "adapter", is_trainable=True).to(dtype)
    if options.side == "ours":
        from ajuste.learning.layers import fused
        from ajuste.learning.losses.bradley_terry import comparison_loss
        from ajuste.models import reward

        reward.attach(model)
        fused.fuse(model)
        batch = reward.collate(model, [row[name] for row in rows for name in ("chosen_ids", "rejected_ids")])
        loss = comparison_loss(reward.rewards(model, batch), torch.full((len(rows),), 2))
    else:
        trainer = reward_trainer(model, options, None, [])
        batch = {name: x for name, x in trainer.data_collator(rows).items() if name != "labels"}
        loss = trainer.compute_loss(model.train(), batch)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    save_file({"loss": loss.detach().reshape(1), **found}, options.work / f"{options.side}.safetensors")
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", *PEERS])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--pad-id", type=int, required=True)
    parser.add_argument("--dtype", choices=["float64", "float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch-pairs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-memory", action="store_true", help="the stage's own allocator settings")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        print("RESULT " + json.dumps({"side": options.side, "loss": check(options)}), flush=True)
        return
    if options.keep_memory:
        from ajuste.core.allocator import keep_memory

        keep_memory()
    watch = Watch()
    (ours if options.side == "ours" else theirs)(options, watch)
    found = watch.result()
    found = {name.replace("tokens_per", "pairs_per"): value for name, value in found.items()}
    name = f"{options.side}{' + allocator' if options.keep_memory else ''}"
    print("RESULT " + json.dumps({"side": name, **found, "load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()
