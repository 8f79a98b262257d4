"""GRPO and RLOO small enough for a test: their configs, a policy that is a table without values, a run."""

from pathlib import Path

from torch import Tensor

from tasks.grpo import GrpoConfig
from tasks.rl import loop
from tasks.rloo import RlooConfig
from tests.made.bigram import Bigram
from tests.made.tiny_ppo import CONFIG, STOP, count, tiny_one, tiny_prompts

OWN = {"group": 4, "clip_low": 0.2, "clip_high": 0.2, "scale": "std", "mean": "sequence", "kl_in": "loss"}
CONFIGS = {"grpo": GrpoConfig, "rloo": RlooConfig}
SECTIONS = {
    method: {key: value for key, value in (CONFIG | OWN).items() if key in kind.model_fields}
    for method, kind in CONFIGS.items()
}


def config(method: str = "grpo", **changes: object) -> GrpoConfig | RlooConfig:
    """The config with some keys changed."""
    return CONFIGS[method](**{**SECTIONS[method], **changes})


class Table(Bigram):
    """Bigram, without a value function."""

    def value_parameters(self) -> list:
        return []

    def policy_and_values(self, *batch) -> tuple[Tensor, Tensor, None]:
        return *super().policy_and_values(*batch)[:2], None


def run(folder: Path, method: str = "grpo", one=None, prompts=None, score=count, look=None, seed: int = 0, **changes):
    """(what train returns, the models it trained)."""
    one = one or tiny_one(value="none")
    prompts, settings = tiny_prompts() if prompts is None else prompts, config(method, **changes)
    outcome = loop.train(one, settings.algorithm(), prompts, score, settings, seed, folder, STOP, look)
    return outcome, one
