"""One optimiser step of stage `reward`, alone or as one of two processes over gloo.

    python -m tests.invariants.reward_processes FOLDER

FOLDER/instruct and FOLDER/encoded are the base and its rankings. Writes FOLDER/<processes>.pt: the loss, and the
gradients as the optimiser of the first process sees them.
"""

import sys
from pathlib import Path

import torch

from ajuste.learning.layers import fused
from ajuste.models import reward
from ajuste.rows.encoded.comparisons import Comparisons, read_comparisons
from tasks import reward as stage
from tests.invariants.two_processes import first_step
from tests.tasks.test_reward import of

ROWS = 8


def one_step(folder: Path, processes: int) -> dict:
    """{"loss", "gradients"} of the first step on ROWS comparisons, split over the processes."""
    torch.manual_seed(0)
    model = reward.build(folder / "instruct", reward.Settings(r=4, alpha=8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    fused.fuse(model)
    rows = Comparisons(read_comparisons(folder / "encoded", "train", model.config).found[:ROWS])
    return first_step(
        model, rows, rows.tokens(), ROWS // processes, 1,
        lambda chosen: stage._collate(model, chosen, of()), stage._loss,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = one_step(folder, 2)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "2.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
