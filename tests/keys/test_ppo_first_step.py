"""Keys of PPO's loop: a value that is not the default changes the first step by its closed form, written out here.

What was sampled is read from the flight recorder, gradients where Adam meets them; rewards, advantages, losses, beta
and the step itself are loops over tokens that use no code of ajuste/learning. The policy starts away from its reference
and the value head away from 0, so that every term counts.
"""

import json
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ajuste.learning.rl import steps
from ajuste.models.one_base import OneBase
from tasks.rl import loop, recorder
from tasks.rl.algorithm import Items, Now
from tasks.rl.episodes import Episodes
from tasks.rl.ppo import Ppo
from tests.made.tiny_ppo import STOP, config, count, tiny_one, tiny_prompts

torch.set_num_threads(1)
USUAL = {"updates": 1, "record": [1], "minibatches": 1, "epochs": 1, "micro_rows": 8, "beta": 0.3,
         "kl_control": "fixed", "max_grad_norm": None}  # fmt: skip


class Step(NamedTuple):
    """A gradient [n] as Adam met it, and what it moved the weights by."""

    gradient: Tensor
    moved: Tensor


class First(NamedTuple):
    """A run: its settings, history, the first update's episodes, every optimiser step, and minibatches' sizes."""

    settings: object
    history: list[dict]
    episodes: Episodes
    steps: list[Step]
    items: list[Items]


@cache
def made() -> tuple[OneBase, dict[str, Tensor]]:
    """The tiny models, the policy off its reference and the value off 0, and the state that they begin every run in."""
    one = tiny_one()
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_B" in name or name.startswith("value_head"):
                parameter.normal_(std=0.1)
    return one, one.trainable_state()


def moved_one() -> OneBase:
    one, state = made()
    one.load_trainable_state(state)
    return one


def flat(one: OneBase, of) -> Tensor:
    return torch.cat([of(p).detach().flatten().clone() for p in one.policy_parameters() + one.value_parameters()])


def run(**changes: object) -> First:
    """A run of the usual settings with some keys changed."""
    return _run(json.dumps(changes, sort_keys=True))


@cache
def _run(changes: str) -> First:
    settings, one = config(**{**USUAL, **json.loads(changes)}), moved_one()
    taken, items = [], []
    real, losses = steps.Adam.step, Ppo.losses

    def step(self, closure=None):
        weights = flat(one, lambda p: p)
        gradient = flat(one, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        real(self, closure)
        taken.append(Step(gradient, flat(one, lambda p: p) - weights))

    def watched(self, now, part, sizes):
        items.append(sizes)
        return losses(self, now, part, sizes)

    ptx = None
    if settings.ptx:
        ptx = lambda rows: (len(rows) * squares(one), len(rows))  # noqa: E731
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.Adam, "step", step)
        patch.setattr(Ppo, "losses", watched)
        algorithm = settings.algorithm()
        done = loop.train(one, algorithm, tiny_prompts(), count, settings, 0, Path(folder), STOP, None, ptx)
        return First(settings, done.history, recorder.read(Path(folder), 1).episodes, taken, items)


def squares(one: OneBase) -> Tensor:
    return sum(p.pow(2).sum() for p in one.policy_parameters())


def each(episodes: Episodes) -> list[tuple[int, int]]:
    """(row, token) of every token of a response."""
    return [(b, t) for b, row in enumerate(episodes.mask.tolist()) for t, real in enumerate(row) if real]


# --- rollout ----------------------------------------------------------------------------------------------------------


def test_temperature_divides_the_logits_of_sampler_policy_and_reference() -> None:
    first = run(temperature=0.5)
    one = moved_one()
    for number, prompt in enumerate(first.episodes.prompts):
        answer = first.episodes.responses[number][first.episodes.mask[number]]
        ids = torch.cat([torch.tensor(prompt), answer])[None]
        for adapter, names in (("policy", ("drawn", "log_probs")), (None, ("reference",))):
            with torch.no_grad(), one.using(adapter):
                logits = one.model.get_base_model()(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            log_p = (logits / 0.5).log_softmax(-1).gather(1, answer[:, None])[:, 0]
            for name in names:
                found = getattr(first.episodes, name)[number, : len(answer)]
                assert torch.allclose(found, log_p, atol=1e-4), name
    assert not torch.equal(first.episodes.responses, run().episodes.responses)


# --- KL, rewards, beta ------------------------------------------------------------------------------------------------

ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}


