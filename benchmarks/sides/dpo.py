"""One run of benchmarks/dpo.py, ours or TRL's, in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.dpo ours|default|plain|precomputed  --work FOLDER --base FOLDER [...]

FOLDER/pairs holds the comparisons as artifacts/encoded/preferences does. `ours` is stage `reference` and then stage
`dpo` itself, watched. The others are DPOTrainer of TRL on the same token ids: `default` is what its configuration says
when nothing is set, bfloat16 autocast over float32 weights with gradient checkpointing; the others hold the weights in
bfloat16 and keep the activations, `precomputed` asks the reference before training, the others in each step.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.sides.sft import LORA, Watch

PEERS = ("default", "plain", "precomputed")


def pairs(folder: Path) -> list[dict]:
    """The pairs by row id, as TRL holds them once it has tokenised texts."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "train.parquet").sort_by("row_id").to_pylist()
    return [
        {"prompt_ids": row["prompt_ids"], "chosen_ids": row["responses"][0], "rejected_ids": row["responses"][1]}
        for row in rows
    ]


def ours(options: argparse.Namespace, watch: Watch) -> float:
    """Both stages, with one evaluation, on a single comparison, after the last step; returns the reference's pairs a
    second."""
    from ajuste.core.params import Compute
    from tasks.dpo import DpoConfig, Folders, dpo
    from tasks.reference import ReferenceConfig, reference

    config = DpoConfig(
        loss="sigmoid", beta=0.1, label_smoothing=0.0, gamma=0.0, r=8, alpha=16, lora_dropout=0.0,
        targets=["all-linear"], lr=options.lr, warmup=0.0, epochs=1, batch_rows=options.batch_pairs, accumulation=1,
        weight_decay=0.0, max_grad_norm=1.0, evaluations=1, patience=1, alarm_displacement=None, samples=2,
        new_tokens=2, temperature=1.0,
    )  # fmt: skip
    compute = Compute(dtype=options.dtype, device="cpu", threads=options.threads, seed=options.seed)
    watch.follow_loop(options.batch_pairs)
    encoded = options.work / "pairs"
    with tempfile.TemporaryDirectory() as folder:
        out, checkpoints, word = (Path(folder) / name for name in ("out", "checkpoints", "reference"))
        checkpoints.mkdir()
        asked = reference(ReferenceConfig(dtype=options.dtype), compute, encoded, options.base, word)
        dpo(config, compute, Folders(encoded, options.base, word, options.gold), out, checkpoints)
        history = [json.loads(line) for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    watch.losses = [row["loss"] for row in history if "loss" in row]
    return asked["per_second"]


def theirs(options: argparse.Namespace, watch: Watch) -> float | None:
    """DPOTrainer of TRL, with what the name of the side says; returns the reference's pairs a second where it is asked
    before."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.utils import logging
    from trl import DPOConfig, DPOTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # tokenised already

    class Steps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            watch.begin()

        def on_step_end(self, *args, **kwargs):
            watch.tokens[-1] += options.batch_pairs
            watch.end()

    default, before = options.side == "default", options.side == "precomputed"
    half = options.dtype == "bfloat16" and not default
    rows = pairs(options.work / "pairs")
    made = dict(
        model=AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.bfloat16 if half else torch.float32),
        args=DPOConfig(
            output_dir=str(options.work / "trl"), per_device_train_batch_size=options.batch_pairs,
            per_device_eval_batch_size=options.batch_pairs, num_train_epochs=1, learning_rate=options.lr, beta=0.1,
            max_length=512, bf16=options.dtype == "bfloat16", use_cpu=True, gradient_checkpointing=default,
            precompute_ref_log_probs=before, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
            seed=options.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.base),
        peft_config=LoraConfig(**LORA),
        callbacks=[Steps()],
    )  # fmt: skip
    began = time.perf_counter()
    trainer = OnIds(**made)
    seconds = time.perf_counter() - began
    trainer.train()
    watch.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return len(rows) / seconds if before else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", *PEERS])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--gold", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch-pairs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-memory", action="store_true", help="the stage's own allocator settings")
    options = parser.parse_args()
    if options.keep_memory:
        from ajuste.core.allocator import keep_memory

        keep_memory()
    watch = Watch()
    asked = (ours if options.side == "ours" else theirs)(options, watch)
    found = {name.replace("tokens_per", "pairs_per"): value for name, value in watch.result().items()}
    name = f"{options.side}{' + allocator' if options.keep_memory else ''}"
    print("RESULT " + json.dumps({"side": name, **found, "reference": asked, "load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()
