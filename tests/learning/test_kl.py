"""Estimators against the exact KL by enumeration, and what beta does when the KL is off its target."""

import itertools
import json
import math
import random

import pytest
import torch

from ajuste.learning.rl.kl import Beta, response_kl, token_kl

VOCABULARY, LENGTH = 5, 3


def chains() -> tuple[torch.Tensor, torch.Tensor]:
    """Two policies over five tokens as log-probabilities [6, 5]: the next token given the last (row 5: the first)."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.log_softmax(torch.randn(6, 5, generator=generator), dim=1) for _ in range(2))


def every_response() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All 125 responses of three tokens: log-probabilities [125, 3] under policy and reference, and the exact KL."""
    policy, reference = chains()
    responses = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    before = torch.nn.functional.pad(responses, (1, 0), value=5)[:, :-1]
    lp, ref = policy[before, responses], reference[before, responses]
    exact = (lp.double().sum(1).exp() * (lp - ref).double().sum(1)).sum()
    return lp, ref, exact


def test_k1_and_k3_are_unbiased_and_k2_is_near() -> None:
    """Enumeration on a vocabulary of five: E[k1] = E[k3] = KL. k3 per token sums to the response's KL as well."""
    lp, ref, exact = every_response()
    weight = lp.double().sum(1).exp()
    assert weight.sum().item() == pytest.approx(1.0, abs=1e-6)
    mask = torch.ones_like(lp, dtype=torch.bool)
    means = {k: (weight * response_kl(lp, ref, mask, k).double()).sum().item() for k in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact.item(), abs=1e-5)
    assert means["k3"] == pytest.approx(exact.item(), abs=1e-5)
    assert means["k2"] != pytest.approx(exact.item(), abs=1e-2)  # biased when the policies are far apart

    near = lp + 0.05 * (ref - lp)  # and almost right when they are close
    near = near - torch.logsumexp(near.sum(1), 0) / LENGTH
    weight = near.double().sum(1).exp()
    k1, k2 = (float((weight * response_kl(near, lp, mask, k).double()).sum()) for k in ("k1", "k2"))
    assert k2 == pytest.approx(k1, rel=0.5)


def test_k3_and_k2_are_never_negative_and_k1_can_be() -> None:
    lp, ref, _ = every_response()
    mask = torch.ones_like(lp, dtype=torch.bool)
    assert (token_kl(lp, ref, mask, "k3") >= 0).all() and (token_kl(lp, ref, mask, "k2") >= 0).all()
    assert (token_kl(lp, ref, mask, "k1") < 0).any()
    tiny = torch.linspace(-1e-4, 1e-4, 101)[None]
    assert (token_kl(tiny, torch.zeros(1, 101), torch.ones(1, 101).bool(), "k3") >= 0).all()  # no cancellation


def test_the_reference_itself_is_at_distance_zero_and_padding_adds_nothing() -> None:
    lp = torch.randn(3, 4)
    mask = torch.arange(4) < torch.tensor([4, 1, 2])[:, None]
    for k in ("k1", "k2", "k3"):
        assert not token_kl(lp, lp, mask, k).any()
        noisy = lp.masked_fill(~mask, float("-inf"))
        assert torch.equal(response_kl(noisy, lp * 0.5, mask, k), response_kl(lp, lp * 0.5, mask, k))


def test_the_estimator_is_k1_unless_said_otherwise() -> None:
    lp, ref, _ = every_response()
    mask = torch.ones_like(lp, dtype=torch.bool)
    assert torch.equal(token_kl(lp, ref, mask), lp - ref)
    assert torch.allclose(response_kl(lp, ref, mask), (lp - ref).sum(1))
    assert torch.allclose(response_kl(lp, ref, mask, "k2"), ((lp - ref) ** 2 / 2).sum(1))


# --- beta -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "episodes", "factor"),
    [
        (6.0, 256, 1.0),  # at its target nothing moves
        (12.0, 256, 1 + 0.2 * 256 / 10_000),  # +1 is clipped to 0.2
        (0.0, 256, 1 - 0.2 * 256 / 10_000),
        (6.6, 1000, 1 + 0.1 * 0.1),
        (5.4, 1000, 1 - 0.1 * 0.1),
    ],
)
def test_zieglers_rule_by_its_closed_form(kl: float, episodes: int, factor: float) -> None:
    beta = Beta(0.15, "ziegler", target=6.0, horizon=10_000)
    beta.update(kl, episodes)
    assert beta.value == pytest.approx(0.15 * factor, rel=1e-12)


def test_a_fixed_beta_stays() -> None:
    beta = Beta(0.05)
    beta.update(100.0, 512)
    assert beta.value == 0.05


def test_hold_by_hand() -> None:
    """P = 3, I = 0.15, errors within one: the first updates written out."""
    beta = Beta(0.1, "hold", target=4.0)
    beta.update(2.0, 8)  # from 0: on the way up nothing is lowered
    assert beta.value == 0.1
    beta.update(4.0, 8)  # on its target, after an error of -0.5
    assert beta.value == pytest.approx(0.1 * math.exp(3 * 0.5))
    beta.update(4.0, 8)  # and there it stays
    assert beta.value == pytest.approx(0.1 * math.exp(3 * 0.5))
    beta.update(100.0, 8)  # an error above one counts as one
    assert beta.value == pytest.approx(0.1 * math.exp(3 * 0.5 + 3 + 0.15))
    for _ in range(500):
        beta.update(100.0, 8)
    assert beta.value == pytest.approx(0.1 * 1000)  # never further from its start than that


