"""The loop of PPO: exact first steps, cuts that change nothing, kills, degenerate batches, the history."""

import json
import math
from pathlib import Path

import pytest
import torch

from ajuste.core.checkpoints import is_complete
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.learning.rl import ppo as mathematics
from ajuste.learning.rl import rollout, steps
from tasks.rl import loop, recorder
from tasks.rl import ppo as algorithm
from tasks.rl import state as rl_state
from tests.made.tiny_ppo import STOP, config, count, files, run, same, tiny_one, tiny_prompts, weights

torch.set_num_threads(1)
KEYS = {
    "step", "episodes", "score", "score_std", "kl", "k2", "k3", "rlhf_reward", "length", "ended", "repeats",
    "entropy", "beta", "sampler_gap", "sampler_gap_mean", "sampler_gap_p50", "sampler_gap_p90", "sampler_gap_p99",
    "sampler_gap_beyond_clip", "loss", "policy_loss", "value_loss", "approx_kl", "clip_fraction", "ratio_mean",
    "ratio_max", "value_mean", "value_clip_fraction", "grad_norm", "first_ratio_error", "first_approx_kl",
    "first_clip_fraction", "lr",
}  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed run: (outcome, weights, folder)."""
    folder = tmp_path_factory.mktemp("calm")
    outcome, one = run(folder)
    return outcome, weights(one), folder


# --- the first minibatch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_at_the_first_minibatch_ratio_is_1_and_nothing_is_clipped_exactly(tmp_path, temperature, minibatches):
    """Whatever the update: the policy is still the one that sampled. At update 1 it is the reference too."""
    outcome, _ = run(tmp_path, temperature=temperature, minibatches=minibatches)
    for row in outcome.history:
        assert row["first_ratio_error"] == row["first_approx_kl"] == row["first_clip_fraction"] == 0.0
    first, last = outcome.history[0], outcome.history[-1]
    assert first["kl"] == first["k2"] == first["k3"] == 0.0 and first["rlhf_reward"] == first["score"]
    assert last["kl"] != 0 and last["approx_kl"] > 0 and last["ratio_max"] > 1
    assert first["sampler_gap_p50"] <= first["sampler_gap_mean"] <= first["sampler_gap"] < 1e-5


def test_the_value_starts_at_zero_and_learns(calm):
    outcome, trained, _ = calm
    assert outcome.history[0]["value_mean"] != outcome.history[-1]["value_mean"]
    assert trained["value_head.weight"].abs().max() > 0 and tiny_one().value_head.weight.abs().max() == 0


def test_old_log_probs_stay_over_the_epochs(tmp_path, monkeypatch):
    seen, advantages = [], []
    real = mathematics.policy_loss

    def watched(log_probs, old, A, *rest):
        seen.append((tuple(old.flatten().tolist()), log_probs.detach().clone()))
        advantages.append(tuple(A.flatten().tolist()))
        return real(log_probs, old, A, *rest)

    monkeypatch.setattr(mathematics, "policy_loss", watched)
    run(tmp_path, updates=1, epochs=3, minibatches=1, micro_rows=8, batch_rows=8)
    assert len(seen) == 3
    assert sorted(seen[0][0]) == sorted(seen[1][0]) == sorted(seen[2][0])  # in another order of rows
    assert sorted(advantages[0]) == sorted(advantages[2])
    assert not torch.equal(seen[0][1].flatten().sort()[0], seen[2][1].flatten().sort()[0])


# --- cuts -------------------------------------------------------------------------------------------------------------


def gradients(folder: Path, monkeypatch, micro_rows: int) -> dict[str, torch.Tensor]:
    """Those of the first optimiser step."""
    found = {}
    real = steps.Adam.step

    def caught(self, closure=None):
        for number, parameter in enumerate(p for group in self.param_groups for p in group["params"]):
            found.setdefault(number, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
        return real(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(steps.Adam, "step", caught)
        run(folder, updates=1, minibatches=1, micro_rows=micro_rows, max_grad_norm=1e9)
    return found


def test_8x1_4x2_and_1x8_micro_batches_have_the_same_gradients(tmp_path, monkeypatch):
    whole, *cut = (gradients(tmp_path / str(n), monkeypatch, n) for n in (8, 4, 2, 1))
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3
    for other in cut:
        for number, gradient in whole.items():
            assert (gradient - other[number]).abs().max() <= 1e-6


def test_every_prompt_once_a_pass_and_another_order_each(tmp_path):
    prompts, seen = tiny_prompts(12), []

    def watched(asked, responses, mask):
        seen.extend(map(tuple, asked))
        return count(asked, responses, mask)

    run(tmp_path, prompts=prompts, score=watched, updates=3, batch_rows=8)
    assert len(seen) == 24
    passes = [sorted(seen[:8]), sorted(seen[8:16])]
    assert {*map(tuple, prompts)} == {*seen[:8], *[p for p in seen[8:16] if p not in seen[:8]]}
    assert passes[0] != passes[1]


# --- the end of the run -----------------------------------------------------------------------------------------------


def test_history_has_every_figure_once_an_update(calm):
    outcome, _, folder = calm
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert lines == outcome.history and [row["step"] for row in lines] == [1, 2, 3, 4]
    for row in lines:
        assert row.keys() == KEYS and all(math.isfinite(value) for value in row.values())
        assert row["rlhf_reward"] == pytest.approx(row["score"] - row["beta"] * row["kl"], abs=1e-5)
    assert [row["lr"] for row in lines] == pytest.approx([0.003, 0.00225, 0.0015, 0.00075])
    assert json.loads((folder / "progress.json").read_text()) == {"steps": 4}
    assert json.loads((folder / "alarms.json").read_text()) == []


def test_checkpoints_that_can_be_gone_back_to_stay(calm):
    _, _, folder = calm
    assert rl_state.steps(folder) == [0, 3, 4]
    assert all(is_complete(folder / f"checkpoint-{step}") for step in (0, 3, 4))


def test_the_same_run_twice_has_the_same_bytes(calm, tmp_path):
    _, expected, folder = calm
    _, one = run(tmp_path)
    assert same(weights(one), expected) and files(tmp_path) == files(folder)


# --- kills ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no code of ours catches."""


