"""A finished RLHF in miniature on top of a finished instruction fine-tuning: reward model, PPO, their evaluation."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests import tiny_rlhf
from tests.tracking import assistants, projects
from tests.tracking.assistants import interval

MERGED, ADAPTERS = "artifacts/merged", "artifacts/adapters"
STAGES = {
    "gold": (["artifacts/encoded/instructions"], f"{MERGED}/gold"),
    "reward": (["artifacts/encoded/preferences", f"{MERGED}/instruct"], f"{ADAPTERS}/reward"),
    "merge_reward": ([f"{ADAPTERS}/reward", "artifacts/encoded/preferences", f"{MERGED}/instruct"], f"{MERGED}/reward"),
    "ppo": ([f"{ADAPTERS}/reward", "artifacts/encoded/preferences", f"{MERGED}/gold", f"{MERGED}/instruct"],
            f"{ADAPTERS}/ppo"),
    "merge_ppo": ([f"{ADAPTERS}/ppo", f"{MERGED}/instruct"], f"{MERGED}/ppo"),
    "evaluate_ppo": (["artifacts/evaluated/forgetting_base", f"{MERGED}/gold", f"{MERGED}/instruct", f"{MERGED}/ppo",
                      f"{MERGED}/reward"], "artifacts/evaluated/ppo"),
}
PROMPTS = 12


def make(root: Path, seed: int = 30, instruct_seed: int = 10, loss: float = 2.0, **validation: float) -> Path:
    """Write the whole run below `root`: another `seed` is another policy, `validation` what its card says."""
    assistants.make(root, "lora", instruct_seed, loss)
    base = root / MERGED / "instruct"
    encoded = tiny_rlhf.prompts(base, root / "artifacts/encoded/preferences", ("train", "validation", "test"))
    for split in ("train", "validation", "test"):
        pq.write_table(pa.table({"row_id": [f"{split}{i}" for i in range(5)]}), encoded / f"{split}.parquet")
    (encoded / "encoding.json").write_text(json.dumps({"set": "ratings", "max_tokens": 64, "splits": {}}))
    gold = root / MERGED / "gold/ajuste.json"
    gold.parent.mkdir()
    gold.write_text(json.dumps({"labels": ["negative", "positive"], "accuracy_on_ratings": {**interval(0.75, 0.05),
                                                                                            "rows": 90}}))
    reward = tiny_rlhf.reward_adapter(base, root / ADAPTERS / "reward")
    evaluate_reward(reward)
    tiny_rlhf.reward_merged(base, reward, root / MERGED / "reward")
    policy = tiny_rlhf.policy(base, root / ADAPTERS / "ppo", seed, **validation)
    tiny_rlhf.policy_merged(base, policy, root / MERGED / "ppo")
    evaluate_ppo(root / "artifacts/evaluated/ppo", seed)
    lock(root)
    return root


def evaluate_reward(folder: Path) -> None:
    """evaluation.json and pairs.parquet of a reward model; the figures are invented."""
    folder.mkdir(parents=True, exist_ok=True)
    margins = [{"margin": margin, "pairs": 60 - int(20 * margin), "accuracy": interval(0.7 + margin / 10, 0.05),
                "one_against_rest": 0.75 + margin / 12, "split_half": 0.8 + margin / 15}
               for margin in (0.5, 1.0, 1.5, 2.5)]
    bins = [{"low": 0.5 + i / 10, "high": 0.6 + i / 10, "pairs": 12, "confidence": 0.55 + i / 10,
             "accuracy": 0.5 + i / 10} for i in range(5)]
    longer = [{"longer": name, "pairs": 20, "accuracy": interval(value, 0.1)}
              for name, value in (("better", 0.8), ("worse", 0.7))] + [{"longer": "neither", "pairs": 0,
                                                                        "accuracy": None}]
    (folder / "evaluation.json").write_text(json.dumps({"test": {
        "comparisons": 60, "pairs": 60, "accuracy": interval(0.75, 0.06), "by_margin": margins, "by_longer": longer,
        "by_length": [{"tokens_from": 10.0, "tokens_to": 20.0, "pairs": 30, "accuracy": interval(0.74, 0.08)}],
        "calibration": {"ece": 0.04, "bins": bins}, "length_correlation": 0.12, "length_correlation_of_ratings": 0.05,
    }}))  # fmt: skip
    pq.write_table(pa.table({"row_id": [f"test{i}" for i in range(60)], "right": [float(i % 4 > 0) for i in range(60)],
                             "margin": [i / 20 for i in range(60)]}), folder / "pairs.parquet")


def evaluate_ppo(folder: Path, seed: int = 0, hostile: str = "") -> None:
    """ppo.json, answers.jsonl, scores.json and rows.parquet; the scores of the prompts are drawn by `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(PROMPTS):
        line = {"id": f"te{i}", "prefill": f"the film {i}{hostile}", "kl": 3.0}
        for model, proxy in (("sft", 0.0), ("ppo", 0.8)):
            noise = float(rng.normal(0, 0.1)) if model == "ppo" else i / 10
            line |= {model: f"{model} says {i}{hostile}", f"proxy_{model}": proxy + noise,
                     f"gold_{model}": 0.5 + noise / 10, f"tokens_{model}": 20}
        lines.append(line)
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ppo.json").write_text(json.dumps({
        "proxy": {"sft": interval(0.05), "ppo": interval(0.8), "difference": interval(0.75)},
        "gold": {"sft": interval(0.6), "ppo": interval(0.68), "difference": interval(0.08, 0.03),
                 "accuracy_on_ratings": {**interval(0.75, 0.05), "rows": 90}},
        "kl": interval(3.5, 0.4), "length": {"sft": interval(20.0), "ppo": interval(21.0), "difference": interval(1.0)},
        "ended": {"sft": interval(0.8), "ppo": interval(0.9)}, "distinct2": {"sft": 0.9, "ppo": 0.81, "ratio": 0.9},
        "equal": 0.1, "prompts": PROMPTS, "temperature": 1.0, "max_new_tokens": 24,
    }))  # fmt: skip
    sets = {"general": ("text", "log_likelihood_per_token", -3.0), "boolq": ("choice", "accuracy", 0.6)}
    (folder / "scores.json").write_text(json.dumps({
        "sets": {key: {"task": task, "metric": metric, "rows": 20, **interval(value - 0.15)}
                 for key, (task, metric, value) in sets.items()},
        "F": {"general": interval(0.15, 0.02), "boolq": interval(0.15, 0.3)},
    }))  # fmt: skip
    pq.write_table(pa.table({"set": ["general"], "row_id": ["a"], "score": [-3.1], "weight": [5.0]}),
                   folder / "rows.parquet")


def lock(root: Path) -> None:
    """dvc.lock of the run."""
    stages = assistants.STAGES | STAGES
    params = {name: {} for name in stages} | {
        "instruct": {"instruct": {"method": "lora", "r": 4, "lr": 1e-3}},
        "reward": {"reward": {"r": 4, "lr": 2e-4}},
        "ppo": {"ppo": {"r": 4, "lr": 3e-4, "beta": 0.05}},
        "merge_instruct": {"merge.instruct": {"dtype": "float32"}},
    }
    projects.lock(root, params, stages)
