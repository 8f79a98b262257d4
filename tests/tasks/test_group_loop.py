"""GRPO and RLOO in the loop: no value function anywhere, groups that judge themselves, and sums that cut anywhere."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ajuste.learning.rl import group as groups
from ajuste.models.one_base import Settings
from tasks.rl import explain, loop, recorder
from tests.made.tiny_group import Table, config, run
from tests.made.tiny_ppo import count, same, tiny_one, weights

torch.set_num_threads(1)
METHODS = ("grpo", "rloo")
PROMPTS = [[1, 0], [1, 3], [1, 4], [1, 5], [3, 1]]
TABLE = {"updates": 3, "batch_rows": 8, "minibatches": 1, "micro_rows": 8, "max_new_tokens": 4, "lr": 0.05,
         "record": [1, 2], "kl_control": "fixed", "beta": 0.1, "max_grad_norm": None}  # fmt: skip


def liked(prompts: list, responses: Tensor, mask: Tensor) -> Tensor:
    return (responses * mask).sum(1).float()


def table(folder: Path, method: str, score=liked, **changes):
    return run(folder, method, Table(), PROMPTS, score, **{**TABLE, **changes})


# --- no value function ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_value_function_is_there(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list] = []
    real = loop.steps.Adam.__init__

    def watched(self, params, *rest, **more) -> None:
        seen.append(params)
        real(self, params, *rest, **more)

    monkeypatch.setattr(loop.steps.Adam, "__init__", watched)
    outcome, one = run(tmp_path, method, updates=1, record=[1])
    ((only,),) = seen
    assert only["params"] == one.policy_parameters() and one.value_parameters() == []
    assert one.value_head is None and one.reward_head is None
    assert {name.partition(".")[0] for name in weights(one)} == {"policy"}
    recorded = recorder.read(tmp_path, 1).episodes
    assert recorded.values is recorded.returns is recorded.value_mask is None
    assert not {name for name in outcome.history[0] if "value" in name}
    trained, before = weights(one), weights(tiny_one(value="none"))
    assert any(not torch.equal(trained[name], before[name]) for name in trained)


def test_a_policy_without_values_says_what_one_with_values_says() -> None:
    prompts, responses = [[1, 9, 10], [1, 9, 11, 12]], torch.tensor([[5, 6, 2], [7, 2, 0]])
    mask = torch.tensor([[True] * 3, [True, True, False]])
    with_values, without = (tiny_one(value=value).policy_and_values(prompts, responses, mask, 0.7)
                            for value in ("trunk", "none"))  # fmt: skip
    assert torch.equal(with_values[0], without[0]) and torch.equal(with_values[1], without[1])
    assert with_values[2].shape == (2, 4) and without[2] is None


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_groups_advantages_sum_to_0_and_stand_on_every_token(method: str, tmp_path: Path) -> None:
    table(tmp_path, method)
    episodes = recorder.read(tmp_path, 1).episodes
    A = episodes.advantages[:, 0]
    assert torch.equal(episodes.advantages, A[:, None] * episodes.mask) and A.abs().max() > 0.1
    assert A.view(-1, 4).sum(1).abs().max() < 1e-5
    assert torch.allclose(episodes.kl, (episodes.log_probs - episodes.reference) * episodes.mask)
    paid = episodes.scores - (0.1 if method == "rloo" else 0.0) * episodes.kl.sum(1)
    assert torch.allclose(episodes.rewards.sum(1), paid, atol=1e-5)
    expected = groups.leave_one_out(paid, 4) if method == "rloo" else groups.group_advantages(paid, 4, "std")
    assert torch.allclose(A, expected, atol=1e-4)


def test_where_the_kl_is_paid(tmp_path: Path) -> None:
    """In the loss it is a term, at its price; in the reward it is in what a response is paid."""
    flights = {}
    for place in ("loss", "reward"):
        outcome, _ = table(tmp_path / place, "grpo", kl_in=place)
        flights[place] = outcome.history[0], recorder.read(tmp_path / place, 1).episodes
    row, episodes = flights["loss"]
    assert torch.equal(episodes.rewards.sum(1), episodes.scores) and episodes.betas.tolist() == pytest.approx([0.1] * 8)
    assert row["loss"] == pytest.approx(row["policy_loss"] + 0.1 * row["kl_loss"]) and row["kl_loss"] > 0
    row, episodes = flights["reward"]
    assert "kl_loss" not in row and row["loss"] == row["policy_loss"] and not episodes.betas.any()
    assert torch.allclose(episodes.rewards.sum(1), episodes.scores - 0.1 * episodes.kl.sum(1), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_groups_without_variance_are_counted(method: str, tmp_path: Path) -> None:
    """Every response that answers a prompt of odd id gets the same score."""

    def score(prompts: list, responses: Tensor, mask: Tensor) -> Tensor:
        flat = torch.tensor([prompt[-1] % 2 == 1 for prompt in prompts])
        return torch.where(flat, torch.tensor(0.3), liked(prompts, responses, mask) + torch.arange(len(prompts)))

    outcome, _ = table(tmp_path, method, score, updates=5)
    flat = [sum(prompt[-1] % 2 == 1 for prompt in recorder.read(tmp_path, update).episodes.prompts) / 8
            for update in (1, 2)]  # fmt: skip
    assert [row["flat_groups"] for row in outcome.history[:2]] == flat
    assert {row["flat_groups"] for row in outcome.history} > {0.5}
    assert all({"grad_norm", "entropy", "clip_fraction", "kl", "score"} <= row.keys() for row in outcome.history)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_cut_into_micro_batches_changes_nothing(method: str, tmp_path: Path) -> None:
    """1 x 8 = 2 x 4 = 8 x 1, weights and figures."""
    found = {}
    for rows in (8, 4, 1):
        outcome, one = table(tmp_path / str(rows), method, micro_rows=rows)
        assert set(one.batches) == {rows}
        found[rows] = one.policy.detach(), outcome.history
    for rows in (4, 1):
        assert torch.allclose(found[8][0], found[rows][0], atol=1e-6)
        for left, right in zip(found[8][1], found[rows][1], strict=True):
            assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
    assert (found[8][0] - Table().policy).abs().max() > 0.05


def test_equal_rewards_leave_the_weights_alone_and_a_price_moves_them_by_the_kl(tmp_path: Path) -> None:
    def equal(prompts: list, responses: Tensor, mask: Tensor) -> Tensor:
        return torch.full((len(prompts),), 0.1)

    for method in METHODS:
        outcome, one = table(tmp_path / method, method, equal, beta=0.0)
        assert torch.equal(one.policy, Table().policy), method
        assert all(row["grad_norm"] == 0 and row["flat_groups"] == 1 for row in outcome.history)
    outcome, one = table(tmp_path / "price", "grpo", equal, updates=1, epochs=1, record=[1])
    episodes, other = recorder.read(tmp_path / "price", 1).episodes, Table()
    log_probs = other.policy_and_values(*episodes.batch(), 1.0)[0]
    k3 = torch.exp(episodes.reference - log_probs) - 1 - (episodes.reference - log_probs)
    (0.1 * (k3 * episodes.mask).sum(1) / episodes.mask.sum(1)).mean().backward()
    assert outcome.history[0]["grad_norm"] == pytest.approx(other.policy.grad.norm().item(), rel=1e-5)
    assert outcome.history[0]["policy_loss"] == 0 and not torch.equal(one.policy, Table().policy)


@pytest.mark.parametrize(("method", "mean"), [("grpo", "sequence"), ("grpo", "token"), ("grpo", "constant"),
                                              ("rloo", "sequence")])  # fmt: skip
def test_the_first_step_is_the_gradient_of_the_formula(
    method: str, mean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the recorded responses alone, with transformers' forward a row at a time; the reference is the start."""
    gradients: list[Tensor] = []
    monkeypatch.setattr(loop.steps.Adam, "step",
                        lambda self: gradients.extend(x.grad for x in self.param_groups[0]["params"]))  # fmt: skip
    changes = {"mean": mean} if method == "grpo" else {}
    run(tmp_path, method, updates=1, minibatches=1, epochs=1, record=[1], max_grad_norm=None, micro_rows=3, **changes)
    episodes, one = recorder.read(tmp_path, 1).episodes, tiny_one(value="none")
    scores, sizes = count(*episodes.batch()).view(-1, 4), episodes.mask.sum(1)
    A = scores - scores.mean(1, keepdim=True)
    A = (A * 4 / 3 if method == "rloo" else A / (scores.std(1, keepdim=True) + 1e-4)).flatten()
    loss = torch.zeros(())
    for i, prompt in enumerate(episodes.prompts):
        answer = episodes.responses[i][episodes.mask[i]]
        ids = torch.cat([torch.tensor(prompt), answer])[None]
        log_p = one.model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1].gather(1, answer[:, None]).sum()
        by = {"sequence": sizes[i] * 8, "token": sizes.sum(), "constant": torch.tensor(6 * 8)}[mean]
        loss = loss - A[i] * log_p / (8 if method == "rloo" else by)
    expected = torch.autograd.grad(loss, one.policy_parameters())
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, other, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_run_again_is_bit_identical(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real, calls = loop.learn, []

    def dies(*args: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return real(*args)

    outcome, whole = table(tmp_path / "whole", method, minibatches=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", dies)
        with pytest.raises(Killed):
            table(tmp_path / "killed", method, minibatches=2)
    again, one = table(tmp_path / "killed", method, minibatches=2)
    assert same(one.trainable_state(), whole.trainable_state()) and again.history == outcome.history


# --- what is said -----------------------------------------------------------------------------------------------------


def test_whole_groups_are_asked_for() -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match="batch_rows 8 are no whole groups of 3: make it a multiple"):
            config(method, group=3)
    assert config(group=8).algorithm().group == 8


def test_settings_say_how_the_numbers_were_made() -> None:
    keys = {"group": 2, "scale": "none", "mean": "constant", "clip_low": 0.1, "clip_high": 0.3, "kl_in": "reward"}
    algorithm = config(**keys).algorithm()
    assert algorithm.settings() == keys | {"baseline": "mean", "ratio": "token"}
    assert (algorithm.name, algorithm.clip, algorithm.longest) == ("grpo", 0.1, 6)
    other = config("rloo", clip_low=0.3).algorithm()
    assert other.settings() == {"group": 4, "baseline": "others", "scale": "none", "ratio": "sequence",
                                "mean": "sequence", "clip_low": 0.3, "clip_high": 0.2, "kl_in": "reward"}  # fmt: skip
    assert other.clip == 0.2


@pytest.mark.parametrize("method", METHODS)
def test_explain_without_values(method: str, tmp_path: Path) -> None:
    """Columns that the algorithm has not are not there, and a response that is one action has one ratio."""
    table(tmp_path, method)
    flight = recorder.read(tmp_path, 2)
    steps = [explain._tokens(flight, i, ["x"] * int(n)) for i, n in enumerate(flight.episodes.mask.sum(1))]
    episodes = [explain.Episode(i, "", "", 0.0, 0.0, 0.0, True, tokens) for i, tokens in enumerate(steps)]
    found = explain.Explained(2, flight.row, flight.settings, episodes, method)
    assert found.columns == ("log π", "log π_ref", "KL", "reward", "advantage", "ratio", "gap")
    page = explain.to_html(found)
    assert f"<h1>{method.upper()}, update 2: score" in page and "groups without variance" in page
    assert "<th>value" not in page
    ratios = [[token.ratio for token in tokens] for tokens in steps]
    moved = [(flight.episodes.new_log_probs[i] - flight.episodes.log_probs[i])[: len(row)] for i, row in
             enumerate(ratios)]  # fmt: skip
    for row, logs in zip(ratios, moved, strict=True):
        expected = logs.sum().exp().expand_as(logs) if method == "rloo" else logs.exp()
        assert row == pytest.approx(expected.tolist(), rel=1e-5)
        assert len(explain.numbers(steps[0][0], found.columns)) == 7


@pytest.mark.parametrize("method", METHODS)
def test_the_policy_is_that_of_the_section(method: str) -> None:
    section = config(method, r=3, alpha=7.0, targets=["q_proj", "down_proj"], float32_head=True)
    assert section.settings() == Settings(3, 7.0, ("q_proj", "down_proj"), value="none", float32_head=True)


def test_a_response_that_was_cut_has_its_score_and_pays_nothing_for_its_end(tmp_path: Path) -> None:
    table(tmp_path, "grpo", updates=1, record=[1], kl_in="loss", max_new_tokens=2)
    episodes = recorder.read(tmp_path, 1).episodes
    assert not episodes.ended.all()
    assert torch.equal(episodes.rewards.sum(1).float(), episodes.scores)
