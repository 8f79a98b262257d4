"""Step 5 of PPO: epochs of minibatches of micro-batches over one update's episodes.

    epoch        every episode once, in an order that (seed, update, epoch) decide
    minibatch    one optimiser step; its token counts, over all processes, divide each of its sums
    micro-batch  episodes that pass the model at once: gradients add up, so its size changes nothing but memory

Old log-probs, values, advantages and returns stay what they were in all epochs.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ajuste.learning.rl import ppo
from tasks.rl.config import PpoConfig
from tasks.rl.episodes import Episodes
from tasks.rl.state import State
from tasks.rl.world import World

Ptx = Callable[[int], Tensor]  # (rows drawn so far) -> the loss on the next ones, with gradients
Row = dict[str, float]


def learn(
    state: State, episodes: Episodes, config: PpoConfig, world: World, order: Callable[[int], list[Tensor]],
    lr: float, ptx: Ptx | None,
) -> Row:  # fmt: skip
    """All optimiser steps of an update at learning rate `lr`; returns the means of their metrics.

    order(epoch) -> the row numbers of each minibatch. ratio_max is the largest of all steps, first_* the first step's:
    there the policy is still the one that sampled.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    episodes.new_log_probs = torch.zeros_like(episodes.log_probs)
    steps = [_step(state, episodes, rows, config, world, ptx) for e in range(config.epochs) for rows in order(e)]
    return {
        **{name: float(np.mean([step[name] for step in steps])) for name in steps[0] if name != "ratio_error"},
        "ratio_max": max(step["ratio_max"] for step in steps),
        **{f"first_{name}": steps[0][name] for name in ("ratio_error", "approx_kl", "clip_fraction")},
        "lr": lr,
    }


def _step(
    state: State, episodes: Episodes, rows: Tensor, config: PpoConfig, world: World, ptx: Ptx | None
) -> Row:
    """One optimiser step on the minibatch `rows`; its metrics are those of all processes."""
    items = world.totals({"policy": episodes.mask[rows].sum(), "value": episodes.value_mask[rows].sum()})
    state.optimiser.zero_grad(set_to_none=True)
    sums: Counter[str] = Counter()
    largest = {"ratio_max": 0.0, "ratio_error": 0.0}
    for part in rows.split(config.micro_rows):
        found, highest = _backward(state, episodes, part, config, items)
        sums.update(found)
        largest = {name: max(largest[name], highest[name]) for name in largest}
    if ptx is not None:
        sums["ptx_loss"] = _ptx(state, config, world, ptx)
    world.add_gradients(state.parameters())
    norm = torch.nn.utils.clip_grad_norm_(state.parameters(), config.max_grad_norm or float("inf"))
    if torch.isfinite(norm):  # else the weights stay as they are, and an alarm reads the norm
        state.optimiser.step()
    totals = world.totals(dict(sorted(sums.items())))
    loss = totals["policy_loss"] + config.vf_coef * totals["value_loss"] + config.ptx * totals.get("ptx_loss", 0.0)
    largest = {name: world.largest(value) for name, value in largest.items()}
    return {"loss": loss, **totals, **largest, "grad_norm": float(norm)}


def _backward(
    state: State, episodes: Episodes, part: Tensor, config: PpoConfig, items: Row
) -> tuple[Row, Row]:
    """The gradient of a micro-batch's share of the loss; (metrics that add up, metrics of which the largest counts)."""
    answer = state.one.policy_and_values(*episodes.rows(part), config.temperature)
    log_probs, entropy, values = (tensor.cpu() for tensor in answer)
    old, A, mask = episodes.log_probs[part], episodes.advantages[part], episodes.mask[part]
    targets = (episodes.values[part], episodes.returns[part], episodes.value_mask[part], config.value_clip)
    policy = ppo.policy_loss(log_probs, old, A, mask, config.clip, items["policy"], config.dual_clip)
    value = ppo.value_loss(values, *targets, items["value"])
    ppo.total_loss(policy, value, value_coefficient=config.vf_coef).backward()

    log_probs = log_probs.detach()
    episodes.new_log_probs[part] = log_probs
    sums = {"policy_loss": policy.item(), "value_loss": value.item()}
    sums |= ppo.policy_metrics(log_probs, old, entropy, A, mask, config.clip, items["policy"])
    sums |= ppo.value_metrics(values, *targets, items["value"])
    del sums["entropy"]  # the row has that of the rollout
    error = torch.expm1((log_probs - old) * mask).abs().max()
    return sums, {"ratio_max": sums.pop("ratio_max"), "ratio_error": float(error)}


def _ptx(state: State, config: PpoConfig, world: World, ptx: Ptx) -> float:
    """The mean over the processes of the supervised loss, each on rows of its own; its share here."""
    loss = ptx(state.ptx_cursor + world.rank * config.ptx_rows) / world.processes
    state.ptx_cursor += config.ptx_rows * world.processes
    (config.ptx * loss).backward()
    return loss.item()
