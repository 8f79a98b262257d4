"""Optimiser steps of learning from samples: the order of the minibatches, the learning rate's course, Adam.

    order     of (seed, update, epoch): a run that goes on after a kill meets the same minibatches
    lr        falls to 0 over the updates, along a line or half a cosine
    epsilon   of Adam, where PyTorch has it or where TensorFlow has it
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def minibatches(rows: int, number: int, seed: int, update: int, epoch: int) -> list[Tensor]:
    """Row numbers of each minibatch, int64: every row once an epoch, in an order that (seed, update, epoch) decide.

    Raises ValueError when there are fewer rows than minibatches. Sizes differ by one row at most.
    """
    if not 1 <= number <= rows:
        raise ValueError(f"{rows} rows cannot make {number} minibatches")
    order = np.random.default_rng([seed, update, epoch]).permutation(rows)
    return list(torch.from_numpy(order).tensor_split(number))


def linear_to_zero(update: int, updates: int) -> float:
    """Factor of the learning rate in update 0, 1, ... : 1 in the first, 1/updates in the last, 0 after it."""
    return max(0.0, 1 - update / updates)


def cosine_to_zero(update: int, updates: int) -> float:
    """The same along half a cosine (N+)."""
    return (1 + math.cos(math.pi * min(1.0, update / updates))) / 2


def schedule(name: Literal["linear", "cosine"], update: int, updates: int) -> float:
    """Factor of the learning rate in update 0, 1, ..., by the name of its course."""
    return linear_to_zero(update, updates) if name == "linear" else cosine_to_zero(update, updates)


class Adam(torch.optim.AdamW):
    """Adam with its epsilon where PyTorch or where TensorFlow has it; no weight decay.

        torch   theta -= lr mhat / (sqrt(vhat) + eps)
        tf      theta -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
                       = lr mhat / (sqrt(vhat) + eps / sqrt(1 - beta2^t))

    TensorFlow's is the larger epsilon in early steps (32 times in the first, beta2 = 0.999), so it moves less where
    gradients are small. lm-human-preferences was trained with it (Huang et al. 2023).
    """

    def __init__(
        self,
        params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_mode: Literal["torch", "tf"] = "torch",
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0)
        self.eps, self.eps_mode = eps, eps_mode

    @torch.no_grad()
    def step(self, closure=None):
        """One step; parameters without a gradient are left alone."""
        if self.eps_mode == "tf":
            for group in self.param_groups:
                steps = [float(self.state[p]["step"]) for p in group["params"] if p in self.state]
                group["eps"] = self.eps / (1 - group["betas"][1] ** (max(steps, default=0) + 1)) ** 0.5
        return super().step(closure)
