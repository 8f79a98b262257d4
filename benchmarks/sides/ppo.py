"""One run of benchmarks/ppo.py, ours or TRL's, in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.ppo trunk|adapter|trl --work FOLDER --base FOLDER --reward FOLDER --merged FOLDER [...]

FOLDER/prompts.json holds {"prompts": [[ids]], "stop_ids", "pad_id"}. `trunk` and `adapter` are the loop of stage `ppo`
(tasks/rl/loop.py), with the value head on the policy's trunk or on an adapter of its own that starts as the reward
model; `trl` is PPOTrainer of TRL 1.12 with a LoRA policy, the merged reward model, and a value model that is a copy of
it with LoRA. TRL's update is split by wrapping its own functions: `batch_generation` is the rollout; forwards without
gradient and `get_reward` are the scoring (reference, value, reward); the rest is the update.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil

STARTED = psutil.Process().create_time()  # start-up counts from here, imports included
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
PHASES = ("rollout", "score", "learn")


def peak_mb() -> float:
    """The largest resident memory since the last `forget_peak`, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def forget_peak() -> float:
    """Begin anew with the peak; returns the resident memory of now, in MB."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return peak_mb()


class Watch:
    """Seconds of each update by phase, and what it came to."""

    def __init__(self) -> None:
        self.imported = self.ready = 0.0
        self.rows: list[dict] = []
        self.check = 0.0  # mean reward of the prompts themselves: the same model in both

    def result(self, batch_rows: int) -> dict:
        timed = self.rows[1:] or self.rows  # the first update warms up
        seconds = sum(row["seconds"] for row in timed)
        names = ("seconds", "cpu_s", *(f"{phase}_s" for phase in PHASES))
        medians = {name: median(row[name] for row in timed) for name in names}
        return {
            "episodes_per_second": batch_rows * len(timed) / seconds, "updates": len(timed), **medians,
            "startup_s": self.ready - STARTED, "import_mb": self.imported, "peak_mb": peak_mb() - self.imported,
            "check": self.check, "rows": self.rows,
        }  # fmt: skip


def ours(options: argparse.Namespace, given: dict, watch: Watch) -> None:
    """The loop of stage `ppo`, without radar; the state is saved before the first update and after the last."""
    import torch

    from ajuste.learning.rl import rollout
    from ajuste.learning.seeds import seed_everything
    from ajuste.models import reward as reward_model
    from ajuste.models.one_base import OneBase, Settings
    from tasks.ppo import PpoConfig
    from tasks.rl import loop

    import_everything(rollout, reward_model)
    seed_everything(options.seed, options.threads)
    watch.imported = forget_peak()
    value_start = "reward" if options.side == "adapter" else "zero"
    one = OneBase.build(
        options.base, options.reward, Settings(8, 16.0, ("all-linear",), options.side, value_start),
        getattr(torch, options.dtype),
    )  # fmt: skip
    one.reward_bias = 0.0  # plain transformers, which TRL reads the reward model with, has no place for it
    torch.nn.init.zeros_(one.value_head.bias)
    prompts = given["prompts"][: options.batch_rows]
    # the prompt's last token as a response of one token: the row is the prompt
    last = torch.tensor([[row[-1]] for row in prompts])
    asked = one.scores([row[:-1] for row in prompts], last, torch.ones_like(last, dtype=torch.bool))
    watch.check = asked.mean().item()
    config = PpoConfig(
        score="reward", dtype=options.dtype, r=8, alpha=16, targets=["all-linear"], float32_head=False,
        value=options.side, value_start=value_start, updates=options.updates, batch_rows=options.batch_rows,
        minibatches=1, micro_rows=options.batch_rows, epochs=options.epochs,
        max_new_tokens=options.new_tokens, temperature=1.0, gamma=1.0, lam=0.95,
        terminal="after_end", missing_end="none", missing_end_penalty=1.0, whiten_rewards=False, whiten_advantages=True,
        unbiased=True, clip=0.2, dual_clip=None, importance_cap=None, value_clip=0.2, vf_coef=0.1, kl_estimator="k1",
        kl_control="fixed", beta=0.05, kl_target=6.0, kl_horizon=10000, lr=options.lr, lr_schedule="linear",
        adam_eps=1e-8, adam_eps_mode="torch", max_grad_norm=None, ptx=0.0, ptx_rows=8, alarm_kl=None, alarm_ratio=None,
        alarm_entropy=None, alarm_value_loss=None, alarm_repeats=None, alarm_sampler_gap=None,
        checkpoint_every=options.updates, record=[], radar_every=options.updates, radar_prompts=1, keep="last",
    )  # fmt: skip
    clock = laps(watch)
    with tempfile.TemporaryDirectory() as folder:
        history = loop.train(
            one, config.algorithm(), given["prompts"], one.scores, config, options.seed, Path(folder),
            given["stop_ids"], clock=clock,
        ).history  # fmt: skip
    names = ("score", "kl", "policy_loss", "value_loss", "clip_fraction")
    for lap, row in zip(watch.rows, history, strict=True):
        lap.update({name: row[name] for name in names})


def laps(watch: Watch):
    """A clock of the loop that notes each update, in seconds and by phase, as a row of `watch`."""
    from tasks.rl.clock import Clock

    class Laps(Clock):
        @contextmanager
        def update(self):
            watch.ready = watch.ready or time.time()
            before, began, worked = Counter(self.seconds), time.perf_counter(), time.process_time()
            yield
            seconds, cpu = time.perf_counter() - began, time.process_time() - worked
            phases = {f"{name}_s": self.seconds[name] - before[name] for name in PHASES}
            watch.rows.append({"seconds": seconds, "cpu_s": cpu, **phases})

    return Laps()


def import_everything(*_) -> None:
    """What is imported where it is used: it counts as import, as TRL's do."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401


