"""Keys of the stages that prove, measure and sum up: merge, evaluate, forgetting."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ajuste.core.params import Compute
from ajuste.judging.assistant import MeasureConfig
from ajuste.learning import lora
from tasks.assistant import kept
from tasks.evaluate.classify import ClassifyConfig, evaluate_classify
from tasks.evaluate.instruct import InstructConfig, Reviews, evaluate_instruct
from tasks.evaluate.policy import Folders, Ledger, PolicyConfig, evaluate_policy
from tasks.forgetting.scores import ForgettingConfig, forgetting
from tasks.merge import classify as merge_classify
from tasks.merge import decoder as merge_decoder
from tasks.merge import reward as merge_reward
from tests.keys.cases import Compared, To, cases, first_rows, small_decoder
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.tasks import test_evaluate_instruct, test_evaluate_ppo, test_forgetting, test_reward

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
MERGE = {"dtype": "float32", "max_logit_difference": 1e-3, "rows": 4}
MERGE_DECODER = {**MERGE, "min_equal_tokens": 1.0, "prompts": 2, "new_tokens": 6}
SECTIONS = {
    "merge.classify": {"dtype": "float32", "max_logit_difference": 1e-4, "min_equal_predictions": 1.0, "batch_rows": 8},
    "merge.instruct": MERGE_DECODER,
    "merge.ppo": MERGE_DECODER,
    "merge.reward": {**MERGE, "min_equal_predictions": 1.0},
    "evaluate.classify": {"bootstrap": 200, "batch_rows": 8},
    "evaluate.instruct": test_evaluate_instruct.CONFIG.model_dump(),
    "evaluate.ppo": test_evaluate_ppo.CONFIG.model_dump(),
    "assistant": {"rows": None, "references": None},
    "forgetting": test_forgetting.CONFIG.model_dump(),
}
ROUGH = {"dtype": "bfloat16", "max_logit_difference": 1000.0}  # see `roughly`: some answers of the merge differ
CHANGED_DECODER = {
    "dtype": To("bfloat16", under={"max_logit_difference": 1000.0, "min_equal_tokens": 0.01}),
    "max_logit_difference": 1e-12, "min_equal_tokens": To(1.0, under={**ROUGH, "min_equal_tokens": 0.01}),
    "rows": 2, "prompts": 1, "new_tokens": 3,
}  # fmt: skip
CHANGED_POLICY = {"dtype": "bfloat16", "bootstrap": 300, "prompts": 3, "max_new_tokens": 2, "temperature": 0.2}
SAME = {"merge.dpo": "merge.ppo", "evaluate.dpo": "evaluate.ppo"}  # sections of one function, in other folders
CASES = {
    "merge.classify": {
        "dtype": To("bfloat16", under={"max_logit_difference": 1000.0, "min_equal_predictions": 0.01}),
        "max_logit_difference": 1e-12, "min_equal_predictions": To(1.0, under={**ROUGH, "min_equal_predictions": 0.01}),
    },
    "merge.instruct": CHANGED_DECODER,
    "merge.ppo": CHANGED_DECODER,
    "merge.dpo": CHANGED_DECODER,
    "merge.reward": {
        "dtype": To("bfloat16", under={"max_logit_difference": 1000.0, "min_equal_predictions": 0.01}),
        "max_logit_difference": 1e-12, "min_equal_predictions": To(1.0, under={**ROUGH, "min_equal_predictions": 0.01}),
        "rows": 2,
    },
    "evaluate.classify": {"bootstrap": 300},
    "evaluate.instruct": {
        "dtype": "bfloat16", "bootstrap": 300, "rows": 3, "max_new_tokens": 2, "references": 2, "reviews": 1,
    },
    "evaluate.ppo": CHANGED_POLICY,
    "evaluate.dpo": CHANGED_POLICY,
    "assistant": {"rows": 3, "references": 2},
    "forgetting": {"dtype": "bfloat16", "bootstrap": 300, "text_rows": 1, "choice_rows": 1, "max_tokens": 16},
}  # fmt: skip
SILENT = {
    f"{name}": "how much passes through a model at once, to save memory"
    for name in ("merge.classify.batch_rows", "evaluate.classify.batch_rows", "evaluate.instruct.batch_rows",
                 "evaluate.instruct.batch_tokens", "evaluate.ppo.batch_rows", "evaluate.dpo.batch_rows",
                 "forgetting.batch_tokens")
}  # fmt: skip


def roughly(merge: Callable, section: dict, out: Path) -> None:
    """A merge; where any logit is admitted its last matrix gets noise, so that some answers are not the adapter's."""
    real = lora.merge

    def noisy(*args: object) -> nn.Module:
        model = real(*args)
        head = [parameter for parameter in model.parameters() if parameter.dim() == 2][-1]
        torch.manual_seed(0)
        with torch.no_grad():
            head.add_(torch.randn_like(head) * head.std())
        return model

    with pytest.MonkeyPatch.context() as patch:
        if section["max_logit_difference"] >= 1000:
            patch.setattr(lora, "merge", noisy)
        merge(section, out)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    root = tmp_path_factory.mktemp("judging")
    functions = classifiers(root) | assistants(root)
    for name in ("merge.classify", "merge.reward"):
        functions[name] = partial(roughly, functions[name])
    made = {name: Compared(functions[name], SECTIONS[name]) for name in functions}
    return made | {name: made[other] for name, other in SAME.items()}


