"""The loop of tasks/rl around a policy that is a table: kills, checkpoints, alarms, radar, records, interrupts.

The same promises as in test_ppo_loop.py and test_ppo_alarms.py, in milliseconds a run and with every figure exact.
"""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from tasks.rl import alarms, loop, recorder, score
from tasks.rl import state as rl_state
from tasks.rl.clock import Clock
from tasks.rl.config import SamplesConfig
from tasks.rl.episodes import Episodes, repeats
from tests.made.bigram import Bigram
from tests.made.tiny_ppo import CONFIG, config, files, same

torch.set_num_threads(1)
PROMPTS = [[1, 0], [1, 3], [1, 4], [1, 5], [3, 1]]
KEYS = {"updates": 4, "batch_rows": 6, "minibatches": 2, "micro_rows": 2, "epochs": 2, "max_new_tokens": 4, "lr": 0.05,
        "record": [1, 3], "radar_every": 2, "kl_control": "hold", "kl_target": 0.05}  # fmt: skip


def liked(prompts: list, responses: Tensor, mask: Tensor) -> Tensor:
    return (responses * mask).sum(1).float()


def run(folder: Path, one: Bigram | None = None, score=liked, prompts=PROMPTS, look=None, extra=None, clock=None,
        seed=0, **keys: object) -> tuple[loop.Outcome, dict[str, Tensor]]:  # fmt: skip
    one, settings = one or Bigram(), config(**{**KEYS, **keys})
    outcome = loop.train(one, settings.algorithm(), prompts, score, settings, seed, folder, [2], look, extra, clock)
    return outcome, one.trainable_state()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[loop.Outcome, dict[str, Tensor], Path]:
    folder = tmp_path_factory.mktemp("calm") / "new" / "folder"
    return *run(folder), folder


def test_what_a_run_leaves(calm: tuple) -> None:
    outcome, weights, folder = calm
    assert not same(weights, Bigram().trainable_state()) and outcome.kept == 4 and not outcome.radar
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == outcome.history
    assert [(row["step"], row["episodes"]) for row in outcome.history] == [(1, 6), (2, 12), (3, 18), (4, 24)]
    assert (folder / "progress.json").read_text() == '{"steps": 4}\n'
    assert json.loads((folder / "alarms.json").read_text()) == outcome.alarms == []
    assert rl_state.steps(folder) == [0, 3, 4] and recorder.updates(folder) == [1, 3]
    assert json.loads((folder / "flight/update-0003.json").read_text()).items() >= {"update": 3}.items()
    numbers = json.loads((folder / "checkpoint-3/state.json").read_text())
    assert set(numbers) == {"update", "cursor", "ptx_cursor", "beta", "processes", "history", "radar", "samples"}
    assert (numbers["update"], numbers["cursor"], numbers["processes"]) == (3, 18, 1)
    assert numbers["history"] == outcome.history[:3]


def test_checkpoints_stand_where_they_are_due(tmp_path: Path) -> None:
    run(tmp_path, updates=5, checkpoint_every=2)
    assert rl_state.steps(tmp_path) == [0, 4, 5]
    assert rl_state.resumable(tmp_path) == tmp_path / "checkpoint-5"
    assert rl_state.last_good(tmp_path, 4) == tmp_path / "checkpoint-4"
    assert rl_state.last_good(tmp_path, 3) == tmp_path / "checkpoint-0"
    (tmp_path / "checkpoint-0/COMPLETE").unlink()
    said = f"^{tmp_path} has no whole checkpoint to go back to: remove it and run again$"
    with pytest.raises(UsageError, match=said):
        rl_state.last_good(tmp_path, 3)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("name", "call"), [("answered", 1), ("answered", 3), ("learn", 2), ("learn", 4)])
@pytest.mark.parametrize("every", [1, 3])
def test_killed_and_run_again_is_bit_identical(
    calm: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, every: int
) -> None:
    """Weights, moments, generator, cursors and beta: all come back, whether or not anything was learnt before."""
    real, calls = getattr(loop, name), []

    def dies(*args: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args)

    keys = {"checkpoint_every": every, "ptx": 0.1, "ptx_rows": 3}
    asked: list[int] = []

    def go(folder: Path) -> tuple[loop.Outcome, dict[str, Tensor]]:
        one = Bigram()
        extra = lambda rows: (asked.extend(rows) or one.policy[rows[0] % 6].square().sum(), len(rows))  # noqa: E731
        return run(folder, one, extra=extra, **keys)

    whole, expected = go(tmp_path / "whole")
    assert asked == list(range(48))
    with monkeypatch.context() as patch:
        patch.setattr(loop, name, dies)
        with pytest.raises(Killed):
            go(tmp_path / "killed")
    outcome, found = go(tmp_path / "killed")
    assert same(found, expected) and outcome.history == whole.history
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_another_seed_is_another_run(calm: tuple, tmp_path: Path) -> None:
    assert not same(run(tmp_path, seed=1)[1], calm[1])


