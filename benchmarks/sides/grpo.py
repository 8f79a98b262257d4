"""One run of benchmarks/grpo.py, ours or TRL's, in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.grpo ours|default|plain --work FOLDER --base FOLDER [...]

FOLDER/prompts.json holds {"prompts": [[ids]], "stop_ids", "pad_id"}. `ours` is the loop of stage `grpo`
(tasks/rl/loop.py). The others are GRPOTrainer of TRL with a LoRA policy whose reference is its base: `default` is what
its configuration says when nothing is set, bfloat16 autocast over float32 weights with gradient checkpointing; `plain`
holds the weights in bfloat16 and keeps the activations. What is paid is the share of even token ids, so no reward model
takes time on either side. TRL's update is split by wrapping its own methods: `_generate_single_turn` is the rollout,
the rest of `_generate_and_score_completions` the scoring (reference, old log-probabilities, rewards), the rest the
update.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.sides.ppo import LORA, PHASES, Watch, forget_peak, import_everything, laps

PEERS = ("default", "plain")
BETA = 0.04


def ours(options: argparse.Namespace, given: dict, watch: Watch) -> None:
    """The loop of stage `grpo`, without radar; the state is saved before the first update and after the last."""
    import torch
    from torch import Tensor

    from ajuste.learning.rl import rollout
    from ajuste.learning.seeds import seed_everything
    from ajuste.models.one_base import OneBase
    from tasks.grpo import GrpoConfig
    from tasks.rl import loop

    import_everything(rollout)
    seed_everything(options.seed, options.threads)
    watch.imported = forget_peak()
    config = GrpoConfig(
        score="reward", dtype=options.dtype, r=8, alpha=16, targets=["all-linear"], float32_head=False,
        group=options.group, scale="std", mean="sequence", clip_low=0.2, clip_high=0.2, kl_in="loss",
        updates=options.updates, batch_rows=options.batch_rows, minibatches=1, micro_rows=options.batch_rows,
        epochs=options.epochs, max_new_tokens=options.new_tokens, temperature=1.0, kl_control="fixed", beta=BETA,
        kl_target=6.0, kl_horizon=10000, lr=options.lr, lr_schedule="linear", adam_eps=1e-8, adam_eps_mode="torch",
        max_grad_norm=1.0, ptx=0.0, ptx_rows=8, alarm_kl=None, alarm_ratio=None, alarm_entropy=None,
        alarm_repeats=None, alarm_sampler_gap=None, checkpoint_every=options.updates, record=[],
        radar_every=options.updates, radar_prompts=1, keep="last",
    )  # fmt: skip

    def even(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
        return ((responses % 2 == 0) & mask).sum(1) / mask.sum(1)

    one = OneBase.build(options.base, None, config.settings(), getattr(torch, options.dtype)).to(options.device)
    clock = laps(watch)
    with tempfile.TemporaryDirectory() as folder:
        history = loop.train(
            one, config.algorithm(), given["prompts"], even, config, options.seed, Path(folder), given["stop_ids"],
            clock=clock,
        ).history  # fmt: skip
    for lap, row in zip(watch.rows, history, strict=True):
        lap.update({name: row[name] for name in ("score", "kl", "grad_norm", "length")})


def theirs(options: argparse.Namespace, given: dict, watch: Watch) -> None:
    """GRPOTrainer of TRL, with what the name of the side says."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer

    import_everything()
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    watch.imported = forget_peak()
    spent = dict.fromkeys(PHASES, 0.0)
    tokenizer = AutoTokenizer.from_pretrained(options.base, padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(given["pad_id"])
    if tokenizer.eos_token_id != given["stop_ids"][0]:
        raise SystemExit("TRL ends a response at the tokenizer's eos token, which is not this base's end of turn")
    default = options.side == "default"
    half = options.dtype == "bfloat16" and not default

    class OnIds(GRPOTrainer):
        def _tokenize_prompts(self, prompts):
            return [given["prompts"][int(number)] for number in prompts], None, {}

        def _generate_single_turn(self, *args, **kwargs):
            return timed(spent, "rollout", super()._generate_single_turn, *args, **kwargs)

        def _generate_and_score_completions(self, *args, **kwargs):
            return timed(spent, "score", super()._generate_and_score_completions, *args, **kwargs)

    def even(completion_ids, **_) -> list[float]:
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=options.batch_rows, gradient_accumulation_steps=1,
            num_generations=options.group, num_iterations=options.epochs, max_steps=options.updates * options.epochs,
            max_completion_length=options.new_tokens, temperature=1.0, beta=BETA, loss_type="grpo",
            learning_rate=options.lr, bf16=default and options.dtype == "bfloat16", use_cpu=True,
            gradient_checkpointing=default, shuffle_dataset=False, report_to="none", save_strategy="no",
            logging_steps=1, disable_tqdm=True, seed=options.seed,
        )  # fmt: skip
        trainer = OnIds(
            model=AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.bfloat16 if half else torch.float32),
            reward_funcs=even, args=args, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(given["prompts"]))]),
            peft_config=LoraConfig(**LORA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.add_callback(updates(watch, spent, options.epochs))
        trainer.train()


def timed(spent: dict[str, float], phase: str, function, *args, **kwargs):
    """Call it and add its seconds to a phase, less what the phases inside it took."""
    before, began = sum(spent.values()), time.perf_counter()
    answer = function(*args, **kwargs)
    spent[phase] += time.perf_counter() - began - (sum(spent.values()) - before)
    return answer


def updates(watch: Watch, spent: dict[str, float], epochs: int):
    """A callback of the trainer that notes each update, of so many steps, as a row of `watch`."""
    from transformers import TrainerCallback

    names = {"score": "reward", "kl": "kl", "grad_norm": "grad_norm", "length": "completions/mean_length"}

    class Updates(TrainerCallback):
        def __init__(self):
            self.curves = {}

        def on_step_begin(self, args, state, *rest, **kwargs):
            if state.global_step % epochs == 0:
                watch.ready = watch.ready or time.time()
                self.began, self.worked = time.perf_counter(), time.process_time()

        def on_step_end(self, args, state, *rest, **kwargs):
            if state.global_step % epochs == 0:
                seconds, cpu = time.perf_counter() - self.began, time.process_time() - self.worked
                spent["learn"] = seconds - spent["rollout"] - spent["score"]
                watch.rows.append({"seconds": seconds, "cpu_s": cpu, **{f"{p}_s": spent[p] for p in PHASES}})
                spent.update(dict.fromkeys(PHASES, 0.0))

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "reward" in (logs or {}):  # of the step that sampled, an update's first
                found = {name: float(logs[key]) for name, key in names.items() if key in logs}
                self.curves[(state.global_step - 1) // epochs] = found

        def on_train_end(self, *args, **kwargs):
            for number, row in enumerate(watch.rows):
                row.update(self.curves.get(number, {}))

    return Updates()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", *PEERS])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    for name in ("updates", "batch-rows", "group", "new-tokens", "epochs", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu", help="of our side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-memory", action="store_true", help="the stage's own allocator settings")
    options = parser.parse_args()
    if options.keep_memory:
        from ajuste.core.allocator import keep_memory

        keep_memory()
    given = json.loads((options.work / "prompts.json").read_text(encoding="utf-8"))
    watch = Watch()
    (ours if options.side == "ours" else theirs)(options, given, watch)
    name = f"{options.side}{' + allocator' if options.keep_memory else ''}"
    found = {"side": name, "dtype": options.dtype, "load": os.getloadavg()[0]}
    print("RESULT " + json.dumps({**found, **watch.result(options.batch_rows)}), flush=True)


if __name__ == "__main__":
    main()