def classifiers(root: Path) -> dict[str, Callable]:
    encoder = tiny_classifiers.tiny_base(root / "encoder")
    adapter = tiny_classifiers.tiny_adapter(encoder, root / "classify")
    judged = tiny_classifiers.tiny_full(encoder, root / "gold")
    card = json.loads((judged / "ajuste.json").read_text())
    accuracy = {"value": 0.75, "low": 0.7, "high": 0.8, "rows": 90}
    (judged / "ajuste.json").write_text(json.dumps(card | {"accuracy_on_ratings": accuracy}))
    texts = [f"a {word} {thing}" for word in tiny_classifiers.WORDS for thing in ("film", "plot", "actor")]
    (root / "texts").mkdir()
    ids = tiny_classifiers.tiny_tokenizer()(texts)["input_ids"]
    rows = pa.table({
        "row_id": [f"{n:016x}" for n in range(len(texts))], "input_ids": pa.array(ids, pa.list_(pa.int32())),
        "label": pa.array([n % 2 for n in range(len(texts))], pa.int32()),
    })  # fmt: skip
    pq.write_table(rows, root / "texts/test.parquet")
    (root / "texts/labels.json").write_text(json.dumps(tiny_classifiers.LABELS))
    return {
        "merge.classify": lambda section, out: merge_classify.merge(
            merge_classify.ClassifyConfig(**section), COMPUTE, adapter, encoder, root / "texts", out / "model"
        ),
        "evaluate.classify": lambda section, out: evaluate_classify(
            ClassifyConfig(**section), COMPUTE, {"full": judged}, root / "texts", out
        ),
    }


def assistants(root: Path) -> dict[str, Callable]:
    base = small_decoder(root / "base")
    sft = tiny_rlhf.whole(base, root / "full", seed=3)
    adapter = tiny_decoders.tiny_adapter(base, root / "adapter")
    policy = tiny_rlhf.policy(sft, root / "policy")
    ppo = tiny_rlhf.policy_merged(sft, policy, root / "ppo")
    reward = tiny_rlhf.reward_adapter(sft, root / "reward_adapter")
    (reward / "evaluation.json").write_text("{}")
    merged = tiny_rlhf.reward_merged(sft, reward, root / "reward")
    pairs = first_rows(test_reward.comparisons(sft, root / "pairs"), 12)
    tiny_decoders.encoded(base, root / "encoded")
    tiny_rlhf.prompts(base, root / "prompted")
    test_evaluate_instruct.write_prompts(root)
    test_evaluate_instruct.write_reviews(root)
    texts = [{"text": text} for text in [*test_forgetting.TEXTS, *tiny_rlhf.SNIPPETS, *tiny_decoders.ASKED]]
    control = test_forgetting.write_control(
        root / "control", texts, test_forgetting.BOOLQ, test_forgetting.PIQA
    )
    scores = ForgettingConfig(**SECTIONS["forgetting"])
    forgetting(scores, COMPUTE, base, base, control, root / "before")
    folders = Folders(sft, ppo, merged, root / "gold", root / "prompted")
    ledger = Ledger(scores, base, control, root / "before")
    reviews = Reviews(root / "gold", root / "validated", root / "reviews")

    measured = InstructConfig(**SECTIONS["evaluate.instruct"])
    evaluate_instruct(
        measured, COMPUTE, sft, base, root / "encoded", root / "prompts", reviews, root / "measured"
    )
    measure = MeasureConfig(**measured.model_dump(exclude={"reviews"}))

    def merge(trained: Path, on: Path) -> Callable:
        return lambda section, out: merge_decoder.merge_decoder(
            merge_decoder.DecoderConfig(**section), COMPUTE, trained, on, root / "encoded", out / "model"
        )

    def forget(config: ForgettingConfig, out: Path) -> None:
        forgetting(config, COMPUTE, base, base, control, out / "before")
        forgetting(config, COMPUTE, sft, base, control, out / "after", out / "before")

    return {
        "merge.instruct": merge(adapter, base),
        "merge.ppo": merge(policy, sft),
        "merge.reward": lambda section, out: merge_reward.merge_reward(
            merge_reward.RewardConfig(**section), COMPUTE, reward, sft, pairs, out / "model"
        ),
        "evaluate.instruct": lambda section, out: evaluate_instruct(
            InstructConfig(**section), COMPUTE, sft, base, root / "encoded", root / "prompts", reviews, out
        ),
        "assistant": lambda section, out: kept.measure_kept(
            kept.KeptConfig(**section), measure, COMPUTE, "ppo", ppo, root / "measured", root / "encoded",
            root / "prompts", out,
        ),
        "evaluate.ppo": lambda section, out: evaluate_policy(
            PolicyConfig(**section), COMPUTE, folders, ledger, out, "ppo"
        ),
        "forgetting": lambda section, out: forget(ForgettingConfig(**section), out),
    }


@pytest.mark.parametrize(("section", "key", "to"), cases(CASES))
def test_a_key_says_something(stages: dict[str, Compared], section: str, key: str, to: object) -> None:
    stages[section].differs(key, to)