def summed_kl(episodes: Episodes, estimator: str) -> list[float]:
    """Of each response."""
    sums = [0.0] * len(episodes.prompts)
    for b, t in each(episodes):
        sums[b] += ESTIMATORS[estimator](float(episodes.log_probs[b, t] - episodes.reference[b, t]))
    return sums


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_rewards_pay_the_configured_estimate(estimator: str) -> None:
    episodes = run(kl_estimator=estimator).episodes
    for b, t in each(episodes):
        d = float(episodes.log_probs[b, t] - episodes.reference[b, t])
        assert float(episodes.kl[b, t]) == pytest.approx(ESTIMATORS[estimator](d), abs=1e-5)
    paid = [s - 0.3 * kl for s, kl in zip(episodes.scores.tolist(), summed_kl(episodes, estimator), strict=True)]
    assert episodes.rewards.sum(1).tolist() == pytest.approx(paid, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(summed_kl(episodes, "k1"), summed_kl(episodes, "k3"), strict=True)) > 0.05


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("control", ["ziegler", "hold"])
def test_beta_follows_the_measured_kl_whatever_the_rewards_pay(control: str, estimator: str) -> None:
    """The mean over responses of k1, in nats; that of k3 would give another beta."""
    measured = {name: sum(summed_kl(run().episodes, name)) / 8 for name in ESTIMATORS}
    target = 1.1 * measured["k1"]
    first = run(updates=2, kl_control=control, kl_estimator=estimator, kl_target=target, kl_horizon=40)

    def moved(kl: float) -> float:
        e = kl / target - 1
        if control == "ziegler":
            return 0.3 * (1 + min(max(e, -0.2), 0.2) * 8 / 40)
        return 0.3 * math.exp(0.15 * e + 3.0 * (e + 1))  # from a KL of 0, whose error is -1

    assert first.history[0]["beta"] == 0.3 and first.history[0]["kl"] == pytest.approx(measured["k1"], rel=1e-4)
    assert first.history[1]["beta"] == pytest.approx(moved(measured["k1"]), rel=1e-4)
    assert abs(moved(measured["k3"]) / moved(measured["k1"]) - 1) > 1e-3


# --- advantages -------------------------------------------------------------------------------------------------------


def expected(first: First) -> tuple[Tensor, Tensor, Tensor]:
    """(rewards [B, R+1], advantages [B, R], returns [B, R+1]) by sums of discounted errors."""
    s, episodes = first.settings, first.episodes
    B, R = episodes.mask.shape
    rewards, exists = torch.zeros(B, R + 1, dtype=torch.float64), torch.zeros(B, R + 1, dtype=torch.bool)
    for b, t in each(episodes):
        rewards[b, t] = -0.3 * float(episodes.log_probs[b, t] - episodes.reference[b, t])
        exists[b, t] = True
    for b in range(B):
        ended, last = bool(episodes.ended[b]), int(episodes.mask[b].sum()) - 1
        score = float(episodes.scores[b])
        if not ended:
            lost = {"none": score, "subtract": score - s.missing_end_penalty, "replace": -s.missing_end_penalty,
                    "bootstrap": 0.0}  # fmt: skip
            score = lost[s.missing_end]
        where = last + (ended and s.terminal == "after_end")
        rewards[b, where] += score
        exists[b, where] = True
    if s.whiten_rewards:
        inside = rewards[exists]
        rewards[exists] = (inside - inside.mean()) / (inside.var(unbiased=s.unbiased) + 1e-8).sqrt() + inside.mean()
    advantages, returns = torch.zeros(B, R + 1, dtype=torch.float64), torch.zeros(B, R + 1, dtype=torch.float64)
    for b in range(B):
        L = int(exists[b].sum())
        V = episodes.values[b, : L + 1].tolist() + [0.0]
        V[L] = V[L] if s.missing_end == "bootstrap" and not episodes.ended[b] else 0.0
        delta = [float(rewards[b, t]) + s.gamma * V[t + 1] - V[t] for t in range(L)]
        for t in range(L):
            advantages[b, t] = sum((s.gamma * s.lam) ** (k - t) * delta[k] for k in range(t, L))
            returns[b, t] = advantages[b, t] + V[t]
    advantages = advantages[:, :R] * episodes.mask
    if s.whiten_advantages:
        inside = advantages[episodes.mask]
        deviation = (inside.var(unbiased=s.unbiased) + 1e-8).sqrt()
        advantages = (advantages - inside.mean()) / deviation * episodes.mask
    return rewards, advantages, returns