def test_a_finished_run_is_not_gone_on_with(calm: tuple, tmp_path: Path) -> None:
    run(tmp_path)
    one = Bigram()
    outcome, weights = run(tmp_path, one)
    assert one.batches == [] and same(weights, calm[1]) and outcome.history == calm[0].history


def test_a_checkpoint_of_other_processes_is_refused(tmp_path: Path) -> None:
    run(tmp_path, updates=1)
    path = tmp_path / "checkpoint-1/state.json"
    path.write_text(path.read_text().replace('"processes": 1', '"processes": 4'))
    rl_state.seal(path.parent)
    said = (f"^{path.parent} was written by 4 processes and this run has 1: start as many, or remove {tmp_path} to "
            "begin again$")  # fmt: skip
    with pytest.raises(UsageError, match=said):
        run(tmp_path, updates=2)


def test_spoilt_checkpoints_do_not_count(calm: tuple, tmp_path: Path) -> None:
    run(tmp_path)
    for step in (3, 4):
        (tmp_path / f"checkpoint-{step}/state.json").write_text("{")
    assert same(run(tmp_path)[1], calm[1]) and files(tmp_path) == files(calm[2])


def test_an_interrupt_saves_after_the_running_update(calm: tuple, tmp_path: Path) -> None:
    asked = []

    def interrupts(*batch: object) -> Tensor:
        if len(asked) == 5:  # in update 2, of four micro-batches each
            os.kill(os.getpid(), signal.SIGINT)
        asked.append(1)
        return liked(*batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, score=interrupts, checkpoint_every=100)
    assert rl_state.steps(tmp_path) == [0, 2] and not (tmp_path / "alarms.json").exists()
    assert same(run(tmp_path, score=interrupts, checkpoint_every=100)[1], calm[1])


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_every_prompt_once_a_pass(tmp_path: Path) -> None:
    seen: list[tuple] = []

    def watched(prompts: list, responses: Tensor, mask: Tensor) -> Tensor:
        seen.extend(map(tuple, prompts))
        return liked(prompts, responses, mask)

    run(tmp_path, score=watched, updates=5, batch_rows=5, minibatches=1, micro_rows=9)
    passes = [seen[i : i + 5] for i in range(0, 25, 5)]
    assert all(sorted(one) == sorted(map(tuple, PROMPTS)) for one in passes)


def test_groups_of_responses_answer_the_same_prompt(tmp_path: Path) -> None:
    from tests.made.reinforce import Reinforce

    seen: list[tuple] = []

    def watched(prompts: list, responses: Tensor, mask: Tensor) -> Tensor:
        seen.append(tuple(map(tuple, prompts)))
        return liked(prompts, responses, mask)

    settings = config(**{**KEYS, "updates": 2, "batch_rows": 6, "minibatches": 1, "micro_rows": 6})
    algorithm = Reinforce(group=3)
    loop.train(Bigram(), algorithm, PROMPTS, watched, settings, 0, tmp_path, [2])
    asked = [sorted(set(batch)) for batch in seen]
    assert all(len(one) == 2 and sorted(batch) == sorted(3 * one) for one, batch in zip(asked, seen, strict=True))
    assert set(asked[0]).isdisjoint(asked[1])  # two prompts an update, each once a pass of five
    with pytest.raises(UsageError, match=", groups of 3 responses and 1 minibatches$"):
        loop._share(algorithm, config(**{**KEYS, "batch_rows": 4, "minibatches": 1}), 1)


