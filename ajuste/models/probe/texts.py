"""May rows of a decoder go end to end without padding, in training and where texts are scored? (ways.py)"""

import torch
from torch import Tensor, nn

from ajuste.learning.layers import ragged, two_ways
from ajuste.models.folder import quiet
from ajuste.models.probe.ways import Way, fuse, log_p, own_logits, told


def supervised(model: nn.Module, training: bool = False) -> Way:
    """Let a causal language model, in PEFT or not, take ragged batches if they are exact; else it stays as it is.

    training: gradients are compared too, and LoRA's layers are fused (ajuste/learning/layers/fused.py). Virtual tokens
    always have padded rows, which is then the exact way. Raises ValueError if padded rows are wrong too.
    """
    rows = two_ways.rows(model)

    def with_padding(small: nn.Module, ours: bool = training) -> two_ways.Seen:
        ragged.detach(small)
        fuse(small, ours)
        return _losses(small, ragged.padded([(row, row) for row in rows], pad_id=0))

    def without_padding(small: nn.Module) -> two_ways.Seen:
        fuse(small, training)
        ragged.attach(small)
        found = _losses(small, ragged.collate([(row, row) for row in rows]))
        return found | {"ordinary batches": _alone(small, rows).detach()}

    ways = {"exact": without_padding, "plain": with_padding, "plain, not fused": lambda m: with_padding(m, ours=False)}
    if ragged.puts_tokens_before(model):
        ways = {"exact": with_padding}
    with quiet():
        with torch.set_grad_enabled(training):
            chosen = two_ways.choose(model, lambda small: _truth(small, rows), ways)
        way = told(model, chosen, "rows of text", "rows of text are padded")
        fuse(model, training and chosen.name != "plain, not fused")
        (ragged.attach if way.name == "exact" and len(ways) > 1 else ragged.detach)(model)
    return way


def _alone(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """log p of all tokens that have one before them, row by row [N]."""
    return torch.cat([log_p(own_logits(model, row)[:-1], torch.tensor(row[1:])) for row in rows])


def _truth(model: nn.Module, rows: list[list[int]]) -> two_ways.Seen:
    found = _alone(model, rows)
    seen = {"log-probabilities": found.detach(), "ordinary batches": found.detach(), "loss": -found.detach().mean()}
    return seen | two_ways.gradients(-found.mean(), model)


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> two_ways.Seen:
    batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in batch.items()}
    with torch.no_grad():
        logits, targets, _ = ragged.trained(model, batch)
    loss = ragged.response_loss(model, batch)
    found = log_p(logits, targets)
    seen = {"log-probabilities": found, "ordinary batches": found, "loss": loss.detach()}
    return seen | two_ways.gradients(loss, model)