CHANGES = [
    {}, {"gamma": 0.8}, {"lam": 0.3}, {"terminal": "after_end"}, {"whiten_advantages": False}, {"whiten_rewards": True},
    {"unbiased": True}, {"unbiased": True, "whiten_rewards": True}, {"missing_end": "replace"},
    {"missing_end": "subtract", "missing_end_penalty": 3.0}, {"missing_end": "bootstrap"},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=[",".join(changes) or "usual" for changes in CHANGES])
def test_advantages_and_returns_are_those_of_the_configured_formula(changes: dict) -> None:
    first, usual = run(**changes), run()
    rewards, advantages, returns = expected(first)
    found = first.episodes
    assert torch.equal(found.responses, usual.episodes.responses) and found.ended.any() and not found.ended.all()
    assert torch.allclose(found.rewards.double(), rewards, atol=1e-4)
    assert torch.allclose(found.advantages.double(), advantages, atol=1e-4)
    assert torch.allclose(found.returns.double(), returns, atol=1e-4)
    if changes:
        assert (found.advantages - usual.episodes.advantages).abs().max() > 1e-3


# --- losses -----------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True], [True, True, False]])
RATIOS = torch.tensor([[0.5, 2.5, 1.1], [1.6, 0.9, 7.0]])
A = torch.tensor([[-1.0, -1.5, 2.0], [0.7, -0.4, 9.0]])
GAPS = torch.tensor([[0.3, -0.2, 1.2], [0.0, -0.9, 5.0]])  # trainer - sampler
V, OLD, RETURNS = (
    torch.tensor([[1.0, 0.5, -1.0, 9.0], [2.0, 0.1, 9.0, 9.0]]),
    torch.tensor([[0.8, 0.0, 0.0, 9.0], [0.5, 0.0, 9.0, 9.0]]),
    torch.tensor([[0.0, 1.0, -3.0, 0.0], [2.5, 0.2, 0.0, 0.0]]),
)


def planted(**changes: object):
    """(settings, losses) of one micro-batch whose numbers stand above; the minibatch has twice as much."""
    settings = config(**changes)
    old = torch.full_like(A, -1.0)
    part = Episodes(
        [[1], [1]], torch.zeros(2, 3, dtype=torch.int64), MASK, torch.tensor([True, True]), drawn=old - GAPS,
        log_probs=old, values=OLD, advantages=A, returns=RETURNS, value_mask=torch.nn.functional.pad(MASK, (0, 1)),
    )  # fmt: skip
    now = Now((old + RATIOS.log()).requires_grad_(), torch.zeros(2, 3), V.clone().requires_grad_())
    return settings, settings.algorithm().losses(now, part, Items(rows=4, tokens=10, states=10))


def policy_loss(clip: float = 0.2, dual_clip: float | None = None, cap: float | None = None) -> float:
    total = 0.0
    for ratio, a, gap, real in zip(*(x.flatten().tolist() for x in (RATIOS, A, GAPS, MASK)), strict=True):
        loss = max(-a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip))
        if dual_clip is not None and a < 0:
            loss = min(loss, -dual_clip * a)
        total += real * loss * (1.0 if cap is None else min(math.exp(gap), cap))
    return total / 10


def value_loss(clip: float | None = 0.2) -> float:
    total = 0.0
    states = torch.nn.functional.pad(MASK, (0, 1))
    for v, old, R, real in zip(*(x.flatten().tolist() for x in (V, OLD, RETURNS, states)), strict=True):
        error = (v - R) ** 2
        if clip is not None:
            error = max(error, (min(max(v, old - clip), old + clip) - R) ** 2)
        total += real * error / 2
    return total / 10


LOSSES = [
    ({}, {}, {}), ({"clip": 0.4}, {"clip": 0.4}, {}), ({"dual_clip": 1.5}, {"dual_clip": 1.5}, {}),
    ({"importance_cap": 2.0}, {"cap": 2.0}, {}), ({"importance_cap": 1.0}, {"cap": 1.0}, {}),
    ({"value_clip": 0.6}, {}, {"clip": 0.6}), ({"value_clip": None}, {}, {"clip": None}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "policy", "value"), LOSSES, ids=[str(changes) for changes, *_ in LOSSES])
def test_losses_are_those_of_the_configured_clips(changes: dict, policy: dict, value: dict) -> None:
    terms = planted(**changes)[1].terms
    assert terms["policy_loss"][1].item() == pytest.approx(policy_loss(**policy), abs=1e-6)
    assert terms["value_loss"][1].item() == pytest.approx(value_loss(**value), abs=1e-6)
    assert terms["policy_loss"][0] == 1.0 and terms["value_loss"][0] == 0.1
    if changes:
        assert abs(policy_loss(**policy) - policy_loss()) + abs(value_loss(**value) - value_loss()) > 1e-3