@pytest.mark.parametrize(("rows", "processes", "minibatches", "share"), [(6, 2, 3, 3), (6, 4, 1, 0), (6, 3, 3, 0)])
def test_a_batch_is_cut_into_equal_shares_or_refused(rows: int, processes: int, minibatches: int, share: int) -> None:
    settings = config(**{**KEYS, "batch_rows": rows, "minibatches": minibatches})
    if share:
        assert loop._share(settings.algorithm(), settings, processes) == share
        return
    said = f"^ppo: batch_rows {rows} cannot be cut into {processes} processes and {minibatches} minibatches$"
    with pytest.raises(UsageError, match=said):
        loop._share(settings.algorithm(), settings, processes)


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    said = "^there is no prompt left to answer: add prompts, or make max_new_tokens smaller$"
    with pytest.raises(DataError, match=said):
        run(tmp_path, prompts=[])
    with pytest.raises(ValueError, match="batch_rows 6 cannot make 7 minibatches"):
        config(**{**KEYS, "minibatches": 7})
    assert config(**{**KEYS, "minibatches": 6}).minibatches == 6
    for control in ("ziegler", "hold"):
        said = f"beta 0 stays 0 under kl_control `{control}`: start above it, or set `fixed`"
        with pytest.raises(ValueError, match=said):
            config(**{**KEYS, "kl_control": control, "beta": 0.0})
    assert config(**{**KEYS, "kl_control": "fixed", "beta": 0.0}).beta == 0.0
    assert set(SamplesConfig.model_fields) < set(CONFIG)


# --- alarms -----------------------------------------------------------------------------------------------------------


def row_of(**figures: float) -> dict[str, float]:
    return {"score": 0.0, "kl": 1.0, "repeats": 0.1, "entropy": 2.0, **figures}


