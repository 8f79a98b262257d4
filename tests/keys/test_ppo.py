"""Keys of PPO: each of them changes what a run of two updates learns, or what it writes about it."""

import shutil
from pathlib import Path

import pytest

from ajuste.core.params import Compute
from tasks.ppo import PpoConfig, ppo
from tests.keys.cases import Compared, To, cases, small_decoder
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.made.tiny_ppo import CONFIG

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
SECTIONS = {
    "ppo": {**CONFIG, "updates": 2, "batch_rows": 4, "minibatches": 1, "micro_rows": 2, "radar_prompts": 3,
            "radar_every": 1, "record": [1], "lr": 0.01, "max_new_tokens": 5},
}  # fmt: skip
FAR = {"lr": 0.3, "epochs": 4}  # steps so large that ratios, values and gradients leave their bounds
CASES = {
    "ppo": {
        "score": "rules",
        "dtype": "bfloat16", "float32_head": To(True, under={"dtype": "bfloat16"}),
        "importance_cap": To(1.0, under={"dtype": "bfloat16"}), "alarm_sampler_gap": 1e-12,
        "r": 2, "alpha": 16, "targets": ["q_proj"],
        "value": "adapter", "value_start": To("reward", under={"value": "adapter"}), "vf_coef": 5.0,
        "updates": 1, "batch_rows": 2, "minibatches": 2, "epochs": 1, "max_new_tokens": 3, "temperature": 0.3,
        "gamma": 0.5, "lam": 0.5, "terminal": "after_end", "missing_end": "subtract",
        "missing_end_penalty": To(9.0, under={"missing_end": "subtract"}),
        "whiten_rewards": True, "whiten_advantages": False, "unbiased": True,
        "clip": To(0.01, under=FAR), "dual_clip": To(1.1, under=FAR), "value_clip": To(0.001, under=FAR),
        "kl_estimator": "k3", "kl_control": "fixed", "beta": 5.0, "kl_target": To(0.01, under={"updates": 3}),
        "kl_horizon": To(10, under={"kl_control": "ziegler"}),
        "lr": 0.1, "lr_schedule": To("cosine", under={"updates": 3}), "max_grad_norm": 0.001,
        "adam_eps": 0.1, "adam_eps_mode": To("tf", under={"adam_eps": 0.1}),
        "ptx": 5.0, "ptx_rows": To(1, under={"ptx": 5.0}),
        "alarm_kl": 1e-6, "alarm_ratio": To(1.0001, under=FAR), "alarm_entropy": 100.0, "alarm_value_loss": 1e-9,
        "alarm_repeats": To(0.001, under={"max_new_tokens": 24, "temperature": 0.05}),
        "record": [2], "radar_every": 2, "radar_prompts": 2, "keep": To("gold", under={**FAR, "updates": 3}),
    },
}  # fmt: skip
SILENT = {
    "ppo.micro_rows": "episodes that pass the model at once, to save memory",
    "ppo.checkpoint_every": "how much of a killed run is done again; tests/tasks/test_ppo_loop.py kills one",
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    root = tmp_path_factory.mktemp("ppo")
    base = small_decoder(root / "base/decoder")
    instruct = tiny_rlhf.whole(base, root / "merged/instruct", seed=3)
    tiny_rlhf.reward_adapter(instruct, root / "adapters/reward")
    tiny_rlhf.prompts(instruct, root / "encoded/preferences", ("train", "validation"))
    tiny_decoders.encoded(instruct, root / "encoded/instructions", ("train",))
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "base/encoder"), root / "merged/gold")

    def run(section: dict, out: Path) -> None:
        checkpoints = root / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir()
        ppo(PpoConfig(**section), COMPUTE, root, out, checkpoints)

    return {"ppo": Compared(run, SECTIONS["ppo"])}


@pytest.mark.parametrize(("section", "key", "to"), cases(CASES))
def test_a_key_says_something(stages: dict[str, Compared], section: str, key: str, to: object) -> None:
    stages[section].differs(key, to)