PLACES = [
    (rollout, "sample", 3),
    (algorithm, "episode_targets", 1),
    (mathematics, "policy_loss", 11),
    (loop.recorder, "write", 2),
    (rl_state, "write_history", 4),
    (rl_state, "save_file", 3),
    (rl_state, "seal", 2),
    (rl_state.shutil, "rmtree", 6),
]


@pytest.mark.parametrize(("module", "name", "call"), PLACES, ids=[name for _, name, _ in PLACES])
def test_killed_and_run_again_is_bit_identical(calm, tmp_path, monkeypatch, module, name, call):
    _, expected, folder = calm
    calls = 0
    real = getattr(module, name)

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dies)
        with pytest.raises(Killed):
            run(tmp_path)
    outcome, one = run(tmp_path)
    assert same(weights(one), expected)
    assert files(tmp_path) == files(folder)
    assert [row["step"] for row in outcome.history] == [1, 2, 3, 4]


def test_a_spoilt_checkpoint_does_not_count(calm, tmp_path):
    _, expected, folder = calm
    run(tmp_path)
    (tmp_path / "checkpoint-4/state.json").write_text("{")
    with (tmp_path / "checkpoint-3/state.safetensors").open("r+b") as file:
        file.write(b"\1")
    _, one = run(tmp_path)
    assert same(weights(one), expected) and files(tmp_path) == files(folder)


def test_an_interrupt_saves_after_the_running_update(calm, tmp_path, monkeypatch):
    _, expected, _ = calm
    real = rollout.sample

    def signals(*args, **kwargs):
        if not (tmp_path / "asked").exists() and (tmp_path / "checkpoint-0").exists():
            import os
            import signal

            (tmp_path / "asked").write_text("")
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(rollout, "sample", signals)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoint_every=100)
    assert rl_state.steps(tmp_path) == [0, 1]
    _, one = run(tmp_path, checkpoint_every=100)
    assert same(weights(one), expected)


# --- degenerate batches -----------------------------------------------------------------------------------------------


def all_equal(prompts, responses, mask):
    return torch.full((len(prompts),), 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": all_equal, "whiten_rewards": True},
        {"max_new_tokens": 1},
        {"max_new_tokens": 1, "score": all_equal, "unbiased": True, "whiten_rewards": True},
        {"batch_rows": 1, "minibatches": 1},
        {"batch_rows": 1, "minibatches": 1, "max_new_tokens": 1, "unbiased": True},
        {"missing_end": "bootstrap", "terminal": "after_end"},
        {"prompts": tiny_prompts(1)},
    ],
    ids=["equal", "one token", "equal, one token", "batch of one", "one token in all", "bootstrap", "one prompt"],
)
def test_degenerate_batches_stay_finite(tmp_path, changes):
    outcome, one = run(tmp_path, updates=2, **changes)
    assert len(outcome.history) == 2 and not outcome.alarms
    assert all(torch.isfinite(value).all() for value in weights(one).values())