@pytest.mark.parametrize(("key", "figure", "limit", "over", "said"), [
    ("alarm_kl", "kl", 6.0, 6.5, "KL to the reference is 6.5 nats a response; the limit `alarm_kl` is 6"),
    ("alarm_repeats", "repeats", 0.5, 0.75, "75% of a response's bigrams repeat; the limit `alarm_repeats` is 0.5"),
    ("alarm_ratio", "ratio_max", 50.0, 51.0, "the largest ratio of a token is 51; the limit `alarm_ratio` is 50"),
    ("alarm_value_loss", "value_loss", 10.0, 10.25, "the value loss is 10.25; the limit `alarm_value_loss` is 10"),
    ("alarm_entropy", "entropy", 0.5, 0.25, "the entropy is 0.25 nats a token; the limit `alarm_entropy` is 0.5"),
])  # fmt: skip
def test_a_figure_beyond_its_limit_and_only_beyond(
    key: str, figure: str, limit: float, over: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = config(**{key: limit})
    alarms.check(settings, 7, row_of(**{figure: limit}), 5)
    alarms.check(config(**{key: None}), 7, row_of(**{figure: over}), 5)
    alarms.check(settings, 7, {"score": 1.0}, 5)  # a row without it
    alarms.check(object(), 7, row_of(**{figure: over}), 5)  # an algorithm without such a limit
    with pytest.raises(alarms.Alarm) as found:
        alarms.check(settings, 7, row_of(**{figure: over}), 5)
    alarm = found.value
    assert str(alarm) == f"update 7: {said}"
    assert (alarm.update, alarm.key, alarm.figure, alarm.limit, alarm.last_good) == (7, key, figure, limit, 5)
    assert alarm.value == over and alarm.row == row_of(**{figure: over})
    written = alarms.report(tmp_path, alarm, 4, "ppo")
    assert written == json.loads((tmp_path / "alarms.json").read_text()) == [
        {"update": 7, "alarm": key, "figure": figure, "value": over, "limit": limit, "said": str(alarm),
         "rolled_back_to": 4, "row": row_of(**{figure: over})}
    ]  # fmt: skip
    assert capsys.readouterr().err == f"ALARM, PPO stops: update 7: {said}. Rolled back to update 4.\n"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_an_alarm_and_stays_json(bad: float, tmp_path: Path) -> None:
    with pytest.raises(alarms.Alarm, match=rf"^update 2: grad_norm is {bad}; is no number$") as found:
        alarms.check(config(), 2, row_of(grad_norm=bad), 1)
    assert (found.value.key, found.value.limit) == ("finite", None)
    alarms.report(tmp_path, found.value, 1, "ppo")
    text = (tmp_path / "alarms.json").read_text()
    (written,) = json.loads(text)
    assert written["value"] == written["row"]["grad_norm"] == str(bad) and written["row"]["kl"] == 1.0
    assert text == json.dumps([written], indent=1) + "\n"
    alarms.clear(tmp_path)
    assert (tmp_path / "alarms.json").read_text() == "[]\n"


def test_what_a_rollout_shows_accuses_the_update_before_and_what_learning_shows_this_one(tmp_path: Path) -> None:
    calls = []

    def breaks(*batch: object) -> Tensor:
        calls.append(1)
        return liked(*batch) * (math.nan if len(calls) > 12 else 1.0)  # four micro-batches an update: from the 4th on

    one, kept = Bigram(), {}
    looked = []

    def look(update: int, first: dict | None) -> tuple[dict, list[dict]]:
        kept[update] = one.trainable_state()
        looked.append((update, None if first is None else first["update"]))
        return {"update": update, "gold": {"value": float(update)}}, [{"update": update}]

    outcome, weights = run(tmp_path, one, score=breaks, look=look, radar_every=1, keep="gold")
    (alarm,) = outcome.alarms
    assert (alarm["update"], alarm["alarm"], alarm["figure"], alarm["rolled_back_to"]) == (4, "finite", "score", 2)
    assert same(weights, kept[2]) and outcome.kept == 2
    assert [row["step"] for row in outcome.history] == [1, 2] == [row["update"] for row in outcome.radar[1:]]
    assert (tmp_path / "history.jsonl").read_text().count("\n") == 2
    assert looked == [(0, None), (1, 0), (2, 0), (3, 0)]
    outcome, weights = run(tmp_path / "learning", alarm_value_loss=1e-9)
    assert outcome.alarms[0]["rolled_back_to"] == 0 and same(weights, Bigram().trainable_state())
    assert outcome.history == [] and (tmp_path / "learning/history.jsonl").read_text() == ""


def test_a_rolled_back_run_is_looked_at_where_it_ends(tmp_path: Path) -> None:
    """The radar looks every third update: after the way back to 2 it has not seen these weights yet."""
    calls, looked = [], []

    def breaks(*batch: object) -> Tensor:
        calls.append(1)
        return liked(*batch) * (math.nan if len(calls) > 12 else 1.0)

    def look(update: int, first: dict | None) -> tuple[dict, list[dict]]:
        looked.append(update)
        return {"update": update, "gold": {"value": 1.0}}, []

    outcome, _ = run(tmp_path, score=breaks, look=look, radar_every=3)
    assert looked == [0, 3, 2] and [row["update"] for row in outcome.radar] == [0, 2]


def test_an_alarm_before_anything_was_learnt(tmp_path: Path) -> None:
    said = "^update 1: the entropy is .* is 50, and nothing has been learnt yet: set `ppo.alarm_entropy` in params.yaml"
    with pytest.raises(UsageError, match=said + " to what is usual here$"):
        run(tmp_path, alarm_entropy=50.0)
    said = "^update 1: score is nan; is no number: the very first scores are not finite$"
    with pytest.raises(DataError, match=said):
        run(tmp_path, score=lambda *batch: liked(*batch) * math.nan)


def test_gradients_that_are_no_numbers_move_nothing(tmp_path: Path) -> None:
    one = Bigram()
    outcome, weights = run(tmp_path, one, extra=lambda rows: (one.policy.sum() * math.inf, 1), ptx=0.1)
    assert same(weights, Bigram().trainable_state()) and outcome.history == []
    assert outcome.alarms[0]["alarm"] == "finite" and outcome.alarms[0]["rolled_back_to"] == 0


# --- radar and record -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golds", "kept"), [((9.0, 0.5, 0.7, 0.6), 4), ((0, 0.7, 0.7, 0.7), 2), ((0, 0.1, 0.2, 0.3), 5)]
)
def test_the_peak_of_the_gold_score_after_the_start_is_kept(golds: tuple, kept: int, tmp_path: Path) -> None:
    one, seen = Bigram(), {}

    def look(update: int, first: dict | None) -> tuple[dict, list[dict]]:
        gold = golds[len(seen)] if update not in seen else golds[sorted(seen).index(update)]
        seen[update] = one.trainable_state()
        return {"update": update, "gold": {"value": gold}}, [{"update": update}]

    outcome, weights = run(tmp_path, one, look=look, updates=5, keep="gold")
    assert sorted(seen) == [0, 2, 4, 5] and outcome.kept == kept and same(weights, seen[kept])
    assert [sample["update"] for sample in outcome.samples] == [0, 2, 4, 5]
    last, _ = run(tmp_path / "last", look=lambda u, _: ({"update": u}, []), updates=5, keep="gold")
    assert last.kept == 5  # a radar without a gold score has no peak
    (tmp_path / "peaks" / f"checkpoint-{kept}" / "state.safetensors").write_bytes(b"spoilt")
    with pytest.raises(UsageError, match=rf"peaks/checkpoint-{kept} is spoilt: remove {tmp_path} and run again$"):
        run(tmp_path, Bigram(), look=look, updates=5, keep="gold")


