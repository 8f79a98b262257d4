"""ajuste/learning/losses/preference.py: closed forms at the start, gradients, and each loss by another way."""

import math

import pytest
import torch

from ajuste.learning.losses import preference
from ajuste.learning.losses.preference import LOSSES, Preference, Responses

BETA, E, GAMMA = 0.3, 0.1, 0.5
SIZES = torch.tensor([2, 3, 2])  # two pairs and a ranking of three, the best first


def responses(moved: float = 1.0, grad: bool = False) -> Responses:
    """Seven responses of 3 to 9 tokens; moved 0: the policy is its reference."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([3, 9, 4, 5, 8, 6, 7])
    reference = -tokens * (1 + torch.rand(7, generator=generator, dtype=torch.float64))
    log_probs = reference + moved * torch.randn(7, generator=generator, dtype=torch.float64)
    return Responses(log_probs.clone().requires_grad_(grad), reference, tokens)


def of(loss: str) -> Preference:
    return Preference(loss, BETA, E, GAMMA)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(loss: str, found: Responses, better: int, worse: int) -> float:
    """One pair with Python's numbers, from the products of probabilities where the papers have them."""
    p, q, n = ([float(x[i]) for i in (better, worse)] for x in found)
    h = (p[0] - q[0]) - (p[1] - q[1])
    mean = [p[0] / n[0], p[1] / n[1]]
    if loss == "ipo":
        return ((p[0] - q[0]) / n[0] - (p[1] - q[1]) / n[1] - 1 / (2 * BETA)) ** 2
    if loss == "hinge":
        return max(0.0, 1 - BETA * h)
    if loss == "simpo":
        return -math.log(sigma(BETA * (mean[0] - mean[1]) - GAMMA))
    if loss == "orpo":
        odds = [math.exp(m) / (1 - math.exp(m)) for m in mean]
        return -mean[0] - BETA * math.log(sigma(math.log(odds[0] / odds[1])))
    right, wrong = -math.log(sigma(BETA * h)), -math.log(sigma(-BETA * h))
    if loss == "cdpo":
        return (1 - E) * right + E * wrong
    if loss == "robust":
        return ((1 - E) * right - E * wrong) / (1 - 2 * E)
    return right


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_its_formula_and_a_ranking_the_mean_of_its_pairs(loss: str) -> None:
    found = responses()
    pairs = [[(0, 1)], [(2, 3), (2, 4), (3, 4)], [(5, 6)]]
    expected = [sum(by_hand(loss, found, *pair) for pair in some) / len(some) for some in pairs]
    value = preference.comparison_loss(of(loss), found, SIZES)
    assert value.item() == pytest.approx(sum(expected) / 3, rel=1e-12)
    # a step of 24 comparisons of which these are a piece
    assert preference.comparison_loss(of(loss), found, SIZES, 24).item() == pytest.approx(sum(expected) / 24, rel=1e-12)


def test_where_it_starts_dpo_is_ln_2_with_zero_rewards_and_ipo_the_square_of_its_target() -> None:
    found = responses(moved=0.0)
    start = {"sigmoid": math.log(2), "cdpo": math.log(2), "robust": math.log(2), "hinge": 1.0,
             "ipo": (1 / (2 * BETA)) ** 2}  # fmt: skip
    for loss, value in start.items():
        assert preference.comparison_loss(of(loss), found, SIZES).item() == pytest.approx(value, rel=1e-15)
        assert torch.equal(preference.rewards(of(loss), found), torch.zeros(7, dtype=torch.float64))
    assert torch.equal(preference.displacement(found), torch.zeros(7, dtype=torch.float64))


def test_the_gradient_of_dpo_is_the_papers() -> None:
    """-beta sigma(-beta h) (grad log pi(y_w) - grad log pi(y_l)), so the pair in the wrong order moves most."""
    found, sizes = responses(grad=True), torch.tensor([2])
    two = Responses(*(x[:2] for x in found))
    preference.comparison_loss(of("sigmoid"), two, sizes).backward()
    h = (found.log_probs - found.reference)[:2].detach()
    slope = BETA * sigma(-BETA * float(h[0] - h[1]))
    assert found.log_probs.grad[:2].tolist() == pytest.approx([-slope, slope], rel=1e-12)
    assert found.log_probs.grad[2:].abs().sum() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss: str) -> None:
    found = responses(grad=True)
    preference.comparison_loss(of(loss), found, SIZES).backward()
    for i in range(7):
        step = torch.zeros(7, dtype=torch.float64)
        step[i] = 1e-6
        up, down = (
            preference.comparison_loss(of(loss), found._replace(log_probs=found.log_probs.detach() + s), SIZES).item()
            for s in (step, -step)
        )
        assert found.log_probs.grad[i].item() == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8)


def test_losses_without_a_reference_do_not_read_it_and_those_a_token_know_the_length() -> None:
    found = responses()
    other = found._replace(reference=found.reference - 5 * torch.arange(7))
    longer = found._replace(tokens=found.tokens * torch.tensor([1, 2, 1, 2, 1, 2, 1]))
    for loss in LOSSES:
        value = preference.comparison_loss(of(loss), found, SIZES)
        assert torch.equal(value, preference.comparison_loss(of(loss), other, SIZES)) == (loss in ("orpo", "simpo"))
        same = torch.equal(value, preference.comparison_loss(of(loss), longer, SIZES))
        assert same == (loss not in ("ipo", "orpo", "simpo")), loss


def test_a_margin_that_grows_can_displace_the_preferred_response() -> None:
    before = responses(moved=0.0)
    fell = before.log_probs + torch.tensor([-3.0, -9.0, -4, -5, -8, -6, -7]) * torch.tensor([1, 2, 1, 1, 1, 1, 1])
    found = before._replace(log_probs=fell)
    rewards = preference.rewards(of("sigmoid"), found)
    assert rewards[0] > rewards[1] and preference.displacement(found)[:2].tolist() == pytest.approx([1.0, 2.0])


def test_a_certain_response_has_finite_odds() -> None:
    found = Responses(torch.zeros(2, requires_grad=True), torch.zeros(2), torch.tensor([1, 1]))
    loss = preference.comparison_loss(of("orpo"), found, torch.tensor([2]))
    loss.backward()
    assert math.isfinite(loss.item()) and torch.isfinite(found.log_probs.grad).all()


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match="loss 'kto' does not exist: sigmoid, ipo"):
        preference.scores(Preference("kto", 0.1), responses())
