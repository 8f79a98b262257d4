"""Keys of the stages that learn from labels, answers and comparisons: features, classify, instruct, reward, gold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ajuste.core.params import Compute
from tasks.classify.frozen import FrozenConfig, frozen
from tasks.classify.full import FullConfig, full
from tasks.classify.lora import LoraConfig, lora
from tasks.dpo import DpoConfig, Folders, dpo
from tasks.features.reviews import ReviewsConfig, features
from tasks.gold import GoldConfig, gold
from tasks.instruct import InstructConfig, instruct
from tasks.reference import ReferenceConfig, reference
from tasks.reward import RewardConfig, train_reward_model
from tests.keys.cases import Compared, To, cases, first_rows, small_decoder
from tests.made import tiny_classifiers, tiny_rows, tuned
from tests.made.tiny_rlhf import prompts, whole
from tests.tasks import test_dpo, test_gold, test_reward

COMPUTE = {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0}
LOOP = {"warmup": 0.2, "epochs": 1, "batch_rows": 16, "accumulation": 1, "weight_decay": 0.1, "max_grad_norm": 1.0,
        "evaluations": 1, "patience": 5}  # fmt: skip
LORA = {"r": 4, "alpha": 8, "lora_dropout": 0.0, "targets": ["all-linear"]}
SHARED = {"class_weights": "none"}
SECTIONS = {
    "compute": COMPUTE,
    "features.reviews": {"pooling": "mean", "batch_rows": 32},
    "classify.frozen": {**SHARED, "l2": 0.1, "steps": 20, "patience": 20},
    "classify.full": {**SHARED, **LOOP, "pooling": "cls", "lr": 1e-3, "dropout": 0.0},
    "classify.lora": {**SHARED, **LOOP, **LORA, "pooling": "cls", "lr": 1e-2, "dropout": 0.0},
    "instruct": {**tuned.CONFIG.model_dump(), **LOOP},
    "reward": {**test_reward.CONFIG.model_dump(), **LOOP},
    "reference": {"dtype": "float32"},
    "dpo": {**test_dpo.CONFIG.model_dump(), **LOOP},
    "gold": test_gold.CONFIG.model_dump(),
}
OFTEN = {"epochs": 4, "lr": 0.3}  # so many passes at such a rate that validation gets worse on the way
CHANGED_LOOP = {
    "warmup": 0.7, "epochs": 2, "batch_rows": 8, "weight_decay": 0.9, "max_grad_norm": 0.01, "evaluations": 2,
}  # fmt: skip
CHANGED_LORA = {"r": 2, "alpha": 16, "lora_dropout": 0.5}
CASES = {
    "compute": {"dtype": "bfloat16", "seed": 1},
    "features.reviews": {"pooling": "cls"},
    "classify": {"class_weights": "balanced"},
    "classify.frozen": {"l2": 10.0, "steps": 2, "patience": To(1, under={"l2": 0.0})},
    "classify.full": {
        **CHANGED_LOOP, "pooling": "mean", "lr": 1e-4, "dropout": 0.5, "patience": To(1, under=OFTEN),
    },
    "classify.lora": {
        **CHANGED_LOOP, **CHANGED_LORA, "targets": ["query"], "pooling": "mean", "lr": 1e-4, "dropout": 0.5,
        "patience": To(1, under=OFTEN),
    },
    "instruct": {
        **CHANGED_LOOP, **CHANGED_LORA, "targets": ["q_proj"], "lr": 1e-4, "method": "rslora", "dtype": "bfloat16",
        "virtual_tokens": To(2, under={"method": "prompt"}),
        "bottleneck_width": To(4, under={"method": "bottleneck"}),
        "l2_to_w0": To(10.0, under={"method": "full", "epochs": 2}), "patience": To(1, under={**OFTEN, "lr": 1.0}),
    },
    "reward": {
        **CHANGED_LOOP, **CHANGED_LORA, "targets": ["q_proj"], "lr": 1e-4, "dtype": "bfloat16", "margin": 1.0,
        "soft_labels": True, "samples": 4, "new_tokens": 2, "temperature": 0.2, "patience": To(1, under=OFTEN),
    },
    "reference": {"dtype": "bfloat16"},
    "dpo": {
        **CHANGED_LOOP, **CHANGED_LORA, "targets": ["q_proj"], "lr": 1e-4, "loss": "hinge", "beta": 1.0,
        "label_smoothing": To(0.4, under={"loss": "cdpo", "label_smoothing": 0.1}),
        "gamma": To(1.0, under={"loss": "simpo"}), "alarm_displacement": To(1e-6, under=OFTEN),
        "samples": 3, "new_tokens": 2, "temperature": 0.2, "patience": To(1, under=OFTEN),
    },
    "gold": {
        "source": "rotten_tomatoes", "rows": 40, "validation_rows": 8, "test_rows": 3, "ratings_rows": 5,
        "sentences": 1, "max_tokens": 8, "l2": 10.0, "steps": 2, "patience": 1, "ngram": 12,
        "near_duplicate_jaccard": To(0.3, under={"ngram": 12}),
    },
}  # fmt: skip
SILENT = {
    "compute.device": "where it is computed; this machine has one kind",
    "compute.threads": "how many cores compute; the sums of so small matrices are not split",
    "compute.portable": "which kernels a process computes with; tests/core/test_arithmetic.py starts one and compares",
    **{f"launch.{key}": "where a stage runs; tests/core/launch/ sends stages to a cluster and compares"
       for key in ("by", "processes", "address")},
    "features.reviews.batch_rows": "rows at once; the sums may differ in a last digit",
    **{f"{name}.accumulation": "pieces of a step, to save memory"
       for name in ("classify.full", "classify.lora", "instruct", "reward", "dpo")},
}  # fmt: skip


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    root = tmp_path_factory.mktemp("supervised")
    compute = Compute(**COMPUTE)
    encoder = tiny_classifiers.tiny_base(root / "encoder")
    texts = tiny_rows.sentence_set(root / "texts", tiny_classifiers.tiny_tokenizer(), train=49)
    features(ReviewsConfig(pooling="mean", batch_rows=32), compute, texts, encoder, root / "features")
    base = small_decoder(root / "decoder")
    answers = first_rows(tuned.judged_set(base, root / "answers"), 32)
    sft = whole(base, root / "sft", 3)
    pairs = first_rows(test_reward.comparisons(sft, root / "pairs"), 32)
    validated = test_gold.write_sets(root / "validated")
    prompts(sft, root / "pairs", ("validation",))
    word = Folders(pairs, sft, root / "reference", tiny_classifiers.tiny_full(encoder, root / "gold"))
    reference(ReferenceConfig(**SECTIONS["reference"]), compute, pairs, sft, word.reference)

    def trained(config: type, train: Callable, *inputs: Path) -> Callable:
        def run(section: dict, out: Path, compute: Compute = compute) -> None:
            checkpoints = root / "checkpoints"
            shutil.rmtree(checkpoints, ignore_errors=True)
            checkpoints.mkdir()
            train(config(**section), compute, *inputs, out, checkpoints)

        return run

    run_full = trained(FullConfig, full, texts, encoder)
    functions = {
        "compute": lambda section, out: run_full(SECTIONS["classify.full"], out, Compute(**section)),
        "features.reviews": lambda section, out: features(ReviewsConfig(**section), compute, texts, encoder, out),
        "classify.frozen": trained(FrozenConfig, frozen, texts, encoder, root / "features"),
        "classify.full": run_full,
        "classify.lora": trained(LoraConfig, lora, texts, encoder),
        "instruct": trained(InstructConfig, instruct, answers, base),
        "reward": trained(RewardConfig, train_reward_model, pairs, sft),
        "reference": lambda section, out: reference(ReferenceConfig(**section), compute, pairs, sft, out),
        "dpo": trained(DpoConfig, dpo, word),
        "gold": lambda section, out: gold(GoldConfig(**section), compute, *validated, encoder, out),
    }
    made = {name: Compared(functions[name], SECTIONS[name]) for name in functions}
    return made | {"classify": made["classify.full"]}


@pytest.mark.parametrize(("section", "key", "to"), cases(CASES))
def test_a_key_says_something(stages: dict[str, Compared], section: str, key: str, to: object) -> None:
    stages[section].differs(key, to)
