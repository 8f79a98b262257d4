"""Stage `ppo`: the assistant learns from the reward model (the third step of RLHF), kept near where it was.

    maximise  E[ r(x, y) ] - beta KL(pi || pi_ref)        over prompts x, y drawn from the policy pi, by PPO

One frozen base in memory: artifacts/merged/instruct. The policy is a LoRA adapter on it, the reference the same base
with adapters off, the reward model its own adapter and head, the value function a head on the policy's trunk or on an
adapter of its own (ajuste/models/one_base.py). The loop is tasks/rl/loop.py, what makes
it PPO tasks/rl/ppo.py, and what stands around both, prompts and judges, tasks/rl/policy.py.

Reads   artifacts/merged/{instruct, gold}, artifacts/adapters/reward, artifacts/encoded/preferences; with `ptx` above
        0 also artifacts/encoded/instructions; of `score` see tasks/rl/scores/kinds.py
Writes  artifacts/adapters/ppo: the policy's adapter (PEFT's layout), tokenizer, ajuste.json (the card),
        value.safetensors (the value function's weights), history.jsonl, radar.json, samples.jsonl, alarms.json, flight/
Run it: `dvc repro ppo`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the papers: LoRA in place of all weights; the value function is a head on the policy's trunk by default.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ajuste.core import allocator
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.learning.rl.advantages import Options
from ajuste.models.one_base import Settings
from tasks.rl.config import SamplesConfig
from tasks.rl.policy import Made, said, train_policy
from tasks.rl.ppo import Ppo
from tasks.rl.scores import kinds as scores


class PpoConfig(SamplesConfig):
    """Section `ppo`: models, rewards, advantages and losses; the loop's own keys stand in tasks/rl/config.py.

    Formulas: ajuste/learning/rl/advantages.py, ajuste/learning/rl/kl.py, ajuste/learning/rl/ppo.py.
    """

    score: str = Field(pattern=scores.PATTERN, description="What is paid for: tasks/rl/scores/kinds.py.")
    dtype: Literal["float32", "bfloat16"] = Field(description="Of the frozen base and the products.")
    r: int = Field(ge=1, description="Rank of B A, of the policy's adapter and the value's.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    float32_head: bool = Field(description="Logits in float32, of sampler and trainer, above a bfloat16 base.")
    value: Literal["trunk", "adapter"] = Field(description="Where the value head reads: policy or own adapter.")
    value_start: Literal["zero", "reward"] = Field(description="What head and adapter of the value start as.")
    gamma: float = Field(gt=0, le=1, description="Discount of a token.")
    lam: float = Field(ge=0, le=1, description="lambda of GAE.")
    terminal: Literal["at_end", "after_end"] = Field(description="Where the score is paid: learning/rl/advantages.py.")
    missing_end: Literal["none", "subtract", "replace", "bootstrap"] = Field(
        description="What a response without its end is paid: learning/rl/advantages.py."
    )
    missing_end_penalty: float = Field(description="What `subtract` takes off and `replace` pays, negated.")
    whiten_rewards: bool = Field(description="Divide rewards by their standard deviation.")
    whiten_advantages: bool = Field(description="Mean 0 and variance 1 over the batch.")
    unbiased: bool = Field(description="The variance of the whitening: divided by n - 1, or by n.")
    clip: float = Field(gt=0, lt=1, description="The ratio counts within 1 - clip and 1 + clip.")
    dual_clip: float | None = Field(gt=1, description="A token with A < 0 costs at most -d A; null: off.")
    importance_cap: float | None = Field(
        ge=1, description="A token's loss times pi_trainer / pi_sampler, at most this; null: off."
    )
    value_clip: float | None = Field(gt=0, description="How far the value may leave the old one; null: off.")
    vf_coef: float = Field(ge=0, description="Weight of the value loss.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(description="Of the KL that rewards pay.")
    alarm_value_loss: float | None = Field(gt=0, description="A value loss above this is an alarm; null: none.")
    radar_prompts: int = Field(ge=1, description="Validation prompts that choose an update; as many others judge it.")

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        if self.value_start == "reward" and self.value == "trunk":
            raise ValueError("value_start `reward` copies the reward model's adapter: it needs value `adapter`")
        return self

    def check(self) -> None:
        """Raises UsageError for a score that is not there."""
        scores.checked(self.score)

    def settings(self) -> Settings:
        """What ajuste/models/one_base.py needs of this section."""
        targets = tuple(self.targets)
        return Settings(self.r, self.alpha, targets, self.value, self.value_start, self.float32_head)

    def algorithm(self) -> Ppo:
        """PPO as the loop takes it."""
        options = Options(
            self.gamma, self.lam, self.terminal, self.missing_end, self.missing_end_penalty, self.whiten_rewards,
            self.whiten_advantages, self.unbiased,
        )  # fmt: skip
        return Ppo(
            options, self.kl_estimator, self.clip, self.dual_clip, self.value_clip, self.vf_coef, self.importance_cap
        )


def ppo(config: PpoConfig, compute: Compute, artifacts: Path, out: Path, checkpoints: Path) -> dict:
    """Train the policy from the folders below `artifacts` and write `out`; all else as tasks/rl/policy.py says."""
    made = Made(config, config.algorithm(), config.settings(), config.score, config.dtype, config.radar_prompts)
    return train_policy(made, compute, artifacts, out, checkpoints)


def main() -> None:
    with start("ppo", PpoConfig, together=True) as stage:
        allocator.keep_memory()
        artifacts = Path("artifacts")
        done = ppo(stage.config, stage.compute, artifacts, artifacts / "adapters/ppo", stage.checkpoints)
        stage.count(tokens=done["tokens"])
        stage.phases.update(done["seconds"])
        print(said(done))


if __name__ == "__main__":
    main()
