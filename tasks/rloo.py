"""RLOO: REINFORCE, with the other responses to the same prompt as the baseline of each (Ahmadian et al. 2024).

    A_i = r_i - mean of the others;  r_i = score_i - beta KL_i;  L = -mean of A_i pi(y_i)/pi_old(y_i), clipped

A response is one action: one ratio, one term of the loss. In the first step of an update the ratio is 1 and this is
REINFORCE. Formulas: ajuste/learning/rl/group.py. The loop is tasks/rl/loop.py, what makes it RLOO tasks/rl/group.py,
and what stands around both tasks/rl/policy.py.

Reads   as tasks/grpo.py
Writes  artifacts/adapters/rloo, as tasks/grpo.py
Run it: `ajuste study grpo`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the paper: LoRA in place of all weights; several steps an update, whose ratio is clipped (as TRL).
"""

from pathlib import Path

from ajuste.core.params import Compute
from tasks.rl.group import Group, GroupConfig
from tasks.rl.policy import Made, train_policy


class RlooConfig(GroupConfig):
    """Section `rloo`; the loop's own keys stand in tasks/rl/config.py."""

    def algorithm(self) -> Group:
        """RLOO as the loop takes it."""
        return Group(
            "rloo", self.group, "others", "none", "sequence", "sequence", self.clip_low, self.clip_high, "reward",
            self.max_new_tokens,
        )  # fmt: skip


def rloo(config: RlooConfig, compute: Compute, artifacts: Path, out: Path, checkpoints: Path) -> dict:
    """Train the policy from the folders below `artifacts` and write `out`; all else as tasks/rl/policy.py says."""
    made = Made(config, config.algorithm(), config.settings(), config.score, config.dtype, config.radar_prompts)
    return train_policy(made, compute, artifacts, out, checkpoints)
