"""What a method of the study may spend, so that all spend alike: plain arithmetic.

    B                        answers that a method samples for its training: `samples`
    updates = B / batch_rows PPO, GRPO, RLOO: an update samples `batch_rows` answers, in groups or not
    passes  = B epochs       responses that go through the policy forward and backward: B samples, `epochs` times
    pairs   = passes / 2     DPO samples nothing; a pair is two responses, so it sees as many pairs
    prompts = B / n          rejection sampling: n answers a prompt, of which one is learnt; some of these prompts are
                             held back, and their best answers choose the epoch

Best-of-n trains nothing. It spends n answers on each one that it gives, for ever.
"""

from dataclasses import dataclass

from ajuste.core.errors import UsageError


@dataclass(frozen=True)
class Spent:
    """What one training took. samples: answers drawn for it; passes: responses through the policy, forward and
    backward; pairs: comparisons that these came from, 0 for samples; an_answer: answers drawn for one that is given."""

    samples: int = 0
    passes: int = 0
    pairs: int = 0
    an_answer: int = 1


def updates(samples: int, batch_rows: int) -> int:
    """Updates of the sampling loop that B answers pay for. Raises UsageError unless they are whole ones."""
    if samples < batch_rows or samples % batch_rows:
        raise UsageError(f"studies/methods/params.yaml: samples {samples} are no whole updates of ppo.batch_rows "
                         f"{batch_rows}: make it a multiple")  # fmt: skip
    return samples // batch_rows


def comparisons(samples: int, epochs: int, available: int) -> tuple[int, int]:
    """(rows, epochs) of DPO: as many pairs as the samplers' passes make, of `available` training comparisons.

    With too few comparisons they are seen again, whole epochs, rounded down. Raises UsageError for no pair.
    """
    pairs = samples * epochs // 2
    if not pairs or not available:
        raise UsageError(f"studies/methods/params.yaml: {samples} samples seen {epochs} times and {available} "
                         "comparisons make no pair for dpo: raise `samples`")  # fmt: skip
    return (pairs, 1) if pairs <= available else (available, pairs // available)


def prompts(samples: int, n: int, held_back: int) -> tuple[int, int]:
    """(prompts to learn from, prompts held back) of rejection sampling. Raises UsageError if B is no multiple of n, or
    nothing is left."""
    if samples % n or samples // n <= held_back:
        raise UsageError(f"studies/methods/params.yaml: samples {samples} at n {n} are no whole prompts above "
                         f"held_back {held_back}: raise `samples` to a multiple of n")  # fmt: skip
    return samples // n - held_back, held_back
