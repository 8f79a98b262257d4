"""Advantages and losses of groups, each against a second way: plain Python, finite sums, closed forms."""

import statistics

import pytest
import torch
from torch import Tensor

from ajuste.learning.rl import group as groups
from ajuste.learning.rl import kl, ppo

SIZES = (2, 3, 5)


def rewards(group: int, number: int = 4, seed: int = 0) -> Tensor:
    return 100 + 3 * torch.randn(group * number, generator=torch.Generator().manual_seed(seed))


def batch(seed: int = 0, rows: int = 6, width: int = 5) -> dict[str, Tensor]:
    """Log-probs before and now, a reference, advantages of a response, and a mask of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.arange(width) < torch.tensor([5, 1, 3, 2, 4, 5])[:rows, None]
    old = -draw[0].abs() * mask
    A = torch.randn(rows, 1, generator=generator, dtype=torch.float64) * mask
    new, reference = (old + 0.3 * moved * mask for moved in draw[1:])
    return {"new": new, "old": old, "reference": reference, "A": A, "mask": mask}


# --- advantages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", SIZES)
@pytest.mark.parametrize("scale", ["std", "none"])
def test_the_advantages_of_a_group_sum_to_0_and_are_what_plain_python_says(group: int, scale: str) -> None:
    found = groups.group_advantages(rewards(group), group, scale)
    assert found.dtype == torch.float32 and found.view(-1, group).sum(1).abs().max() < 1e-5
    for some, own in zip(rewards(group).tolist(), found.tolist(), strict=True):
        i = rewards(group).tolist().index(some) // group
        others = rewards(group).tolist()[i * group : (i + 1) * group]
        size = statistics.stdev(others) + 1e-4 if scale == "std" else 1.0
        assert own == pytest.approx((some - statistics.fmean(others)) / size, abs=1e-5)


@pytest.mark.parametrize("group", SIZES)
def test_leave_one_out_by_its_definition(group: int) -> None:
    values = rewards(group).tolist()
    for i, own in enumerate(groups.leave_one_out(rewards(group), group).tolist()):
        first = i // group * group
        others = [values[j] for j in range(first, first + group) if j != i]
        assert own == pytest.approx(values[i] - sum(others) / len(others), abs=1e-5)
    centred = groups.group_advantages(rewards(group), group, "none")
    assert torch.allclose(groups.leave_one_out(rewards(group), group), centred * group / (group - 1), atol=1e-5)


def test_equal_rewards_give_exactly_nothing() -> None:
    """0.1 three times has a mean that is not 0.1 in floating point; a fourth group differs by one."""
    some = torch.tensor([0.1] * 3 + [7.3] * 3 + [-1e6] * 3 + [0.0, 0.0, 1.0])
    for found in (groups.group_advantages(some, 3, "std"), groups.leave_one_out(some, 3)):
        assert not found[:9].any() and found[9:].all()
    assert groups.flat(some, 3).tolist() == [True] * 9 + [False] * 3


def test_a_group_needs_two() -> None:
    for function, more in ((groups.group_advantages, ["std"]), (groups.leave_one_out, [])):
        with pytest.raises(ValueError, match="a group of 1 has nobody to be compared with"):
            function(rewards(2), 1, *more)


# --- losses -----------------------------------------------------------------------------------------------------------


def by_hand(of: dict[str, Tensor], low: float, high: float, level: str) -> list[list[float]]:
    """The surrogate of each token in plain Python."""
    found = []
    for new, old, A, mask in zip(*(of[name].tolist() for name in ("new", "old", "A", "mask")), strict=True):
        logs = [a - b for a, b, kept in zip(new, old, mask, strict=True) if kept]
        ratios = [2.718281828459045 ** (sum(logs) if level == "sequence" else log) for log in logs]
        row = [max(-A[0] * r, -A[0] * min(max(r, 1 - low), 1 + high)) for r in ratios]
        found.append(row)
    return found


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.4)])
def test_surrogate_and_means_by_hand(level: str, low: float, high: float) -> None:
    of = batch()
    loss = groups.policy_loss(of["new"], of["old"], of["A"], of["mask"], low, high, level)
    rows = by_hand(of, low, high, level)
    assert [row[kept].tolist() for row, kept in zip(loss, of["mask"], strict=True)] == [pytest.approx(x) for x in rows]
    assert not loss[~of["mask"]].any()
    tokens = sum(map(len, rows))
    means = {
        "sequence": sum(sum(row) / len(row) for row in rows) / len(rows),
        "token": sum(map(sum, rows)) / tokens,
        "constant": sum(map(sum, rows)) / (len(rows) * 9),
    }
    for name, expected in means.items():
        assert groups.mean_of(loss, of["mask"], name, len(rows), tokens, 9).item() == pytest.approx(expected)


def test_with_equal_bounds_and_a_mean_of_tokens_it_is_ppos_loss() -> None:
    of = batch(1)
    tokens = int(of["mask"].sum())
    loss = groups.policy_loss(of["new"], of["old"], of["A"], of["mask"], 0.2, 0.2, "token")
    expected = ppo.policy_loss(of["new"], of["old"], of["A"], of["mask"], 0.2, tokens)
    assert groups.mean_of(loss, of["mask"], "token", 6, tokens, 5).item() == pytest.approx(expected.item(), rel=1e-12)


def test_clip_higher_lets_a_good_token_rise_further_and_a_bad_one_fall_no_further() -> None:
    ratio, A = torch.tensor([[1.25, 1.25, 0.75, 0.75]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    same, clipped = groups.token_losses(ratio, A, 0.2, 0.2)
    higher, free = groups.token_losses(ratio, A, 0.2, 0.28)
    assert same.tolist() == [[pytest.approx(x) for x in (-1.2, 1.25, -0.75, 0.8)]]
    assert higher.tolist() == [[pytest.approx(x) for x in (-1.25, 1.25, -0.75, 0.8)]]
    assert clipped.tolist() == [[True, False, False, True]] and free.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("mean", ["sequence", "token", "constant"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_micro_batches_add_up(mean: str, level: str) -> None:
    of = batch(2)
    mask, tokens = of["mask"], int(of["mask"].sum())
    whole = of["new"].clone().requires_grad_()
    parts = of["new"].clone().requires_grad_()

    def loss(new: Tensor, some: slice) -> Tensor:
        found = groups.policy_loss(new[some], of["old"][some], of["A"][some], mask[some], 0.2, 0.3, level)
        found = found + 0.5 * groups.kl_loss(new[some], of["reference"][some], mask[some])
        return groups.mean_of(found, mask[some], mean, 6, tokens, 5)

    loss(whole, slice(None)).backward()
    for some in (slice(0, 1), slice(1, 4), slice(4, 6)):
        loss(parts, some).backward()
    assert torch.allclose(whole.grad, parts.grad, rtol=1e-12, atol=1e-14) and whole.grad.abs().max() > 1e-3


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_rewards_give_no_gradient_and_with_a_price_exactly_that_of_the_kl(level: str) -> None:
    of = batch(3)
    A = groups.group_advantages(torch.full((6,), 0.7), 3, "std")[:, None].double() * of["mask"]
    size = ("sequence", 6, int(of["mask"].sum()), 5)
    gradients = []
    for beta, policy in ((0.0, True), (0.3, True), (0.3, False)):
        new = of["new"].clone().requires_grad_()
        loss = beta * groups.mean_of(groups.kl_loss(new, of["reference"], of["mask"]), of["mask"], *size)
        if policy:
            loss = loss + groups.mean_of(
                groups.policy_loss(new, of["old"], A, of["mask"], 0.2, 0.2, level), of["mask"], *size
            )
        loss.backward()
        gradients.append(new.grad)
    assert not gradients[0].any() and torch.equal(gradients[1], gradients[2]) and gradients[1].any()
    # d k3 / d log pi = 1 - exp(log pi_ref - log pi), a mean over tokens and then over responses
    slope = (1 - torch.exp(of["reference"] - of["new"])) * of["mask"] / of["mask"].sum(1, keepdim=True) / 6
    assert torch.allclose(gradients[2], 0.3 * slope, rtol=1e-9)
    assert torch.equal(groups.kl_loss(of["new"], of["reference"], of["mask"]),
                       kl.token_kl(of["new"], of["reference"], of["mask"], "k3"))  # fmt: skip


def test_at_ratio_1_the_loss_of_equal_lengths_is_0_and_its_gradient_is_not() -> None:
    """Why a training whose loss reads 0 may learn very well."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    old = -torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = groups.group_advantages(rewards(3, 2), 3, "std")[:, None].double() * mask
    new = old.clone().requires_grad_()
    loss = groups.mean_of(groups.policy_loss(new, old, A, mask, 0.2, 0.2, "token"), mask, "token", 6, 24, 4)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert torch.allclose(new.grad, -A / 24) and new.grad.norm() > 0.1


