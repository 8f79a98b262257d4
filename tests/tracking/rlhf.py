"""A finished RLHF in miniature on top of a finished instruction fine-tuning: reward model, PPO, their evaluation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajuste.core.imports import ROOT
from tests.made import ledgers, tiny_rlhf
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
    "assistant_ppo": (["artifacts/encoded/instructions", "artifacts/evaluated/instruct", f"{MERGED}/ppo"],
                      "artifacts/evaluated/assistant_ppo"),
    "alignment_ppo": ([f"{MERGED}/ppo"], "artifacts/alignment/ppo"),
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
    evaluate_policy(root / "artifacts/evaluated/ppo", seed)
    still_assistant(root / "artifacts/evaluated")
    ledgers.write_made(root / "artifacts/alignment/ppo/alignment.json", "ppo", attacks=22)
    shutil.copyfile(ROOT / "policy.yaml", root / "policy.yaml")
    lock(root)
    return root


DPO = {
    "reference": (["artifacts/encoded/preferences", f"{MERGED}/instruct"], "artifacts/reference"),
    "dpo": (["artifacts/encoded/preferences", f"{MERGED}/gold", f"{MERGED}/instruct", "artifacts/reference"],
            f"{ADAPTERS}/dpo"),
    "merge_dpo": ([f"{ADAPTERS}/dpo", f"{MERGED}/instruct"], f"{MERGED}/dpo"),
    "evaluate_dpo": (["artifacts/evaluated/forgetting_base", f"{MERGED}/dpo", f"{MERGED}/gold", f"{MERGED}/instruct",
                      f"{MERGED}/reward"], "artifacts/evaluated/dpo"),
    "assistant_dpo": (["artifacts/encoded/instructions", "artifacts/evaluated/instruct", f"{MERGED}/dpo"],
                      "artifacts/evaluated/assistant_dpo"),
    "alignment_dpo": ([f"{MERGED}/dpo"], "artifacts/alignment/dpo"),
}


def add_dpo(root: Path, seed: int = 50, lost: float = 0.03, **validation: float) -> Path:
    """A DPO beside the PPO of a run that is made."""
    base, adapter = root / MERGED / "instruct", root / ADAPTERS / "dpo"
    tiny_rlhf.direct(base, adapter, seed, **validation)
    tiny_rlhf.policy_merged(base, adapter, root / MERGED / "dpo")
    (root / "artifacts/reference").mkdir()
    (root / "artifacts/reference/reference.json").write_text("{}")
    evaluate_reward(adapter)
    evaluate_policy(root / "artifacts/evaluated/dpo", seed, method="dpo")
    still_assistant(root / "artifacts/evaluated", lost, "dpo")
    ledgers.write_made(root / "artifacts/alignment/dpo/alignment.json", "dpo", attacks=20)
    lock(root, DPO)
    return root


REJECTION = {
    "rejection": (["artifacts/encoded/preferences", f"{MERGED}/gold", f"{MERGED}/instruct"], f"{ADAPTERS}/rejection"),
    "merge_rejection": ([f"{ADAPTERS}/rejection", f"{MERGED}/instruct"], f"{MERGED}/rejection"),
    "evaluate_rejection": (["artifacts/evaluated/forgetting_base", f"{MERGED}/gold", f"{MERGED}/instruct",
                            f"{MERGED}/rejection", f"{MERGED}/reward"], "artifacts/evaluated/rejection"),
    "assistant_rejection": (["artifacts/encoded/instructions", "artifacts/evaluated/instruct", f"{MERGED}/rejection"],
                            "artifacts/evaluated/assistant_rejection"),
}


def add_rejection(root: Path, seed: int = 70, lost: float = 0.03, **validation: float) -> Path:
    """Study best-of-n after a run that is made: its models and evaluations, and a dvc.lock of its own."""
    base, adapter = root / MERGED / "instruct", root / ADAPTERS / "rejection"
    tiny_rlhf.policy(base, adapter, seed)
    for name in ("radar.json", "samples.jsonl"):
        (adapter / name).unlink()
    found = {"gold": 0.7, "gold_gain": 0.05, "gold_gain_low": 0.01, "gold_gain_high": 0.09, "kl": 1.5, "loss": 1.9}
    card = json.loads((adapter / "ajuste.json").read_text())
    card |= {"method": "rejection", "strategy": "rejection", "n": 16, "samples": 4096, "validation": found | validation}
    (adapter / "ajuste.json").write_text(json.dumps(card))
    tiny_rlhf.policy_merged(base, adapter, root / MERGED / "rejection")
    evaluate_policy(root / "artifacts/evaluated/rejection", seed, method="rejection")
    still_assistant(root / "artifacts/evaluated", lost, "rejection")
    study = root / "studies/best-of-n"
    study.mkdir(parents=True)
    (study / "dvc.yaml").write_text("stages: {}")
    projects.lock(root, {name: {} for name in REJECTION}, REJECTION, "studies/best-of-n/dvc.lock")
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
        "calibration": {"error": interval(0.04, 0.02), "brier": interval(0.12, 0.01), "nll": interval(0.35, 0.02),
                        "ece": 0.05, "bins": bins}, "length_correlation": 0.12, "length_correlation_of_ratings": 0.05,
    }}))  # fmt: skip
    pq.write_table(pa.table({"row_id": [f"test{i}" for i in range(60)], "right": [float(i % 4 > 0) for i in range(60)],
                             "margin": [i / 20 for i in range(60)]}), folder / "pairs.parquet")


def evaluate_policy(folder: Path, seed: int = 0, hostile: str = "", method: str = "ppo") -> None:
    """<method>.json, answers.jsonl, scores.json and rows.parquet; the scores of the prompts are drawn by `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(PROMPTS):
        line = {"id": f"te{i}", "prefill": f"the film {i}{hostile}", "kl": 3.0}
        for model, proxy in (("sft", 0.0), (method, 0.8)):
            noise = float(rng.normal(0, 0.1)) if model == method else i / 10
            line |= {model: f"{model} says {i}{hostile}", f"proxy_{model}": proxy + noise,
                     f"gold_{model}": 0.5 + noise / 10, f"tokens_{model}": 20}
        lines.append(line)
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{method}.json").write_text(json.dumps({
        "proxy": {"sft": interval(0.05), method: interval(0.8), "difference": interval(0.75)},
        "gold": {"sft": interval(0.6), method: interval(0.68), "difference": interval(0.08, 0.03),
                 "accuracy_on_ratings": {**interval(0.75, 0.05), "rows": 90}},
        "kl": interval(3.5, 0.4),
        "length": {"sft": interval(20.0), method: interval(21.0), "difference": interval(1.0)},
        "ended": {"sft": interval(0.8), method: interval(0.9)}, "distinct2": {"sft": 0.9, method: 0.81, "ratio": 0.9},
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


def still_assistant(evaluated: Path, lost: float = 0.03, method: str = "ppo") -> None:
    """What stage `assistant_<method>` writes: `lost` nats a token more than the version before; all else as it was."""
    folder = evaluated / f"assistant_{method}"
    folder.mkdir(parents=True, exist_ok=True)
    before = pq.read_table(evaluated / "instruct/rows.parquet")
    tokens, sums = before["tokens"].to_numpy(), before["instruct"].to_numpy()
    pq.write_table(pa.table({"row_id": before["row_id"], "tokens": tokens, "sft": sums, method: sums + lost * tokens}),
                   folder / "rows.parquet")
    models = {"sft": 2.0, method: 2.0 + lost}
    (folder / "assistant.json").write_text(json.dumps({
        "held_out": {model: {"loss": interval(loss), "perplexity": float(np.exp(loss)), "rows": assistants.TEST_ROWS,
                             "tokens": 500} for model, loss in models.items()} | {"difference": interval(lost, 0.005)},
        "references": {model: {"exact_match": interval(0.1), "rouge1": interval(0.3), "rougeL": interval(0.2)}
                       for model in (*models, "difference")},
        "rules": {model: {"passed": interval(0.4), "prompts": 10, "kinds": {}} for model in models},
    }))  # fmt: skip
    answers = [{"id": f"p{i}", "prompt": prompt, "sft": f"sft answers {i}", method: f"{method} answers {i}",
                "kept_sft": i == 0, f"kept_{method}": i == 0} for i, prompt in enumerate(assistants.PROMPTS)]
    references = [{"row_id": f"te{i:014x}", "reference": "so", "sft": "so", method: "so", "rougeL_sft": 0.2,
                   f"rougeL_{method}": 0.2} for i in range(6)]
    for name, rows in (("answers.jsonl", answers), ("references.jsonl", references)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def figures(root: Path, hostile: str = "") -> Path:
    """What the report reads of the run, without its models; `hostile` stands in every text that a user can choose."""
    artifacts = root / "artifacts"
    cards = {"reward": {"kind": "reward", "set": "ratings"}, "ppo": {"kind": "decoder", "method": "ppo"}}
    for name, card in cards.items():
        folder = artifacts / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ajuste.json").write_text(json.dumps({**card, "parameters": {"trainable": 1234, "total": 10_000,
                                                                               "share": 0.1234}}))
        proof = artifacts / "merged" / name / "proof.json"
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.write_text(json.dumps({"merged": True, "max_logit_difference": 4.2e-6, "tolerance": 1e-3}))
    projects.write_history(artifacts / "adapters/reward/history.jsonl", 6)
    evaluate_reward(artifacts / "adapters/reward")
    tiny_rlhf.curves(artifacts / "adapters/ppo", hostile)
    alarm = [{"update": 7, "alarm": "alarm_kl", "figure": "kl", "value": 31.0, "limit": 30.0, "rolled_back_to": 5,
              "said": f"KL 31.0 nats a response is above 30{hostile}"}]
    (artifacts / "adapters/ppo/alarms.json").write_text(json.dumps(alarm))
    evaluate_policy(artifacts / "evaluated/ppo", hostile=hostile)
    assistants.control(artifacts / "evaluated")
    validated = artifacts / "validated/preferences"
    validated.mkdir(parents=True, exist_ok=True)
    (validated / "quality.json").write_text(json.dumps(quality(hostile)))
    (validated / "validation.json").write_text(json.dumps({"set": f"mine{hostile}", "checks": [], "rows": {}}))
    pq.write_table(pa.table({"location": [f"data/mine{hostile}.jsonl:7"], "reasons": [[f"equal_texts{hostile}"]],
                             "text": ["secret"]}), validated / "quarantine.parquet")
    return root


def quality(hostile: str = "") -> dict:
    """quality.json as validation writes it."""
    humans = [{"margin": margin, "pairs": 100 - int(20 * margin), "one_against_rest": 0.8, "split_half": 0.85}
              for margin in (0.5, 1.0, 1.5, 2.5)]
    return {
        "set": f"mine{hostile}", "comparisons": {"train": 1024, "validation": 128, "test": 128},
        "responses": {"2": 1280}, "margins": {}, "agreement": {"pairs": 1280, "mean": 0.91},
        "duplicates": {"exact": 3, "contradictory": 2, "near": 5},
        "cycles": {"comparisons": 3, "prompts": 1, "first": [f"data/mine{hostile}.jsonl:12"]}, "position": None,
        "length": {"pairs": 1200, "longer_wins": 0.47, "low": 0.44, "high": 0.5, "chosen_words": 20.0,
                   "rejected_words": 21.0, "correlation_with_margin": -0.02},
        "label_noise": {"pairs": 1280, "accuracy": 0.71, "low": 0.68, "high": 0.74, "threshold": 0.7, "suspected": 9,
                        "agreement": {"suspects": 0.77, "others": 0.85}, "suspects": []},
        "prompts": {"train": {"different": 1, "comparisons": 1024}, "shared_by_train_and_test": 1},
        "shared_texts": [{"set": f"reviews{hostile}", "source": "rotten_tomatoes", "train": 40, "validation": 4,
                          "test": 5}],
        "humans": humans, "humans_all": humans,
    }  # fmt: skip


def lock(root: Path, more: dict | None = None) -> None:
    """dvc.lock of the run. more: stages beside those of STAGES."""
    stages = assistants.STAGES | STAGES | (more or {})
    params = {name: {} for name in stages} | {
        "instruct": {"instruct": {"method": "lora", "r": 4, "lr": 1e-3}},
        "reward": {"reward": {"r": 4, "lr": 2e-4}},
        "ppo": {"ppo": {"r": 4, "lr": 3e-4, "beta": 0.05}},
        "merge_instruct": {"merge.instruct": {"dtype": "float32"}},
    }
    projects.lock(root, params, stages)