def theirs(options: argparse.Namespace, given: dict, watch: Watch) -> None:
    """PPOTrainer of TRL 1.12 (trl.experimental.ppo; later releases have none)."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.utils import logging
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    import_everything()
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    watch.imported = forget_peak()
    spent = dict.fromkeys(PHASES, 0.0)
    tokenizer = AutoTokenizer.from_pretrained(options.base, padding_side="left")
    # not the end of turn: the trainer masks every padding id, in the prompts too
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(given["pad_id"])
    if tokenizer.eos_token_id != given["stop_ids"][0]:
        raise SystemExit("TRL ends a response at the tokenizer's eos token, which is not this base's end of turn")
    policy, reward, value = their_models(options)
    with torch.no_grad():
        batch = tokenizer.pad({"input_ids": given["prompts"][: options.batch_rows]}, return_tensors="pt")["input_ids"]
        watch.check = module.get_reward(reward, batch, tokenizer.pad_token_id, 0)[1].float().mean().item()
    time_calls(module, "batch_generation", "rollout", spent)
    time_calls(module, "forward", "score", spent, without_gradient=True)
    time_calls(module, "get_reward", "score", spent)
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder, per_device_train_batch_size=options.batch_rows, gradient_accumulation_steps=1,
            num_mini_batches=1, total_episodes=options.batch_rows * options.updates, num_ppo_epochs=options.epochs,
            response_length=options.new_tokens, temperature=1.0, kl_coef=0.05, stop_token="eos",
            learning_rate=options.lr, bf16=False, use_cpu=True, gradient_checkpointing=False, num_sample_generations=0,
            local_rollout_forward_batch_size=options.batch_rows, report_to="none", save_strategy="no", logging_steps=1,
            disable_tqdm=True, seed=options.seed,
        )  # fmt: skip
        PPOTrainer(
            args=args, processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward,
            value_model=value, train_dataset=Dataset.from_list([{"input_ids": row} for row in given["prompts"]]),
            peft_config=LoraConfig(**LORA, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[updates(watch, spent)],
        ).train()  # fmt: skip


def their_models(options: argparse.Namespace) -> tuple:
    """(policy, reward, value): the reward model merged, the value a copy of it with LoRA of its own."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    dtype = getattr(torch, options.dtype)
    policy = AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(options.merged, num_labels=1, dtype=dtype) for _ in range(2)
    )
    reward.requires_grad_(False)
    linear = {name.rsplit(".", 1)[-1] for name, layer in value.named_modules() if isinstance(layer, torch.nn.Linear)}
    # the trainer asks for value.base_model_prefix and value.score, so the class must stay: adapters in place
    inject_adapter_in_model(LoraConfig(**LORA, target_modules=sorted(linear - {"score"}), task_type="SEQ_CLS"), value)
    for name, parameter in value.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score"))
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return policy, reward, value


def time_calls(module, name: str, phase: str, spent: dict[str, float], without_gradient: bool = False) -> None:
    """Add the seconds of each call of a function of `module` to a phase; of those without gradient alone, if asked."""
    import torch

    function = getattr(module, name)

    def timed(*args, **kwargs):
        if without_gradient and torch.is_grad_enabled():
            return function(*args, **kwargs)
        began = time.perf_counter()
        answer = function(*args, **kwargs)
        spent[phase] += time.perf_counter() - began
        return answer

    setattr(module, name, timed)


def updates(watch: Watch, spent: dict[str, float]):
    """A callback of the trainer that notes each update as a row of `watch`; what no phase took was learning."""
    from transformers import TrainerCallback

    names = {"score": "objective/scores", "kl": "objective/kl", "policy_loss": "loss/policy_avg",
             "value_loss": "loss/value_avg", "clip_fraction": "policy/clipfrac_avg"}  # fmt: skip

    class Updates(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            watch.ready, self.began, self.worked = time.time(), time.perf_counter(), time.process_time()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "objective/kl" not in (logs or {}):
                return
            now, worked = time.perf_counter(), time.process_time()
            seconds, cpu = now - self.began, worked - self.worked
            spent["learn"] = seconds - spent["rollout"] - spent["score"]
            phases = {f"{name}_s": value for name, value in spent.items()}
            row = {name: float(logs[key]) for name, key in names.items()}
            watch.rows.append({"seconds": seconds, "cpu_s": cpu, **phases, **row})
            spent.update(dict.fromkeys(PHASES, 0.0))
            self.began, self.worked = now, worked

    return Updates()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["trunk", "adapter", "trl"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--reward", type=Path, required=True, help="the reward adapter")
    parser.add_argument("--merged", type=Path, required=True, help="the same, merged")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--batch-rows", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-memory", action="store_true", help="the stage's own allocator settings")
    options = parser.parse_args()
    if options.keep_memory:
        from ajuste.core.allocator import keep_memory

        keep_memory()
    given = json.loads((options.work / "prompts.json").read_text(encoding="utf-8"))
    watch = Watch()
    (theirs if options.side == "trl" else ours)(options, given, watch)
    found = {"side": options.side, "dtype": options.dtype, "kept": options.keep_memory, "load": os.getloadavg()[0]}
    print("RESULT " + json.dumps({**found, **watch.result(options.batch_rows)}), flush=True)


if __name__ == "__main__":
    main()
