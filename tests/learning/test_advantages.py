"""Rewards, GAE and whitening against brute force, closed forms and the figures of the blog on lm-human-preferences."""

import itertools

import pytest
import torch
from torch import Tensor

from ajuste.learning.rl.advantages import (
    Options,
    episode_targets,
    gae,
    last_token,
    per_token_rewards,
    value_after,
    whiten,
)

BLOG = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])


def batch(lengths: list[int], width: int, seed: int = 0) -> dict[str, Tensor]:
    """Random KL, values and scores of rows of these lengths; every second row was cut off before its end."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {
        "kl": torch.randn(len(lengths), width, generator=generator) * mask,
        "scores": torch.randn(len(lengths), generator=generator),
        "values": torch.randn(len(lengths), width + 1, generator=generator),
        "mask": mask,
        "ended": torch.arange(len(lengths)) % 2 == 0,
    }


def by_returns(rewards: list[float], values: list[float], after: float, gamma: float, lam: float) -> list[float]:
    """GAE as the mixture of n-step returns: A = (1 - lam) sum_n lam^(n-1) (G_n - V), the rest on the last one."""
    result = []
    for t in range(len(rewards)):
        left, total = len(rewards) - t, 0.0
        for n in range(1, left + 1):
            behind = values[t + n] if t + n < len(values) else after
            g = sum(gamma**i * rewards[t + i] for i in range(n)) + gamma**n * behind
            total += (lam ** (n - 1) if n == left else (1 - lam) * lam ** (n - 1)) * (g - values[t])
        result.append(total)
    return result


# --- GAE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.97, 1.0)])
def test_gae_is_the_mixture_of_n_step_returns_on_response_tokens_alone(gamma: float, lam: float) -> None:
    """Rows with padding behind and holes inside: only trained tokens count, one gamma and one lambda for each."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    steps = torch.rand(6, 9, generator=generator) < 0.6
    steps[0], steps[1] = True, torch.arange(9) < 4
    after = torch.randn(6, generator=generator)
    advantages = gae(rewards, values, steps, gamma, lam, after)
    for row in range(6):
        r, v = rewards[row][steps[row]].tolist(), values[row][steps[row]].tolist()
        expected = torch.tensor(by_returns(r, v, after[row].item(), gamma, lam))
        assert torch.allclose(advantages[row][steps[row]], expected, atol=1e-5)
        assert (advantages[row][~steps[row]] == 0).all()


def test_a_hole_in_a_row_discounts_nothing() -> None:
    """Two turns of the policy with another's three tokens between them are as one row of its own tokens."""
    rewards, values = torch.tensor([[0.1, 0.2, 0.3, 1.0]]), torch.tensor([[0.5, -0.5, 0.25, 0.75]])
    whole = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), 0.9, 0.8)
    place = torch.tensor([0, 1, 5, 6])
    wide_rewards, wide_values, steps = torch.full((1, 7), 9.0), torch.full((1, 7), -9.0), torch.zeros(1, 7).bool()
    wide_rewards[:, place], wide_values[:, place], steps[:, place] = rewards, values, True
    assert torch.equal(gae(wide_rewards, wide_values, steps, 0.9, 0.8)[:, place], whole)


