"""Stages `reference` and `dpo` as processes of their own, to be killed.

    python -m tests.tasks.dpo_run STAGE BASE ROOT OUT

ROOT holds encoded, reference and gold; checkpoints stand beside OUT. Says "works" before the work itself, and removes
OUT before it starts, as DVC does.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tasks import dpo, reference
from tests.tasks.test_dpo import COMPUTE, CONFIG


def telling(work: Callable) -> Callable:
    """The same function, which first says that it begins."""

    def told(*args):
        print("works", flush=True)
        return work(*args)

    return told


def main() -> None:
    stage, (base, root, out) = sys.argv[1], map(Path, sys.argv[2:])
    shutil.rmtree(out, ignore_errors=True)
    checkpoints = out.parent / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    if stage == "dpo":
        dpo.train = telling(dpo.train)
        dpo.dpo(CONFIG, COMPUTE, dpo.Folders(root / "encoded", base, root / "reference", root / "gold"), out,
                checkpoints)  # fmt: skip
    else:
        reference._scored = telling(reference._scored)
        reference.reference(reference.ReferenceConfig(dtype="float32"), COMPUTE, root / "encoded", base, out)


if __name__ == "__main__":
    main()
