"""Two updates of PPO, computed a second way: from the recorded responses, with transformers and torch alone.

No code of learning/ or tasks/ takes part but the order of the minibatches, which is written out here once more. Each
row passes transformers' own forward; advantages are sums of discounted errors; losses are loops over tokens.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ajuste.models.one_base import OneBase
from tasks.rl import loop, recorder
from tests.made.tiny_ppo import STOP, config, count, tiny_one, tiny_prompts, weights

torch.set_num_threads(1)
SEED, ROWS = 3, 8
SETTINGS = {"updates": 2, "record": [1, 2], "kl_control": "fixed", "adam_eps": 1e-4, "lr": 3e-3, "lam": 0.9,
            "gamma": 0.97, "max_grad_norm": 0.1, "beta": 0.2, "clip": 0.05,
            "missing_end": "subtract"}  # fmt: skip


def read(one: OneBase, prompt: list[int], answer: Tensor) -> tuple[Tensor, Tensor]:
    """log pi of each token of an answer [L], and V before each and after the last [L + 1]."""
    ids = torch.cat([torch.tensor(prompt), answer])[None]
    h = one.model.get_base_model().model(ids).last_hidden_state[0, len(prompt) - 1 :]
    log_p = one.model.get_base_model().lm_head(h[:-1]).log_softmax(-1)
    return log_p.gather(1, answer[:, None])[:, 0], one.value_head(h)[:, 0]


def targets(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of one response [L]; V after its end is 0."""
    V = [*values[:-1].tolist(), 0.0]
    delta = [float(r) + gamma * V[t + 1] - V[t] for t, r in enumerate(rewards)]
    L = len(delta)
    A = torch.tensor([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, L)) for t in range(L)])
    return A, A + values[:-1]


def second_way(folder: Path, settings) -> tuple[OneBase, list[float]]:
    """The models after both updates, and the loss of each."""
    one, reference, losses = tiny_one(), tiny_one(), []
    policy, value = one.policy_parameters(), one.value_parameters()
    adam = torch.optim.Adam(policy + value, settings.lr, eps=settings.adam_eps)
    for update in (1, 2):
        flight = recorder.read(folder, update).episodes
        answers = [row[mask] for row, mask in zip(flight.responses, flight.mask, strict=True)]
        known = []
        with torch.no_grad():
            scores = count(*flight.batch())
            for i, (prompt, answer) in enumerate(zip(flight.prompts, answers, strict=True)):
                old, V = read(one, prompt, answer)
                rewards = -settings.beta * (old - read(reference, prompt, answer)[0])
                ended = answer[-1].item() in STOP
                rewards[-1] += scores[i] - (0 if ended else settings.missing_end_penalty)
                known.append((old, V[:-1], *targets(rewards, V, settings.gamma, settings.lam)))
        every = torch.cat([A for *_, A, _ in known])
        mean, deviation = every.mean(), every.std(unbiased=False)
        steps = []
        adam.param_groups[0]["lr"] = settings.lr * (1 - (update - 1) / 2)
        for epoch in range(settings.epochs):
            order = np.random.default_rng([SEED, update, epoch]).permutation(ROWS)
            for rows in np.array_split(order, settings.minibatches):
                tokens = sum(len(answers[i]) for i in rows)
                loss = torch.zeros(())
                for i in rows:
                    new, V = read(one, flight.prompts[i], answers[i])
                    old, old_V, A, R = known[i]
                    for t in range(len(answers[i])):
                        ratio, a = (new[t] - old[t]).exp(), (A[t] - mean) / deviation
                        surrogate = torch.min(ratio * a, ratio.clamp(1 - settings.clip, 1 + settings.clip) * a)
                        near = old_V[t] + (V[t] - old_V[t]).clamp(-settings.value_clip, settings.value_clip)
                        error = torch.max((V[t] - R[t]) ** 2, (near - R[t]) ** 2)
                        loss = loss - surrogate / tokens + settings.vf_coef * 0.5 * error / tokens
                adam.zero_grad()
                loss.backward()
                norm = torch.cat([p.grad.flatten() for p in policy + value]).norm()
                for parameter in policy + value:
                    parameter.grad *= min(1.0, settings.max_grad_norm / (norm.item() + 1e-6))
                adam.step()
                steps.append(loss.item())
        losses.append(sum(steps) / len(steps))
    return one, losses


def test_two_updates_are_those_of_a_second_computation(tmp_path: Path) -> None:
    settings, one = config(**SETTINGS), tiny_one()
    outcome = loop.train(one, settings.algorithm(), tiny_prompts(), count, settings, SEED, tmp_path, STOP)
    other, losses = second_way(tmp_path, settings)
    first, found, expected = weights(tiny_one()), weights(one), weights(other)
    assert [row["loss"] for row in outcome.history] == pytest.approx(losses, abs=1e-4)
    assert outcome.history[-1]["clip_fraction"] > 0 and outcome.history[0]["grad_norm"] > settings.max_grad_norm
    for name, weight in found.items():
        moved = (weight - first[name]).abs().max()
        assert (weight - expected[name]).abs().max() < 1e-5 + 0.02 * moved, name
    assert max((found[name] - first[name]).abs().max() for name in found) > 1e-3
