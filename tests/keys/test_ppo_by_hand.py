"""Every key of PPO does what its formula says: two updates of a policy that is a table, beside a second computation.

The second one is float64, loops over rows and tokens, and shares with the code under test the random numbers, the
config and nothing else: sampling, KL, rewards, advantages, whitening, losses, the cut of gradients, Adam and its
epsilon, the rate's course, beta's control, the order of prompts and minibatches are written out once more.
"""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.rl import loop
from tests.made.bigram import TOKENS, Bigram
from tests.made.tiny_ppo import config

torch.set_num_threads(1)
SEED, STOP = 5, [2]
PROMPTS = [[1, 0], [1, 3], [1, 4], [1, 5], [3, 1]]
USUAL = {
    "updates": 2, "batch_rows": 6, "minibatches": 1, "micro_rows": 4, "epochs": 1, "max_new_tokens": 4, "beta": 0.3,
    "lr": 0.05, "max_grad_norm": None, "missing_end": "none", "kl_control": "fixed", "record": [], "radar_every": 1,
    "vf_coef": 0.5, "clip": 0.2, "value_clip": None, "lam": 0.9,
}  # fmt: skip
OFTEN = {"epochs": 4, "lr": 0.4}  # so that ratios and values leave their bounds


def score(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
    """Likes high tokens, and more after a high prompt."""
    start = torch.tensor([prompt[-1] for prompt in prompts]).float()
    return ((responses * mask).sum(1) * 0.3 + 0.1 * start - 0.5).double()


def ptx(one: Bigram):
    """An extra loss that is another one on each row, its items, and the rows that were asked for."""
    asked: list[list[int]] = []

    def loss(rows: range) -> tuple[Tensor, int]:
        asked.append(list(rows))
        return sum((one.policy[row % TOKENS] - 0.3).square().sum() for row in rows), sum(1 + row % 2 for row in rows)

    return loss, asked


def run(folder: Path, **keys: object) -> tuple[Bigram, loop.Outcome, list[list[int]]]:
    one, settings = Bigram(), config(**{**USUAL, **keys})
    extra, asked = ptx(one)
    outcome = loop.train(
        one, settings.algorithm(), PROMPTS, score, settings, SEED, folder, STOP, None, extra if settings.ptx else None
    )
    return one, outcome, asked


# --- the second way ---------------------------------------------------------------------------------------------------


def log_softmax(row: Tensor, T: float) -> Tensor:
    return row / T - torch.log(torch.exp(row / T).sum())


def answer(table: Tensor, prompt: list[int], numbers: list[float], T: float) -> list[int]:
    """Tokens up to a stop: each the first whose cumulative probability is above its number."""
    tokens, last = [], prompt[-1]
    for number in numbers:
        p, total = log_softmax(table[last], T).exp().tolist(), 0.0
        for token in range(TOKENS):
            total += p[token]
            if total > number:
                break
        tokens.append(token)
        last = token
        if token in STOP:
            break
    return tokens


def estimate(k1: float, kind: str) -> float:
    return {"k1": k1, "k2": k1**2 / 2, "k3": math.exp(-k1) - 1 + k1}[kind]


def advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """values: one more than rewards, the last V behind them."""
    delta = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]


def moments(rows: list[list[float]], unbiased: bool) -> tuple[float, float]:
    """Mean and standard deviation over all numbers of all rows."""
    every = [x for row in rows for x in row]
    mean = sum(every) / len(every)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in every) / (len(every) - unbiased) + 1e-8)