def test_metrics_add_up_and_say_what_the_clip_decides() -> None:
    of = batch(4)
    tokens = int(of["mask"].sum())
    arguments = [of[name] for name in ("new", "old", "A", "mask")]
    whole = groups.metrics(*arguments, 0.2, 0.3, "token", tokens)
    parts = [groups.metrics(*(x[some] for x in arguments), 0.2, 0.3, "token", tokens) for some in
             (slice(0, 2), slice(2, 6))]  # fmt: skip
    for name in ("approx_kl", "clip_fraction", "ratio_mean"):
        assert whole[name] == pytest.approx(parts[0][name] + parts[1][name], rel=1e-6)
    assert whole["ratio_max"] == max(part["ratio_max"] for part in parts)
    difference = (of["new"] - of["old"])[of["mask"]]
    assert whole["approx_kl"] == pytest.approx((difference**2).sum().item() / 2 / tokens, rel=1e-6)
    assert whole["ratio_mean"] == pytest.approx(difference.exp().sum().item() / tokens, rel=1e-6)
    ratio = (of["new"] - of["old"]).exp()
    decided = ((ratio > 1.3) & (of["A"] > 0)) | ((ratio < 0.8) & (of["A"] < 0))
    assert whole["clip_fraction"] == pytest.approx((decided & of["mask"]).sum().item() / tokens)
    assert whole["clip_fraction"] > 0
    one = groups.metrics(*arguments, 0.2, 0.3, "sequence", tokens)
    assert one["ratio_max"] == pytest.approx((of["new"] - of["old"]).sum(1).exp().max().item(), rel=1e-6)