def test_what_the_importance_weights_came_to_is_said() -> None:
    sums = planted(importance_cap=2.0)[1].sums
    weights = [min(math.exp(gap), 2.0) for gap in GAPS[MASK].tolist()]
    assert sums["importance_mean"] == pytest.approx(sum(weights) / 10)
    assert sums["importance_capped"] == pytest.approx(1 / 10)
    assert "importance_mean" not in planted()[1].sums


def test_a_capped_gap_reaches_the_gradient_of_the_run() -> None:
    """In float32 the gap is rounding, and the weights are 1: the step is that without them."""
    one, other = run().steps[0].gradient, run(importance_cap=2.0)
    assert torch.allclose(other.steps[0].gradient, one, rtol=1e-4, atol=1e-6)
    assert other.history[0]["importance_mean"] == pytest.approx(1.0, abs=1e-5)


# --- the step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [0.1, 0.7])
def test_vf_coef_weighs_the_value_loss(coefficient: float) -> None:
    """The loss is a line in it, and so is the gradient of the value head, which only the value loss reaches."""
    found, (row,) = run(vf_coef=coefficient), run(vf_coef=coefficient).history
    assert row["loss"] == pytest.approx(row["policy_loss"] + coefficient * row["value_loss"], abs=1e-6)
    head = slice(-33, None)  # its weight and bias come last
    without = run(vf_coef=0.0).steps[0].gradient
    assert not without[head].any() and without.any()
    per_unit = (run(vf_coef=1.0).steps[0].gradient - without)[head]
    assert torch.allclose(found.steps[0].gradient[head], coefficient * per_unit, rtol=1e-3, atol=1e-6)


def test_ptx_is_added_with_its_weight() -> None:
    """Here the loss on other text is the sum of the policy's squares: its gradient is twice the weights."""
    first, plain = run(ptx=0.5), run()
    policy = torch.cat([x.flatten() for name, x in made()[1].items() if name.startswith("policy.")])
    added = (first.steps[0].gradient - plain.steps[0].gradient)[: len(policy)]
    assert torch.allclose(added, 0.5 * 2 * policy, atol=1e-4)
    row = first.history[0]
    loss = row["policy_loss"] + 0.1 * row["value_loss"] + 0.5 * row["ptx_loss"]
    assert row["loss"] == pytest.approx(loss, rel=1e-5) and row["ptx_loss"] == pytest.approx(float(policy.pow(2).sum()))


def test_max_grad_norm_cuts_the_gradient_to_its_length() -> None:
    raw = run().steps[0].gradient
    norm = float(raw.norm())
    assert norm > 0.1 and run().history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for limit in (0.05, 2 * norm):
        found = run(max_grad_norm=limit)
        factor = min(1.0, limit / norm)
        assert torch.allclose(found.steps[0].gradient, raw * factor, rtol=1e-3, atol=1e-7)
        assert found.history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"lr": 0.01}, {"adam_eps": 0.02}, {"adam_eps": 0.02, "adam_eps_mode": "tf"}])
def test_the_first_step_of_adam_is_its_closed_form(changes: dict) -> None:
    """-lr g / (|g| + eps); TensorFlow's epsilon stands outside the correction, so it is eps / sqrt(1 - 0.999) there."""
    first = run(**changes)
    s, (gradient, moved) = first.settings, first.steps[0]
    eps = s.adam_eps / math.sqrt(1 - 0.999) if s.adam_eps_mode == "tf" else s.adam_eps
    assert torch.allclose(moved, -s.lr * gradient / (gradient.abs() + eps), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (4, 1), (2, 3)])
def test_an_epoch_is_so_many_steps_of_so_many_rows(minibatches: int, epochs: int) -> None:
    first = run(minibatches=minibatches, epochs=epochs)
    assert len(first.steps) == minibatches * epochs
    assert [size.rows for size in first.items] == [8 / minibatches] * (minibatches * epochs)
    tokens = int(first.episodes.mask.sum())
    for epoch in range(epochs):
        own = first.items[epoch * minibatches : (epoch + 1) * minibatches]
        assert sum(size.tokens for size in own) == tokens


@pytest.mark.parametrize(("key", "value"), [("batch_rows", 4), ("max_new_tokens", 3)])
def test_the_batch_has_the_configured_shape(key: str, value: int) -> None:
    responses = run(**{key: value}).episodes.responses
    assert responses.shape[0 if key == "batch_rows" else 1] == value
