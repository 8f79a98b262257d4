"""Stage `ppo` as a process of its own, to be killed: python -m tests.tasks.ppo_run ARTIFACTS OUT CHECKPOINTS

Says "training" before the first update, and removes OUT before it starts, as DVC does.
"""

import shutil
import sys
from pathlib import Path

import torch

from ajuste.core.params import Compute
from tasks import ppo as stage
from tests.made.tiny_ppo import config

CONFIG = config(updates=30, micro_rows=4, radar_prompts=3, radar_every=5, keep="gold", record=[1, 10, 20, 30])


def main() -> None:
    artifacts, out, checkpoints = map(Path, sys.argv[1:])
    shutil.rmtree(out, ignore_errors=True)
    checkpoints.mkdir(exist_ok=True)
    train = stage.loop.train

    def said(*args):
        print("training", flush=True)
        return train(*args)

    stage.loop.train = said
    torch.set_num_threads(1)
    stage.ppo(CONFIG, Compute(dtype="float32", device="cpu", threads=1, seed=0), artifacts, out, checkpoints)


if __name__ == "__main__":
    main()
