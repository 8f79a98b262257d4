"""A run of GRPO and one of RLOO, alone or as one of several processes over gloo.

    python -m tests.invariants.group_processes OUT

Each process writes OUT/rank<r>.pt: the history and the weights, by method. The responses are a function of the prompt
and of the place in its group, so that one process and several see the same episodes.
"""

import sys
from pathlib import Path

import torch

from ajuste.learning.rl import rollout
from tests.made.tiny_group import run as train

GROUP, METHODS = 4, ("grpo", "rloo")


def answer(one, prompts, max_new_tokens, *rest) -> rollout.Rollout:
    """Responses of unequal length that prompt and place decide; their log-probs are not asked for."""
    keys = [sum(prompt) + 7 * (i % GROUP) for i, prompt in enumerate(prompts)]
    responses = torch.tensor([[(key * (t + 3) + 5 * t) % 60 + 3 for t in range(max_new_tokens)] for key in keys])
    mask = torch.tensor([[t < 1 + key % max_new_tokens for t in range(max_new_tokens)] for key in keys])
    return rollout.Rollout(responses, mask, mask.sum(1) < max_new_tokens, torch.zeros(mask.shape))


def run(folder: Path, method: str) -> dict:
    """{"history", "weights"} of this process."""
    real, rollout.sample = rollout.sample, answer
    try:
        outcome, one = train(folder, method, updates=2, minibatches=1, epochs=2, micro_rows=3, lr=1e-3, group=GROUP,
                             batch_rows=16, kl_control="fixed", beta=0.1)  # fmt: skip
    finally:
        rollout.sample = real
    return {"history": outcome.history, "weights": one.trainable_state()}


def main() -> None:
    torch.set_num_threads(1)
    out, results = Path(sys.argv[1]), {}
    for method in METHODS:
        results[method] = run(out / method, method)
        torch.distributed.barrier()
    torch.save(results, out / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