class SecondWay:
    def __init__(self, **keys: object) -> None:
        self.c, one = config(**{**USUAL, **keys}), Bigram()
        self.theta = [one.policy.detach().double(), one.value.detach().double()]
        self.reference, self.beta = one.start.double(), self.c.beta
        self.m, self.v, self.t = [0.0, 0.0], [0.0, 0.0], 0
        self.generator = torch.Generator().manual_seed(SEED)
        self.cursor, self.asked, self.rows, self.before_kl, self.near = 0, [], [], 0.0, False
        for update in range(1, self.c.updates + 1):
            self.update(update)

    def targets(self, answers: list[list[int]], prompts: list[list[int]], scores: list[float]) -> list[tuple]:
        """For each row: old log-probs, V before each token, advantages, returns, and the states that are learnt."""
        c, T, found = self.c, self.c.temperature, []
        policy, value = self.theta
        self.kls = []
        for prompt, tokens, s in zip(prompts, answers, scores, strict=True):
            before, ended = [prompt[-1], *tokens], tokens[-1] in STOP
            old = [log_softmax(policy[b], T)[y].item() for b, y in zip(before, tokens, strict=False)]
            k1 = [o - log_softmax(self.reference[b], T)[y].item() for o, b, y in zip(old, before, tokens, strict=False)]
            self.kls.append(k1)
            rewards = [-self.beta * estimate(k, c.kl_estimator) for k in k1]
            V = [value[b].item() for b in before]
            p = c.missing_end_penalty
            paid = s if ended else {"none": s, "subtract": s - p, "replace": -p, "bootstrap": 0.0}[c.missing_end]
            if ended and c.terminal == "after_end":
                rewards, V = [*rewards, paid], [*V, 0.0]
            else:
                rewards[-1] += paid
                V[-1] = V[-1] if not ended and c.missing_end == "bootstrap" else 0.0
            found.append([old, rewards, V])
        if c.whiten_rewards:
            mean, deviation = moments([rewards for _, rewards, _ in found], c.unbiased)
            for row in found:
                row[1] = [(r - mean) / deviation + mean for r in row[1]]
        made = []
        for old, rewards, V in found:
            A = advantages(rewards, V, c.gamma, c.lam)
            made.append((old, V[: len(A)], A, [a + v for a, v in zip(A, V, strict=False)]))
        if c.whiten_advantages:
            mean, deviation = moments([A[: len(old)] for old, _, A, _ in made], c.unbiased)
            made = [(old, V, [(a - mean) / deviation for a in A], R) for old, V, A, R in made]
        return made

    def terms(self, prompt: list[int], tokens: list[int], known: tuple, theta: list[Tensor]) -> tuple:
        """Sums over a row: policy loss, value loss, and the figures by name."""
        c, (old, old_V, A, R) = self.c, known
        before, policy, value = [prompt[-1], *tokens], torch.zeros(()).double(), torch.zeros(()).double()
        f = dict.fromkeys(("approx_kl", "clip_fraction", "ratio_mean", "value_mean", "value_clip_fraction"), 0.0)
        ratios = []
        for t, y in enumerate(tokens):
            new = log_softmax(theta[0][before[t]], c.temperature)[y]
            ratio, a = torch.exp(new - old[t]), A[t]
            plain, clipped = -a * ratio, -a * ratio.clamp(1 - c.clip, 1 + c.clip)
            loss = torch.max(plain, clipped)
            if c.dual_clip and a < 0:
                loss = torch.min(loss, torch.tensor(-c.dual_clip * a).double())
            policy = policy + loss
            f["approx_kl"] += (new - old[t]).item() ** 2 / 2
            f["clip_fraction"] += float(clipped > plain)
            f["ratio_mean"] += ratio.item()
            ratios.append(ratio.item())
        for t in range(len(R)):
            V = theta[1][before[t]]
            plain = far = (V - R[t]) ** 2
            if c.value_clip:
                far = (V.clamp(old_V[t] - c.value_clip, old_V[t] + c.value_clip) - R[t]) ** 2
            value = value + torch.max(plain, far) / 2
            f["value_mean"] += V.item()
            f["value_clip_fraction"] += float(far > plain)
        return policy, value, f, ratios

    def adam(self, gradients: list[Tensor], lr: float) -> float:
        c = self.c
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        cut = 1.0 if c.max_grad_norm is None else min(1.0, c.max_grad_norm / (norm + 1e-6))
        self.t += 1
        for i, g in enumerate(gradients):
            g = g * cut
            self.m[i], self.v[i] = 0.9 * self.m[i] + 0.1 * g, 0.999 * self.v[i] + 0.001 * g**2
            first, second = 1 - 0.9**self.t, math.sqrt(1 - 0.999**self.t)
            eps = c.adam_eps if c.adam_eps_mode == "torch" else c.adam_eps / second
            self.theta[i] = self.theta[i] - lr * (self.m[i] / first) / (self.v[i].sqrt() / second + eps)
        return norm

    def update(self, update: int) -> None:
        c, B = self.c, self.c.batch_rows
        prompts = []
        for position in range(self.cursor, self.cursor + B):
            turn, place = divmod(position, len(PROMPTS))
            prompts.append(PROMPTS[np.random.default_rng([SEED, turn]).permutation(len(PROMPTS))[place]])
        self.cursor += B
        numbers = torch.rand(B, c.max_new_tokens, generator=self.generator, dtype=torch.float64).tolist()
        draws = zip(prompts, numbers, strict=True)
        answers = [answer(self.theta[0], prompt, drawn, c.temperature) for prompt, drawn in draws]
        scores = [0.3 * sum(tokens) + 0.1 * prompt[-1] - 0.5 for prompt, tokens in zip(prompts, answers, strict=True)]
        known = self.targets(answers, prompts, scores)
        row = self.sampled(prompts, answers, scores)
        share = 1 - (update - 1) / c.updates
        lr = c.lr * (share if c.lr_schedule == "linear" else (1 + math.cos(math.pi * (1 - share))) / 2)
        steps, largest = [], 0.0
        for epoch in range(c.epochs):
            order = np.random.default_rng([SEED, update, epoch]).permutation(B)
            for chosen in np.array_split(order, c.minibatches):
                theta = [x.clone().requires_grad_() for x in self.theta]
                parts = [self.terms(prompts[i], answers[i], known[i], theta) for i in chosen]
                tokens, states = (sum(len(x[i]) for i in chosen) for x in (answers, [k[3] for k in known]))
                policy, value = sum(p[0] for p in parts) / tokens, sum(p[1] for p in parts) / states
                loss = policy + c.vf_coef * value
                f = {"policy_loss": policy.item(), "value_loss": value.item()}
                for name in parts[0][2]:
                    f[name] = sum(p[2][name] for p in parts) / (states if name.startswith("value") else tokens)
                if c.ptx:
                    rows = [len(self.asked) * c.ptx_rows + n for n in range(c.ptx_rows)]
                    self.asked.append(rows)
                    extra = sum((theta[0][n % TOKENS] - 0.3).square().sum() for n in rows)
                    extra = extra / sum(1 + n % 2 for n in rows)
                    f["ptx_loss"] = extra.item()
                    loss = loss + c.ptx * extra
                loss.backward()
                f["loss"], f["grad_norm"] = loss.item(), self.adam([x.grad for x in theta], lr)
                ratios = [r for p in parts for r in p[3]]
                largest = max(largest, *ratios)
                if not steps:
                    row["first_ratio_error"] = max(abs(r - 1) for r in ratios)
                steps.append(f)
        row |= {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        row |= {"lr": lr, "ratio_max": largest, "first_approx_kl": steps[0]["approx_kl"],
                "first_clip_fraction": steps[0]["clip_fraction"]}  # fmt: skip
        self.rows.append(row | {"step": update, "episodes": update * B})
        self.control(row["kl"], B)

    def sampled(self, prompts: list, answers: list, scores: list[float]) -> dict[str, float]:
        """The figures of the episodes."""
        B, T = len(answers), self.c.temperature
        sums = {kind: sum(estimate(k, kind) for row in self.kls for k in row) / B for kind in ("k1", "k2", "k3")}
        entropy, tokens, repeats = 0.0, sum(map(len, answers)), 0.0
        for prompt, row in zip(prompts, answers, strict=True):
            for b in [prompt[-1], *row[:-1]]:
                log_p = log_softmax(self.theta[0][b], T)
                entropy -= (log_p.exp() * log_p).sum().item()
            bigrams = list(pairwise(row))
            repeats += 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0
        mean = sum(scores) / B
        return {
            "score": mean, "score_std": math.sqrt(sum((s - mean) ** 2 for s in scores) / B), "kl": sums["k1"],
            "k2": sums["k2"], "k3": sums["k3"], "rlhf_reward": mean - self.beta * sums["k1"], "length": tokens / B,
            "ended": sum(row[-1] in STOP for row in answers) / B, "repeats": repeats / B, "entropy": entropy / tokens,
            "beta": self.beta,
        }  # fmt: skip

    def control(self, kl: float, episodes: int) -> None:
        """Beta follows the KL that was *measured* (k1), whatever the rewards pay."""
        c = self.c
        error, last = (max(-1.0, min(1.0, x / c.kl_target - 1)) for x in (kl, self.before_kl))
        if c.kl_control == "ziegler":
            self.beta *= 1 + max(-0.2, min(0.2, kl / c.kl_target - 1)) * episodes / c.kl_horizon
        elif c.kl_control == "hold":
            self.near = self.near or kl >= 0.75 * c.kl_target
            assert self.near, "choose a target that the toy comes near at once"
            self.beta *= math.exp(0.15 * error + 3 * (error - last))
        self.before_kl = kl


CASES = [
    {}, {"temperature": 0.6}, {"gamma": 0.8}, {"lam": 0.3}, {"terminal": "after_end"}, {"beta": 1.5}, {"beta": 0.0},
    {"terminal": "after_end", "gamma": 0.7, "whiten_rewards": True},
    {"missing_end": "subtract", "missing_end_penalty": 0.7}, {"missing_end": "replace", "missing_end_penalty": 2.0},
    {"missing_end": "bootstrap", "gamma": 0.9}, {"whiten_rewards": True}, {"whiten_rewards": True, "unbiased": True},
    {"whiten_advantages": False}, {"unbiased": True}, {"clip": 0.05, **OFTEN}, {"dual_clip": 1.1, **OFTEN},
    {"value_clip": 0.02, **OFTEN}, {"vf_coef": 3.0, "max_grad_norm": 0.3}, {"vf_coef": 0.0, "epochs": 2},
    {"kl_estimator": "k2"}, {"kl_estimator": "k3"},
    {"kl_control": "ziegler", "kl_target": 0.2, "kl_horizon": 20, "kl_estimator": "k3", "updates": 3},
    {"kl_control": "hold", "kl_target": 0.1, "kl_estimator": "k2", "updates": 3},
    {"kl_control": "hold", "kl_target": 0.01, "kl_estimator": "k3"},
    {"lr": 0.2}, {"lr_schedule": "cosine", "updates": 4}, {"adam_eps": 0.05}, {"adam_eps": 1e-3, "adam_eps_mode": "tf"},
    {"max_grad_norm": 0.05}, {"max_grad_norm": 0.05, "adam_eps": 0.1, "epochs": 2}, {"ptx": 0.7, "ptx_rows": 3},
    {"batch_rows": 4}, {"minibatches": 3}, {"minibatches": 4, "epochs": 3}, {"epochs": 3}, {"micro_rows": 1},
    {"max_new_tokens": 2}, {"updates": 4},
]  # fmt: skip


@pytest.mark.parametrize("keys", CASES, ids=lambda keys: " ".join(f"{k}={v}" for k, v in keys.items()) or "usual")
def test_weights_and_figures_are_those_of_a_second_computation(keys: dict, tmp_path: Path) -> None:
    one, outcome, asked = run(tmp_path, **keys)
    second = SecondWay(**keys)
    assert (one.policy.detach().double() - second.theta[0]).abs().max() < 2e-5
    assert (one.value.detach().double() - second.theta[1]).abs().max() < 2e-5
    assert max(one.batches) == min(second.c.micro_rows, math.ceil(second.c.batch_rows / second.c.minibatches))
    assert asked == second.asked and len(outcome.history) == len(second.rows)
    for row, expected in zip(outcome.history, second.rows, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-6)
        rest = set(row) - set(expected)
        assert all(name.startswith(("sampler_gap", "importance")) for name in rest), rest
        assert row["sampler_gap"] < 1e-5


@pytest.mark.parametrize("keys", [case for case in CASES if case and case != {"micro_rows": 1}], ids=str)
def test_and_the_key_says_something(keys: dict) -> None:
    """The second computation would not be equal by neglecting the key."""
    usual = {name: value for name, value in OFTEN.items() if name in keys and set(keys) - set(OFTEN)}
    one, other = SecondWay(**keys), SecondWay(**usual)
    assert (one.theta[0] - other.theta[0]).abs().max() > 5e-5 or (one.theta[1] - other.theta[1]).abs().max() > 5e-5
