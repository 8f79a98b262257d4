"""GRPO: the assistant learns from groups of its own responses, without a value model (Shao et al. 2024).

    A_i = (r_i - mean r) / std r over the G responses to a prompt;  L = clipped surrogate + beta KL(pi || pi_ref)

With `scale: none` and `mean: constant` it is Dr. GRPO (Liu et al. 2025), with `mean: token` and clip_high above
clip_low it has two of DAPO's four changes (Yu et al. 2025). Formulas: ajuste/learning/rl/group.py. The loop is
tasks/rl/loop.py, what makes it GRPO tasks/rl/group.py, and what stands around both tasks/rl/policy.py.

Reads   artifacts/merged/instruct; by `score` artifacts/adapters/reward, artifacts/merged/gold and
        artifacts/encoded/preferences, or sources/rules (tasks/rl/scores/kinds.py); with `ptx` above 0 also
        artifacts/encoded/instructions
Writes  artifacts/adapters/grpo: the policy's adapter (PEFT's layout), tokenizer, ajuste.json (the card), history.jsonl,
        radar.json, samples.jsonl, alarms.json, flight/
Run it: `ajuste study grpo`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the papers: LoRA in place of all weights; KL may be paid in the reward; none of DAPO's dynamic sampling
and length penalty.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ajuste.core.params import Compute
from ajuste.learning.rl.group import Mean, Scale
from tasks.rl.group import Group, GroupConfig
from tasks.rl.policy import Made, train_policy


class GrpoConfig(GroupConfig):
    """Section `grpo`; the loop's own keys stand in tasks/rl/config.py."""

    scale: Scale = Field(description="What a group's advantages are divided by: std, or none (Dr. GRPO).")
    mean: Mean = Field(description="Of the loss: sequence (GRPO), token (DAPO), constant (Dr. GRPO).")
    kl_in: Literal["loss", "reward"] = Field(description="Where KL is paid: k3 a token, or k1 a response.")

    def algorithm(self) -> Group:
        """GRPO as the loop takes it."""
        return Group(
            "grpo", self.group, "mean", self.scale, "token", self.mean, self.clip_low, self.clip_high, self.kl_in,
            self.max_new_tokens,
        )  # fmt: skip


def grpo(config: GrpoConfig, compute: Compute, artifacts: Path, out: Path, checkpoints: Path) -> dict:
    """Train the policy from the folders below `artifacts` and write `out`; all else as tasks/rl/policy.py says."""
    made = Made(config, config.algorithm(), config.settings(), config.score, config.dtype, config.radar_prompts)
    return train_policy(made, compute, artifacts, out, checkpoints)
