"""The loop with a second algorithm that nobody but this test knows: the room for GRPO and RLOO is there.

The algorithm is tests/made/reinforce.py, its config the loop's own keys alone, its score a rule.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ajuste.core.errors import UsageError
from ajuste.learning.rl import rollout
from tasks.rl import loop, recorder
from tasks.rl.clock import Clock
from tasks.rl.config import SamplesConfig
from tasks.rl.learn import total
from tests.made.reinforce import Reinforce
from tests.made.tiny_ppo import CONFIG, STOP, count, files, same, tiny_one, tiny_prompts, weights

torch.set_num_threads(1)


def config(**changes: object) -> SamplesConfig:
    """The keys of the loop; PPO's own are unknown to it."""
    known = {key: value for key, value in CONFIG.items() if key in SamplesConfig.model_fields}
    return SamplesConfig(**{**known, "epochs": 1, "minibatches": 1, **changes})


def run(folder: Path, one=None, score=count, group: int = 4, clock: Clock | None = None, **changes: object):
    """(outcome, the models it trained)."""
    one, settings = one or tiny_one(), config(**changes)
    outcome = loop.train(one, Reinforce(group), tiny_prompts(), score, settings, 0, folder, STOP, clock=clock)
    return outcome, one


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory):
    """An undisturbed run: (outcome, weights, folder)."""
    folder = tmp_path_factory.mktemp("calm")
    outcome, one = run(folder)
    return outcome, weights(one), folder


def test_ppos_own_keys_are_not_the_loops() -> None:
    assert not {"gamma", "lam", "clip", "vf_coef", "value", "alarm_value_loss"} & SamplesConfig.model_fields.keys()
    with pytest.raises(ValueError, match="clip"):
        SamplesConfig(**CONFIG)


def test_it_learns_what_is_rewarded(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, updates=12, batch_rows=16, micro_rows=16, lr=0.02, beta=0.0, kl_control="fixed")
    scores = [row["score"] for row in outcome.history]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.5, scores


def test_a_prompt_is_answered_group_times_in_a_row_and_every_prompt_once_a_pass(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def watched(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
        asked.extend(prompts)
        return count(prompts, responses, mask)

    run(tmp_path, score=watched, updates=6, batch_rows=8, micro_rows=8, record=[1])
    of_pass = sorted(map(tuple, asked))
    assert of_pass == sorted(tuple(prompt) for prompt in tiny_prompts() for _ in range(4))  # 6 updates of 2 prompts
    episodes = recorder.read(tmp_path, 1).episodes
    assert all(episodes.prompts[i] == episodes.prompts[i - i % 4] for i in range(8))
    assert any(not torch.equal(episodes.responses[0], row) for row in episodes.responses[1:4])


def test_the_first_step_is_the_gradient_of_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recorded responses alone, with transformers' forward a row at a time."""
    gradients: list[Tensor] = []

    def caught(self: torch.optim.Optimizer) -> None:
        gradients.extend(parameter.grad for parameter in self.param_groups[0]["params"])

    monkeypatch.setattr(loop.steps.Adam, "step", caught)
    run(tmp_path, updates=1, record=[1], max_grad_norm=None, micro_rows=3)
    episodes, one = recorder.read(tmp_path, 1).episodes, tiny_one()
    scores = count(*episodes.batch())
    loss, tokens = torch.zeros(()), int(episodes.mask.sum())
    for i, prompt in enumerate(episodes.prompts):
        answer = episodes.responses[i][episodes.mask[i]]
        ids = torch.cat([torch.tensor(prompt), answer])[None]
        log_p = one.model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        mean = scores[i - i % 4 : i - i % 4 + 4].mean()
        loss = loss - (scores[i] - mean) * log_p.gather(1, answer[:, None]).sum() / tokens
    expected = torch.autograd.grad(loss, one.policy_parameters())
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, other, atol=1e-5)


def test_history_and_record_hold_what_this_algorithm_has(calm) -> None:
    outcome, trained, folder = calm
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert lines == outcome.history and len(lines) == 4
    assert {"score", "kl", "policy_loss", "nats", "first_ratio_error"} <= lines[0].keys()
    assert not {"value_loss", "ratio_max", "first_clip_fraction"} & lines[0].keys()
    assert all(row["loss"] == pytest.approx(row["policy_loss"]) and row["first_ratio_error"] == 0 for row in lines)
    flight = recorder.read(folder, 3)
    assert flight.settings == {"temperature": 1.0, "group": 4} and flight.episodes.value_mask is None
    assert not trained["value_head.weight"].any()  # nothing moved the critic, since nothing reads it


def test_killed_and_run_again_is_bit_identical(calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, folder = calm
    calls, real = 0, rollout.sample

    def dies(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise SystemError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "sample", dies)
        with pytest.raises(SystemError):
            run(tmp_path)
    _, one = run(tmp_path)
    assert same(weights(one), expected) and files(tmp_path) == files(folder)


def test_alarms_name_the_algorithm_and_go_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome, one = run(tmp_path / "a", alarm_kl=1e-9)
    assert outcome.alarms[0]["rolled_back_to"] == 0 and same(weights(one), weights(tiny_one()))
    assert "ALARM, REINFORCE stops: update 2" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"set `reinforce.alarm_entropy` in params.yaml"):
        run(tmp_path / "b", alarm_entropy=50.0)


def test_a_batch_that_cuts_a_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_rows 8 cannot be cut into 1 processes, groups of 3 responses"):
        run(tmp_path, group=3)


class Laps(Clock):
    """What a benchmark would know: the phases of each update, without a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.laps: list[set[str]] = []

    def update(self):
        self.laps.append(set(self.seconds))
        return super().update()


def test_a_clock_that_is_given_sees_every_update_and_phase(tmp_path: Path) -> None:
    clock = Laps()
    outcome, _ = run(tmp_path, updates=3, clock=clock)
    assert clock.laps == [set(), {"rollout", "score", "learn"}, {"rollout", "score", "learn"}]
    assert outcome.seconds == dict(clock.seconds)
    assert outcome.tokens == clock.tokens == sum(round(row["length"] * 8) for row in outcome.history)


def test_a_term_without_weight_is_left_out_also_when_it_is_no_number() -> None:
    one, two, none = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(torch.nan)
    assert total({"policy_loss": (1.0, one), "value_loss": (0.1, two)}).item() == pytest.approx(1.2)
    assert total({"policy_loss": (1.0, one), "value_loss": (0.0, none)}).item() == 1.0


def test_an_interrupt_saves_after_the_running_update(calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, _ = calm
    real = rollout.sample

    def signals(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "sample", signals)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, checkpoint_every=100)
    assert (tmp_path / "checkpoint-1").is_dir()
    _, one = run(tmp_path, checkpoint_every=100)
    assert same(weights(one), expected)
