"""Alarms: a figure beyond its limit stops the run and takes it back to weights that were found good."""

import json

import pytest
import torch

from ajuste.core.errors import UsageError
from ajuste.learning.rl import rollout
from tasks.rl import state as rl_state
from tests.made.tiny_ppo import count, run, same, tiny_one, weights

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"alarm_ratio": 1.0001}, "largest ratio"),
        ({"alarm_value_loss": 1e-9}, "value loss"),
        ({"alarm_kl": 1e-6}, "KL to the reference"),
        ({"alarm_kl": 5.0}, None),
    ],
)
def test_alarms_stop_and_go_back_to_weights_that_were_found_good(tmp_path, capsys, limits, said):
    outcome, one = run(tmp_path, **limits)
    alarms = json.loads((tmp_path / "alarms.json").read_text())
    assert alarms == outcome.alarms
    if said is None:
        assert not alarms and len(outcome.history) == 4
        return
    (alarm,) = alarms
    (key,) = limits
    assert alarm["alarm"] == key and said in alarm["said"]
    assert f"ALARM, PPO stops: {alarm['said']}" in capsys.readouterr().err
    back = alarm["rolled_back_to"]
    # what a rollout shows was learnt before; what learning shows is this update's
    assert back == max(0, alarm["update"] - (2 if key == "alarm_kl" else 1))
    assert [row["step"] for row in outcome.history] == list(range(1, back + 1)) and outcome.kept == back
    reached, _ = run(tmp_path / "as far", updates=4, **dict.fromkeys(limits)) if back else (None, None)
    if not back:
        assert same(weights(one), weights(tiny_one()))
    else:
        assert reached.history[:back] == outcome.history


def test_an_alarm_late_in_the_run_brings_back_the_weights_of_then(tmp_path, monkeypatch):
    """The policy after update 1 was found good by the rollout of update 2; update 3's rollout accuses update 2."""
    kept = {}
    real = rl_state.State.save

    def watched(state, folder):
        real(state, folder)
        kept[state.update] = weights(state.one)

    monkeypatch.setattr(rl_state.State, "save", watched)
    scores = iter([0.0] * 2 + [float("nan")])

    def breaks(prompts, responses, mask):
        return count(prompts, responses, mask) + next(scores)

    outcome, one = run(tmp_path, score=breaks, micro_rows=8, minibatches=1)
    assert outcome.alarms[0]["alarm"] == "finite" and outcome.alarms[0]["figure"] == "score"
    assert outcome.alarms[0]["rolled_back_to"] == 1 and same(weights(one), kept[1])
    again, one = run(tmp_path, score=lambda *batch: count(*batch) * torch.nan, micro_rows=8, minibatches=1)
    assert again.alarms == outcome.alarms and same(weights(one), kept[1])


def test_an_alarm_before_anything_was_learnt_is_a_wrong_limit(tmp_path):
    with pytest.raises(UsageError, match=r"update 1: the entropy is .* set `ppo.alarm_entropy`"):
        run(tmp_path, alarm_entropy=50.0)


def test_a_sampler_of_other_weights_is_an_alarm(tmp_path, monkeypatch):
    """From update 3 on the sampler's log-probabilities are half a nat off: the mean shows it, and nothing else does."""
    real, calls = rollout.sample, []

    def stale(*args):
        found = real(*args)
        calls.append(1)
        return found._replace(log_probs=found.log_probs - 0.5) if len(calls) >= 3 else found

    monkeypatch.setattr(rollout, "sample", stale)
    outcome, _ = run(tmp_path, alarm_sampler_gap=0.2)
    (alarm,) = outcome.alarms
    assert alarm["alarm"] == "alarm_sampler_gap" and alarm["update"] == 3 and alarm["rolled_back_to"] == 1
    assert alarm["value"] == pytest.approx(0.5, abs=1e-5)
    said = "sampler and trainer differ by 0.5 nats a token; the limit `alarm_sampler_gap` is 0.2"
    assert alarm["said"] == f"update 3: {said}"
    assert alarm["row"]["sampler_gap_beyond_clip"] == 1.0


def test_repeated_text_is_an_alarm(tmp_path):
    """A policy that only ever says one token."""
    one = tiny_one()

    def loops(*args, **kwargs):
        found = real(*args, **kwargs)
        return found._replace(responses=torch.full_like(found.responses, 7)) if one.value_head.bias.item() else found

    real = rollout.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "sample", loops)
        outcome, _ = run(tmp_path, one=one, alarm_repeats=0.5)
    assert outcome.alarms[0]["alarm"] == "alarm_repeats" and outcome.alarms[0]["update"] == 2
