"""May rows that begin alike go through a model behind one prefix: rewards and log pi(y | x) of responses? (ways.py)"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ajuste.learning.layers import shared_prefix, two_ways
from ajuste.models.folder import quiet
from ajuste.models.probe.ways import Way, fuse, log_p, own_logits, told


def rewards(model: nn.Module, score: Callable, alone: Callable) -> Way:
    """Let a reward model take rows behind a shared prefix if they are exact; else it stays as it is.

    score(model, rows) -> [N] as it is trained, alone(model, row) -> its reward from transformers' own forward, both
    with gradients. Raises ValueError if padded rows are wrong too.
    """
    return _behind_a_prefix(model, score, alone, "rewards")


def likelihoods(model: nn.Module, score: Callable) -> Way:
    """The same for log pi(y | x). score(model, rows) -> [N] of rows with a prompt of two_ways.SHARED tokens."""
    begin = two_ways.SHARED

    def alone(small: nn.Module, row: list[int]) -> Tensor:
        return log_p(own_logits(small, row)[begin - 1 : -1], torch.tensor(row[begin:])).sum()

    return _behind_a_prefix(model, score, alone, "log-probabilities of responses")


def _behind_a_prefix(model: nn.Module, score: Callable, alone: Callable, what: str) -> Way:
    """Let a model take rows behind a shared prefix if `score` of them says what `alone` says."""
    rows = two_ways.rows(model)

    def seen(small: nn.Module, found: Tensor) -> two_ways.Seen:
        weights = torch.arange(1, len(found) + 1, device=found.device)
        return {what: found.detach()} | two_ways.gradients((weights * found).sum(), small)

    def way(form: Callable[[nn.Module], nn.Module]) -> two_ways.Way:
        return lambda small: seen(small, score(fuse(form(small), True), rows))

    ways = {"exact": way(shared_prefix.attach), "plain": way(shared_prefix.detach)}
    with quiet():
        chosen = two_ways.choose(model, lambda m: seen(m, torch.stack([alone(m, row) for row in rows])), ways)
        way = told(model, chosen, what, "rows to score are padded")
        (shared_prefix.attach if way.name == "exact" else shared_prefix.detach)(model)
    return way
