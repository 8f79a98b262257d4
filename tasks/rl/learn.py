"""Step 4 of the loop: epochs of minibatches of micro-batches over one update's episodes.

    epoch        every episode once, in an order that (seed, update, epoch) decide
    minibatch    one optimiser step; its items, over all processes, divide each of its sums
    micro-batch  episodes that pass the model at once: gradients add up, so its size changes nothing but memory

Old log-probs, values, advantages and returns stay what they were in all epochs.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.rl.algorithm import Algorithm, Items, Now
from tasks.rl.config import SamplesConfig
from tasks.rl.episodes import Episodes
from tasks.rl.state import State
from tasks.rl.world import World

Ptx = Callable[[range], tuple[Tensor, int]]  # positions of rows -> the sum of the loss, with gradients, and its items
Row = dict[str, float]


class _Step(NamedTuple):
    """An optimiser step: its figures, and the largest |ratio - 1| of a token before it."""

    row: Row
    largest: Row
    ratio_error: float


def learn(
    state: State, algorithm: Algorithm, episodes: Episodes, config: SamplesConfig, world: World,
    order: Callable[[int], list[Tensor]], lr: float, ptx: Ptx | None,
) -> tuple[Row, Tensor]:  # fmt: skip
    """All optimiser steps of an update at learning rate `lr`: (figures, the last epoch's log-probs [B, R]).

    order(epoch) -> the row numbers of each minibatch. Figures are the mean of the steps, or the largest where the
    algorithm says so; first_* are the first step's, where the policy is still the one that sampled.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    new = torch.zeros_like(episodes.log_probs)
    steps = [
        _step(state, algorithm, episodes, rows, config, world, ptx, new)
        for epoch in range(config.epochs)
        for rows in order(epoch)
    ]
    first = steps[0]
    means = {name: float(np.mean([step.row[name] for step in steps])) for name in first.row}
    largest = {name: max(step.largest[name] for step in steps) for name in first.largest}
    firsts = {"first_ratio_error": first.ratio_error, **{f"first_{name}": first.row[name] for name in algorithm.first}}
    return {**means, **largest, **firsts, "lr": lr}, new


def _step(
    state: State, algorithm: Algorithm, episodes: Episodes, rows: Tensor, config: SamplesConfig, world: World,
    ptx: Ptx | None, new: Tensor,
) -> _Step:  # fmt: skip
    """One optimiser step on the minibatch `rows`; its figures are those of all processes. Fills `new`."""
    items = _items(episodes.rows(rows), world)
    state.optimiser.zero_grad(set_to_none=True)
    sums: Counter[str] = Counter()
    weights: dict[str, float] = {}
    largest: Row = {"ratio_error": 0.0}
    for part in rows.split(config.micro_rows):
        some = episodes.rows(part)
        found = state.one.policy_and_values(*some.batch(), config.temperature)
        now = Now(*(None if tensor is None else tensor.cpu() for tensor in found))
        losses = algorithm.losses(now, some, items)
        weights = {name: weight for name, (weight, _) in losses.terms.items()}
        total(losses.terms).backward()
        new[part] = now.log_probs.detach()
        sums.update({name: term.item() for name, (_, term) in losses.terms.items()} | losses.sums)
        error = torch.expm1((new[part] - some.log_probs) * some.mask).abs().max()
        for name, value in {**losses.largest, "ratio_error": float(error)}.items():
            largest[name] = max(largest.get(name, 0.0), value)
    if ptx is not None:
        weights["ptx_loss"], sums["ptx_loss"] = config.ptx, _ptx(state, config, world, ptx)
    world.add_gradients(state.parameters())
    norm = torch.nn.utils.clip_grad_norm_(state.parameters(), config.max_grad_norm or float("inf"))
    if torch.isfinite(norm):  # else the weights stay as they are, and an alarm reads the norm
        state.optimiser.step()
    totals = world.totals(dict(sorted(sums.items())))
    loss = sum(weight * totals[name] for name, weight in weights.items())
    largest = {name: world.largest(value) for name, value in largest.items()}
    error = largest.pop("ratio_error")
    return _Step({"loss": loss, **totals, **largest, "grad_norm": float(norm)}, largest, error)


def total(terms: dict[str, tuple[float, Tensor]]) -> Tensor:
    """The weighted sum, which is minimised. A weight of 0 leaves a term out, also one that is not finite."""
    return sum(weight * term for weight, term in terms.values() if weight)


def _items(minibatch: Episodes, world: World) -> Items:
    mask, states = minibatch.mask, minibatch.value_mask
    counts = {"rows": len(mask), "tokens": int(mask.sum()), "states": 0 if states is None else int(states.sum())}
    return Items(**world.totals(counts))


def _ptx(state: State, config: SamplesConfig, world: World, ptx: Ptx) -> float:
    """The supervised loss of the step's instruction rows, a mean over the items of all processes; its share here."""
    end = state.ptx_cursor + config.ptx_rows
    total, items = ptx(range(state.ptx_cursor + world.rank, end, world.processes))
    state.ptx_cursor = end
    loss = total / world.totals({"items": items})["items"]
    (config.ptx * loss).backward()
    return loss.item()