def test_gamma_and_lambda_of_1_give_the_return_minus_the_value() -> None:
    some = batch([5, 3, 1], 5)
    rewards, steps = per_token_rewards(some["kl"], some["scores"], some["mask"], some["ended"], 0.1)
    advantages = gae(rewards, some["values"], steps, 1.0, 1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(advantages, (to_come - some["values"]) * steps, atol=1e-6)


def test_gamma_is_1_unless_said_otherwise() -> None:
    assert Options().gamma == 1.0


def test_padding_columns_change_nothing() -> None:
    options = Options(lam=0.95, terminal="after_end", whiten_rewards=True)
    some = batch([4, 2, 3], 4)
    narrow = episode_targets(**some, beta=0.1, options=options)
    wide = {name: some[name] for name in ("scores", "ended")}
    wide |= {name: torch.nn.functional.pad(some[name], (0, 3), value=v) for name, v in (("kl", 7.0), ("values", -7.0))}
    wide["mask"] = torch.nn.functional.pad(some["mask"], (0, 3))
    padded = episode_targets(**wide, beta=0.1, options=options)
    for name in ("rewards", "advantages", "returns", "value_mask"):
        one, other = getattr(narrow, name), getattr(padded, name)
        assert torch.equal(other[:, : one.shape[1]], one), name
        assert not other[:, one.shape[1] :].any(), name


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", ["at_end", "after_end"])
def test_rewards_sum_to_the_score_minus_beta_times_the_kl(terminal: str) -> None:
    """The score is added exactly once; numbers that float32 holds exactly, so that the sums are equal to the bit."""
    some = batch([4, 2, 3, 1], 4)
    kl, scores = (some["kl"] * 8).round() / 8, (some["scores"] * 8).round() / 8
    rewards, steps = per_token_rewards(kl, scores, some["mask"], some["ended"], 0.25, terminal, "none")
    assert torch.equal(rewards.sum(1), scores - 0.25 * kl.sum(1))
    assert not rewards[~steps].any()


def test_a_policy_that_is_its_reference_gets_the_score_alone() -> None:
    some = batch([4, 2, 3], 4)
    rewards, _ = per_token_rewards(some["kl"] * 0, some["scores"], some["mask"], some["ended"], 5.0, "at_end", "none")
    assert torch.equal(rewards.gather(1, last_token(some["mask"])[:, None])[:, 0], some["scores"])
    assert (rewards != 0).sum() == 3


def test_the_score_stands_at_the_end_token_or_one_after_it() -> None:
    kl, scores = torch.zeros(3, 4), torch.tensor([2.0, 3.0, 4.0])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    ended = torch.tensor([True, True, False])
    at, steps = per_token_rewards(kl, scores, mask, ended, 0.1, "at_end", "none")
    assert at.tolist() == [[0, 2, 0, 0, 0], [0, 0, 0, 3, 0], [0, 0, 0, 4, 0]]
    assert torch.equal(steps[:, :4], mask) and not steps[:, 4].any()
    after, steps = per_token_rewards(kl, scores, mask, ended, 0.1, "after_end", "none")
    assert after.tolist() == [[0, 0, 2, 0, 0], [0, 0, 0, 0, 3], [0, 0, 0, 4, 0]]  # cut off: paid at its last token
    assert steps.sum(1).tolist() == [3, 5, 4]


def test_terminal_index_is_the_same_for_lambda_1_and_differs_by_its_closed_form_else() -> None:
    """Both identities of the option: advantages agree for gamma = lambda = 1; else the end token tells them apart."""
    some = batch([4, 2, 5, 1], 5)
    some["ended"] = torch.ones(4, dtype=torch.bool)

    def advantages(terminal: str, gamma: float, lam: float) -> Tensor:
        options = Options(gamma, lam, terminal, "none", whiten_advantages=False)
        return episode_targets(**some, beta=0.1, options=options).advantages

    assert torch.allclose(advantages("at_end", 1, 1), advantages("after_end", 1, 1), atol=1e-6)
    for gamma, lam in ((1.0, 0.95), (0.9, 0.8)):
        end = last_token(some["mask"])[:, None]
        difference = (advantages("at_end", gamma, lam) - advantages("after_end", gamma, lam)).gather(1, end)[:, 0]
        v = value_after(some["values"], some["mask"])
        expected = (1 - gamma * lam) * some["scores"] - gamma * (1 - lam) * v
        assert torch.allclose(difference, expected, atol=1e-6)
        assert difference.abs().min() > 1e-3


def test_the_score_after_the_end_is_not_lost() -> None:
    """It reaches every token of the response through GAE, also with lambda below 1."""
    some = batch([4, 3], 4)
    some["ended"] = torch.ones(2, dtype=torch.bool)
    options = Options(lam=0.95, terminal="after_end", whiten_advantages=False)
    low = episode_targets(**some, beta=0.1, options=options).advantages
    high = episode_targets(**some | {"scores": some["scores"] + 1}, beta=0.1, options=options).advantages
    steps_left = torch.tensor([[4, 3, 2, 1], [3, 2, 1, 0]])
    assert torch.allclose(high - low, 0.95**steps_left * some["mask"], atol=1e-6)


def test_after_end_is_trls_padded_loop() -> None:
    """TRL 1.12 and N+, written down as they are: R columns, `padding_mask_p1`, values 0 behind it."""
    some = batch([3, 5, 2, 4], 6)  # all shorter than the batch is wide: there TRL and we agree
    some["ended"] = torch.ones(4, dtype=torch.bool)
    ours = episode_targets(**some, beta=0.05, options=Options(1.0, 0.95, "after_end", "none", unbiased=True))
    idx, last = torch.arange(6).repeat(4, 1), last_token(some["mask"])[:, None]
    padding_mask, padding_mask_p1 = idx > last, idx > last + 1
    values = some["values"][:, :6].masked_fill(padding_mask_p1, 0)
    rewards = -0.05 * some["kl"]
    rewards[torch.arange(4), last[:, 0] + 1] += some["scores"]
    lastgaelam, reverse = 0.0, []
    for t in reversed(range(6)):
        nextvalues = values[:, t + 1] if t < 5 else 0.0
        lastgaelam = rewards[:, t] + nextvalues - values[:, t] + 0.95 * lastgaelam
        reverse.append(lastgaelam)
    advantages = torch.stack(reverse[::-1], dim=1)
    assert torch.allclose(ours.returns[:, :6], (advantages + values) * ~padding_mask_p1, atol=1e-6)
    inside = advantages[~padding_mask]
    whitened = (advantages - inside.mean()) * torch.rsqrt(inside.var() + 1e-8)
    assert torch.allclose(ours.advantages, whitened.masked_fill(padding_mask, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("missing", "paid"), [("subtract", 0.75 - 2.0), ("replace", -2.0), ("none", 0.75), ("bootstrap", 0.0)]
)
def test_a_response_without_its_end_is_paid_as_configured(missing: str, paid: float) -> None:
    kl, scores = torch.zeros(2, 3), torch.tensor([0.75, 0.75])
    mask, ended = torch.ones(2, 3).bool(), torch.tensor([True, False])
    rewards, _ = per_token_rewards(kl, scores, mask, ended, 0.1, "at_end", missing, 2.0)
    assert rewards[0].tolist() == [0, 0, 0.75, 0]
    assert rewards[1].tolist() == [0, 0, paid, 0]


def test_bootstrap_takes_a_cut_episode_as_going_on() -> None:
    """Closed forms for lambda = 1: penalised, A = -sum beta kl + score - penalty - V; bootstrapped, V after instead."""
    some = batch([3, 3], 3)  # row 1 was cut off
    to_come = (-0.1 * some["kl"]).flip(1).cumsum(1).flip(1)

    def advantages(missing: str) -> Tensor:
        options = Options(1.0, 1.0, "at_end", missing, 1.5, whiten_advantages=False)
        return episode_targets(**some, beta=0.1, options=options).advantages

    v, score = some["values"], some["scores"]
    assert torch.allclose(advantages("bootstrap")[1], to_come[1] + v[1, 3] - v[1, :3], atol=1e-6)
    assert torch.allclose(advantages("subtract")[1], to_come[1] + score[1] - 1.5 - v[1, :3], atol=1e-6)
    for missing in ("bootstrap", "subtract"):
        assert torch.allclose(advantages(missing)[0], to_come[0] + score[0] - v[0, :3], atol=1e-6)


def test_a_cut_response_loses_one_unless_said_otherwise() -> None:
    """And scores of a reward model in float64 are taken as they are."""
    scores, ended = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([True, False])
    rewards, steps = per_token_rewards(torch.zeros(2, 2), scores, torch.ones(2, 2).bool(), ended, 1)
    assert rewards.tolist() == [[0, 0.5, 0], [0, -0.5, 0]] and rewards.dtype == torch.float32
    assert not steps[:, 2].any()


# --- whitening --------------------------------------------------------------------------------------------------------


def test_whitening_gives_the_figures_of_the_blog() -> None:
    """Huang, Liu, von Werra 2023: tf.moments is the biased variance; torch's default gives 0.1394 ... 3.0606."""
    everywhere = torch.ones(3, 3, dtype=torch.bool)
    biased = whiten(BLOG, everywhere, shift_mean=False)
    expected = [0.0508, 0.4381, 0.8254, 1.2127, 1.6000, 1.9873, 2.3746, 2.7619, 3.1492]
    assert [round(x, 4) for x in biased.flatten().tolist()] == expected
    unbiased = whiten(BLOG, everywhere, shift_mean=False, unbiased=True).flatten()
    assert [round(unbiased[i].item(), 4) for i in (0, -1)] == [0.1394, 3.0606]
    assert not torch.allclose(biased.flatten(), unbiased, atol=1e-2)


def test_whitening_with_and_without_the_mean() -> None:
    values, mask = torch.randn(4, 6) * 3 + 5, torch.rand(4, 6) < 0.7
    inside = values[mask]
    for shift in (True, False):
        got = whiten(values, mask, shift)
        expected = (inside - inside.mean()) / (inside.var(unbiased=False) + 1e-8).sqrt()
        expected = expected if shift else expected + inside.mean()
        assert torch.allclose(got[mask], expected, atol=1e-5)
        assert not got[~mask].any()


@pytest.mark.parametrize("workers", [2, 4])
def test_whitening_is_of_the_global_batch_however_it_is_cut(workers: int) -> None:
    """Each worker holds some rows of unequal length and sees the others' sums alone; the result is the whole's."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(8, 5, generator=generator) * torch.arange(1, 9)[:, None]
    mask = torch.arange(5) < torch.randint(1, 6, (8, 1), generator=generator)
    pieces = list(zip(values.chunk(workers), mask.chunk(workers), strict=True))

    # What accelerator.reduce does, without processes: each round of sums is collected from all workers first.
    def worker_sums(worker: int, known: list[Tensor]) -> Tensor:
        seen = iter(known)

        def reduce(sums: Tensor) -> Tensor:
            got = next(seen, None)
            if got is None:
                raise StopAsyncIteration(sums)
            return got

        try:
            return whiten(*pieces[worker], reduce=reduce)
        except StopAsyncIteration as stop:
            return stop.args[0]

    known: list[Tensor] = []
    for _ in range(2):  # the first round: count and sum; the second: squares
        known.append(torch.stack([worker_sums(worker, known) for worker in range(workers)]).sum(0))
    together = torch.cat([worker_sums(worker, known) for worker in range(workers)])
    assert torch.allclose(together, whiten(values, mask), atol=1e-6)
    alone = torch.cat([whiten(*piece) for piece in pieces])
    assert not torch.allclose(alone, whiten(values, mask), atol=1e-2)


def test_both_whitenings_are_of_all_processes_and_as_unbiased_as_configured() -> None:
    """A second process with the same rows doubles every sum: the unbiased variance is 2 SS / (2 n - 1), not SS/(n - 1).
    """
    some = batch([4, 2, 3], 4)
    plain = episode_targets(**some, beta=0.1, options=Options(whiten_advantages=False))
    options = Options(whiten_rewards=True, whiten_advantages=False, unbiased=True)
    for reduce, double in ((None, 1), (lambda sums: 2 * sums, 2)):
        found = episode_targets(**some, beta=0.1, options=options, reduce=reduce)
        r = plain.rewards[plain.value_mask].double()
        variance = double * (r - r.mean()).square().sum() / (double * len(r) - 1)
        expected = (r - r.mean()) / variance.sqrt() + r.mean()
        assert torch.allclose(found.rewards[plain.value_mask].double(), expected, atol=1e-6)
        white = episode_targets(**some, beta=0.1, options=Options(unbiased=True), reduce=reduce)
        a = plain.advantages[some["mask"]].double()
        variance = double * (a - a.mean()).square().sum() / (double * len(a) - 1)
        assert torch.allclose(white.advantages[some["mask"]].double(), (a - a.mean()) / variance.sqrt(), atol=1e-6)


def test_whitening_of_one_value_and_of_two() -> None:
    mask = torch.tensor([[True, False, False], [False, False, False]])
    assert not whiten(torch.full((2, 3), 4.0), mask).any()
    assert whiten(torch.full((2, 3), 4.0), mask, shift_mean=False)[0, 0] == 4.0
    mask[1, 2] = True  # 1 and 3: mean 2, variance 1 (biased) or 2
    values = torch.tensor([[1.0, 9.0, 9.0], [9.0, 9.0, 3.0]])
    assert whiten(values, mask)[mask].tolist() == pytest.approx([-1.0, 1.0])
    assert whiten(values, mask, unbiased=True)[mask].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_returns_are_made_of_advantages_before_whitening() -> None:
    some = batch([4, 2, 3], 4)
    plain = episode_targets(**some, beta=0.1, options=Options(whiten_advantages=False))
    white = episode_targets(**some, beta=0.1, options=Options(whiten_advantages=True))
    assert torch.equal(plain.returns, white.returns)
    expected = (plain.advantages + some["values"][:, :-1]) * some["mask"]
    assert torch.allclose(plain.returns[:, :-1], expected, atol=1e-6)
    assert torch.equal(white.advantages, whiten(plain.advantages, some["mask"]))
    assert not torch.allclose(white.advantages, plain.advantages, atol=1e-2)


def test_whitened_rewards_keep_their_mean_and_feed_the_advantages() -> None:
    some = batch([4, 2, 3], 4)
    plain = episode_targets(**some, beta=0.1, options=Options(whiten_advantages=False))
    white = episode_targets(**some, beta=0.1, options=Options(whiten_rewards=True, whiten_advantages=False))
    steps = plain.value_mask
    assert torch.allclose(white.rewards[steps].mean(), plain.rewards[steps].mean(), atol=1e-6)
    assert white.rewards[steps].var(unbiased=False).item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(white.advantages, gae(white.rewards, some["values"], steps, 1.0, 0.95)[:, :-1])


# --- degenerate batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "missing", "whitened"),
    list(itertools.product(["at_end", "after_end"], ["subtract", "replace", "none", "bootstrap"], [True, False])),
)
def test_degenerate_batches_are_finite(terminal: str, missing: str, whitened: bool) -> None:
    """All rewards equal, responses of one token, all ended at once, a batch of one."""
    options = Options(terminal=terminal, missing=missing, whiten_rewards=whitened, unbiased=whitened)
    for rows, width, value in ((4, 5, 1.0), (4, 1, 0.0), (1, 1, 0.0), (1, 6, 3.0)):
        for ended in (True, False):
            targets = episode_targets(
                torch.zeros(rows, width),
                torch.full((rows,), value),
                torch.zeros(rows, width + 1),
                torch.ones(rows, width, dtype=torch.bool),
                torch.full((rows,), ended),
                0.1,
                options,
            )
            for tensor in (targets.rewards, targets.advantages, targets.returns):
                assert torch.isfinite(tensor).all()
    assert not whiten(torch.full((3, 2), 4.0), torch.ones(3, 2).bool()).any()  # nothing to tell apart: no advantage