def test_all_ended_at_once(tmp_path, monkeypatch):
    """Every response is its end token alone."""
    monkeypatch.setattr("tests.made.tiny_ppo.STOP", list(range(1, 64)))
    outcome, one = run(tmp_path, updates=2)
    assert [(row["length"], row["ended"]) for row in outcome.history] == [(1.0, 1.0)] * 2
    assert all(torch.isfinite(value).all() for value in weights(one).values())


def test_no_prompt_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="no prompt left to answer"):
        run(tmp_path, prompts=[])


def test_minibatches_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="batch_rows 2 cannot make 4 minibatches"):
        config(batch_rows=2, minibatches=4)
    with pytest.raises(ValueError, match="needs value `adapter`"):
        config(value_start="reward")


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_record_is_what_happened(calm):
    outcome, _, folder = calm
    assert recorder.updates(folder) == [1, 3]
    episodes, row, settings = recorder.read(folder, 3)
    assert row == rounded(outcome.history[2]) and settings["lam"] == 0.95
    assert len(episodes.prompts) == 8 and all(prompt in tiny_prompts() for prompt in episodes.prompts)
    paid = episodes.scores - row["beta"] * episodes.kl.sum(1)
    assert torch.allclose(episodes.rewards.sum(1), paid, atol=1e-5)
    assert (episodes.kl.sum(1).mean() - row["kl"]).abs() < 1e-5
    mean = episodes.advantages[episodes.mask].mean()
    assert mean.abs() < 1e-5 and not episodes.advantages[~episodes.mask].any()
    assert not torch.equal(episodes.new_log_probs, episodes.log_probs)
    gap = (episodes.log_probs - episodes.drawn)[episodes.mask].abs()
    assert 0 < gap.max() < 1e-5 and row["sampler_gap"] == rounded(float(gap.max()))


def test_a_record_that_is_not_there_is_one_line(calm, tmp_path):
    _, _, folder = calm
    with pytest.raises(UsageError, match="update 2 was not recorded: there are 1, 3"):
        recorder.read(folder, 2)
    with pytest.raises(UsageError, match="holds no recorded update"):
        recorder.read(tmp_path, 1)
    flight = tmp_path / "flight"
    flight.mkdir()
    (flight / "update-0001.json").write_text("{}")
    (flight / "update-0001.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="cannot be read"):
        recorder.read(tmp_path, 1)


def test_a_value_adapter_of_its_own_learns_and_resumes(tmp_path):
    _, one = run(tmp_path / "a", one=tiny_one(value="adapter"), updates=2, value="adapter")
    expected = weights(one)
    assert any(name.startswith("value.") and "lora_B" in name and value.any() for name, value in expected.items())
    run(tmp_path / "b", one=tiny_one(value="adapter"), updates=1, value="adapter", lr=0.003)
    _, one = run(tmp_path / "a", one=tiny_one(value="adapter"), updates=2, value="adapter")
    assert same(weights(one), expected)


def test_ptx_adds_the_supervised_gradient(tmp_path):
    drawn = []
    one = tiny_one()

    def ptx(positions):
        drawn.append(positions)
        return 3 * sum(parameter.pow(2).sum() for parameter in one.policy_parameters()), 3

    outcome = loop.train(
        one, config().algorithm(), tiny_prompts(), count, config(ptx=1.0), 0, tmp_path, STOP, None, ptx
    )
    assert drawn[:3] == [range(2), range(2, 4), range(4, 6)] and all(row["ptx_loss"] > 0 for row in outcome.history)


def test_the_peak_of_the_gold_score_is_kept(tmp_path):
    """The radar's second look is the best: its weights come back, and update 0 never wins."""
    golds = {0: 9.0, 2: 0.7, 4: 0.6}
    seen = {}
    one = tiny_one()

    def look(update, first):
        seen[update] = weights(one)
        assert (first is None) == (update == 0)
        return {"update": update, "gold": {"value": golds[update]}}, [{"update": update}]

    outcome, _ = run(tmp_path, one=one, look=look, keep="gold")
    assert outcome.kept == 2 and same(weights(one), seen[2]) and not same(seen[2], seen[4])
    assert [sample["update"] for sample in outcome.samples] == [0, 2, 4]
    again, _ = run(tmp_path, one=one, look=look, keep="gold")
    assert again.kept == 2 and again.radar == outcome.radar and same(weights(one), seen[2])
