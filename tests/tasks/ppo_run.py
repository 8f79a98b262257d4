"""A stage that samples as a process of its own, to be killed.

    python -m tests.tasks.ppo_run ARTIFACTS OUT CHECKPOINTS [ppo | grpo | rloo]

Says "training" before the first update, and removes OUT before it starts, as DVC does.
"""

import shutil
import sys
from pathlib import Path

import torch

from ajuste.core.params import Compute
from tasks.grpo import grpo
from tasks.ppo import ppo
from tasks.rl import policy
from tasks.rloo import rloo
from tests.made import tiny_group
from tests.made.tiny_ppo import config

STAGES = {"ppo": ppo, "grpo": grpo, "rloo": rloo}
CHANGES = {"updates": 30, "micro_rows": 4, "radar_prompts": 3, "radar_every": 5, "keep": "gold",
           "record": [1, 10, 20, 30]}  # fmt: skip


def main() -> None:
    artifacts, out, checkpoints = map(Path, sys.argv[1:4])
    method = sys.argv[4] if len(sys.argv) > 4 else "ppo"
    section = config(**CHANGES) if method == "ppo" else tiny_group.config(method, **CHANGES)
    shutil.rmtree(out, ignore_errors=True)
    checkpoints.mkdir(exist_ok=True)
    train = policy.loop.train

    def said(*args):
        print("training", flush=True)
        return train(*args)

    policy.loop.train = said
    torch.set_num_threads(1)
    STAGES[method](section, Compute(dtype="float32", device="cpu", threads=1, seed=0), artifacts, out, checkpoints)


if __name__ == "__main__":
    main()