def test_the_record_is_what_happened(calm: tuple, tmp_path: Path) -> None:
    outcome, _, folder = calm
    episodes, row, settings = recorder.read(folder, 3)
    assert row == rounded(outcome.history[2])
    assert settings["temperature"] == 1.0 and settings["clip"] == 0.2 and settings["lam"] == 0.95
    assert len(episodes.prompts) == 6 and all(prompt in PROMPTS for prompt in episodes.prompts)
    assert torch.allclose(episodes.rewards.sum(1), episodes.scores - row["beta"] * episodes.kl.sum(1), atol=1e-5)
    assert not torch.equal(episodes.new_log_probs, episodes.log_probs)
    said = r"^update 2 was not recorded: there are 1, 3 \(`record` in the stage's section of params.yaml\)$"
    with pytest.raises(UsageError, match=said):
        recorder.read(folder, 2)
    said = (f"^{tmp_path}/flight holds no recorded update: set `record` in the stage's section of params.yaml and run "
            "the stage$")  # fmt: skip
    with pytest.raises(UsageError, match=said):
        recorder.read(tmp_path, 1)
    flight = tmp_path / "flight"
    flight.mkdir()
    (flight / "update-0001.json").write_text("{}")
    (flight / "update-x.json").write_text("{}")
    (flight / "update-0001.safetensors").write_bytes(b"no")
    assert recorder.updates(tmp_path) == [1] and recorder.name(1) == "update-0001.safetensors"
    with pytest.raises(UsageError, match=r"update-0001.safetensors cannot be read \(SafetensorError\): run its stage"):
        recorder.read(tmp_path, 1)


def test_settings_say_how_the_numbers_were_made() -> None:
    """Values that are no defaults, each under its own name."""
    keys = {"gamma": 0.7, "lam": 0.6, "terminal": "after_end", "missing_end": "replace", "missing_end_penalty": 2.5,
            "whiten_rewards": True, "whiten_advantages": False, "kl_estimator": "k3", "clip": 0.3, "value_clip": 0.4,
            "importance_cap": 1.5}  # fmt: skip
    algorithm = config(**keys).algorithm()
    assert algorithm.settings() == keys
    assert (algorithm.name, algorithm.group, algorithm.first) == ("ppo", 1, ("approx_kl", "clip_fraction"))


def test_phases_are_timed_and_tokens_counted(tmp_path: Path) -> None:
    class Slow(Clock):
        updates = 0

        def update(self):
            self.updates += 1
            return super().update()

    clock = Slow()
    outcome, _ = run(tmp_path, clock=clock, look=lambda u, _: ({"update": u}, []))
    assert set(outcome.seconds) == {"rollout", "score", "learn", "radar"} and all(outcome.seconds.values())
    assert outcome.tokens == clock.tokens == sum(round(row["length"] * 6) for row in outcome.history)
    assert clock.updates == 4
    with clock.phase("waiting"):
        time.sleep(0.02)
    with clock.phase("waiting"):
        time.sleep(0.02)
    assert 0.04 <= clock.seconds["waiting"] < 2
    with pytest.raises(ValueError), clock.phase("failing"):
        raise ValueError
    assert "failing" not in clock.seconds


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_repeats_of_bigrams() -> None:
    responses = torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5], [7, 7, 7, 9, 9], [3, 0, 0, 0, 0], [1, 2, 1, 3, 1]])
    mask = torch.arange(5) < torch.tensor([5, 5, 3, 1, 5])[:, None]
    found = repeats(Episodes([[0]] * 5, responses, mask, mask.any(1)))
    assert found.tolist() == pytest.approx([2 / 4, 0.0, 1 / 2, 0.0, 0.0])


def test_rows_of_episodes_are_those_of_every_tensor() -> None:
    tensor = torch.arange(6).view(3, 2)
    episodes = Episodes([[1], [2], [3]], tensor, tensor > 1, tensor[:, 0] > 1, scores=tensor[:, 1] * 1.0)
    some = episodes.rows(torch.tensor([2, 0]))
    assert some.prompts == [[3], [1]] and some.responses.tolist() == [[4, 5], [0, 1]]
    assert some.scores.tolist() == [5.0, 1.0] and some.values is None
    assert set(some.tensors()) == {"responses", "mask", "ended", "scores"}
    prompts, responses, mask = some.batch()
    assert prompts == some.prompts and responses is some.responses and mask is some.mask


def test_padding_ends_nothing() -> None:
    assert [score.padding(stop) for stop in ([2], [0], [0, 1], [1, 0, 2], [])] == [0, 1, 2, 3, 0]
