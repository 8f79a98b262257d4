"""A PPO run, alone or as one of several processes over gloo.

    python -m tests.invariants.ppo_processes OUT

Each process writes OUT/rank<r>.pt: what it sampled, the history and the weights, in two modes. In `fixed` the responses
are a function of the prompts, so that one process and several see the same episodes; in `free` they are sampled.
Processes are told by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun and accelerate tell them.
"""

import shutil
import sys
from pathlib import Path

import torch

from ajuste.learning.rl import rollout
from tasks.rl import loop
from tests.made.tiny_ppo import STOP, config, count, tiny_one, tiny_prompts

MODES = ("fixed", "free")


def answer(one, prompts, max_new_tokens, *rest) -> rollout.Rollout:
    """Responses of unequal length that the prompts decide; their log-probs are not asked for."""
    responses = torch.tensor([[(sum(p) * (t + 3) + 5 * t) % 60 + 3 for t in range(max_new_tokens)] for p in prompts])
    mask = torch.tensor([[t < 1 + sum(p) % max_new_tokens for t in range(max_new_tokens)] for p in prompts])
    return rollout.Rollout(responses, mask, mask.sum(1) < max_new_tokens, torch.zeros(mask.shape))


def run(folder: Path, fixed: bool, updates: int = 2) -> dict:
    """{"responses", "history", "weights"} of this process."""
    sampled = []
    real = rollout.sample

    def watched(*args):
        found = answer(*args) if fixed else real(*args)
        sampled.append(found.responses.clone())
        return found

    rollout.sample = watched
    one = tiny_one()
    try:
        settings = config(updates=updates, minibatches=1, epochs=2, micro_rows=3, lr=1e-3)
        outcome = loop.train(one, settings.algorithm(), tiny_prompts(), count, settings, 0, folder, STOP)
    finally:
        rollout.sample = real
    responses = torch.cat([torch.empty(0), *sampled])
    return {"responses": responses, "history": outcome.history, "weights": one.trainable_state()}


def main() -> None:
    torch.set_num_threads(1)
    out, results = Path(sys.argv[1]), {}
    for mode in MODES:
        results[mode] = run(out / mode, mode == "fixed")
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(out / mode / "checkpoint-2")
        torch.distributed.barrier()
        again = run(out / mode, mode == "fixed")  # from checkpoint 1 on
        assert all(torch.equal(again["weights"][name], x) for name, x in results[mode]["weights"].items())
    torch.save(results, out / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