def test_hold_lowers_a_price_that_keeps_the_policy_far_from_its_target() -> None:
    """KL that stands still at a fortieth of the target: beta is too high. One that climbs towards it: it is not."""
    stuck, climbing = Beta(0.1, "hold", target=4.0), Beta(0.1, "hold", target=4.0)
    for update in range(10):
        stuck.update(0.1, 8)
        climbing.update((0.15 * (update + 1)) ** 2, 8)
    assert stuck.value < 0.1 * math.exp(-0.15 * 0.9 * 8)
    assert climbing.value == 0.1


def test_hold_never_goes_further_down_than_a_thousandth_of_its_start() -> None:
    beta = Beta(0.1, "hold", target=4.0)
    beta.update(4.0, 8)
    for _ in range(500):
        beta.update(0.0, 8)
    assert beta.value == pytest.approx(0.1 / 1000)


def test_hold_counts_a_negative_estimate_as_one_target_below() -> None:
    """k1 of few samples can be below 0: the error is -1 and no less, in the integral and in the step before."""
    beta = Beta(0.1, "hold", target=4.0)
    beta.update(4.0, 8)  # near at once: P (0 - -1)
    beta.update(-8.0, 8)
    assert beta.value == pytest.approx(0.1 * math.exp(3 - 3 - 0.15))
    beta.update(4.0, 8)
    assert beta.value == pytest.approx(0.1 * math.exp(3 - 3 - 0.15 + 3))
    far = Beta(0.1, "hold", target=4.0)
    far.update(-1.0, 8)  # not near: 0 stands for the root of a negative KL, and no pace brings it up
    assert far.value == pytest.approx(0.1 * math.exp(-0.15))


def test_hold_is_near_from_three_quarters_on_and_waits_while_the_pace_is_enough() -> None:
    at = Beta(0.1, "hold", target=4.0)
    at.update(3.0, 8)
    assert at.value == pytest.approx(0.1 * math.exp(3 * (-0.25 + 1) - 0.15 * 0.25))
    # sqrt(KL) 0.6875, then 0.75: in 20 updates 0.75 + 20 / 16 = 2, exactly the target's root; a little slower is late
    enough, late = Beta(0.1, "hold", target=4.0), Beta(0.1, "hold", target=4.0)
    enough.update(0.6875**2, 8)
    enough.update(0.75**2, 8)
    assert enough.value == 0.1
    late.update(0.6885**2, 8)
    late.update(0.75**2, 8)
    assert late.value == pytest.approx(0.1 * math.exp(0.15 * (0.75**2 / 4 - 1)))


def test_small_targets_and_horizons_are_allowed() -> None:
    beta = Beta(0.1, "ziegler", target=0.5, horizon=1)
    beta.update(0.45, 1)
    assert beta.value == pytest.approx(0.1 * 0.9)
    assert Beta(0.0).value == 0.0
    with pytest.raises(ValueError, match="^an adaptive beta needs a start, a target and a horizon above 0$"):
        Beta(0.0, "hold")


@pytest.mark.parametrize("kind", ["ziegler", "hold"])
def test_a_checkpoint_of_beta_goes_on_exactly(kind: str) -> None:
    kls = [0.5, 3.0, 5.0, 9.0, 7.0, 6.5, 4.0, 6.0]
    whole = Beta(0.15, kind)
    for kl in kls:
        whole.update(kl, 64)
    first, second = Beta(0.15, kind), Beta(0.15, kind)
    for kl in kls[:4]:
        first.update(kl, 64)
    assert set(first.state()) == {"value", "start", "last", "near"}
    second.load(json.loads(json.dumps(first.state())))
    for kl in kls[4:]:
        second.update(kl, 64)
    assert second.value == whole.value and second.state() == whole.state()


@pytest.mark.parametrize("bad", [{"value": 0.0}, {"value": 0.1, "target": 0.0}, {"value": 0.1, "horizon": 0}])
def test_an_adaptive_beta_needs_numbers_above_zero(bad: dict) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Beta(**bad, kind="ziegler")


def policy_that_follows(beta: Beta, reach: float, speed: float, updates: int, noise: float, seed: int) -> list[float]:
    """A policy whose sqrt(KL) walks towards reach/beta, at most `speed` an update, its speed falling to 0: the KLs.

    For a reward with Gaussian spread s under the reference the best policy at price beta has KL = (s / beta)^2 / 2.
    """
    generator = random.Random(seed)
    distance, kls = 0.0, []
    for update in range(updates):
        limit = speed * (1 - update / updates)
        distance += min(max(0.5 * (reach / beta.value - distance), -limit), limit)
        measured = distance**2 * math.exp(generator.gauss(0, noise))
        kls.append(measured)
        beta.update(measured, 16)
    return kls


@pytest.mark.parametrize("reach", [0.05, 0.25, 2.0])
@pytest.mark.parametrize("speed", [0.15, 0.4])
def test_hold_keeps_the_last_half_within_a_quarter_of_the_target_where_ziegler_does_not(
    reach: float, speed: float
) -> None:
    """A start that is 5 times too high, right, 8 times too low; slow and quick policies; noise of 15 %."""
    for seed in range(3):
        kls = policy_that_follows(Beta(0.1, "hold", target=6.0), reach, speed, 100, 0.15, seed)
        held = sum(kls[50:]) / 50
        assert 4.5 <= held <= 7.5, (seed, held)
    if reach != 0.25:
        late = policy_that_follows(Beta(0.1, "ziegler", target=6.0), reach, speed, 100, 0.15, 0)
        assert not 4.5 <= sum(late[50:]) / 50 <= 7.5
