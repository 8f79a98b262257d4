"""What the loop of tasks/rl is made of and hands on, step by step, beside stand-ins; whole runs: test_rl_table.py."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.learning.rl import kl, steps
from tasks.rl import alarms, loop
from tasks.rl.clock import Clock
from tasks.rl.world import World
from tests.made.bigram import Bigram
from tests.made.reinforce import Reinforce
from tests.made.tiny_group import Table
from tests.made.tiny_ppo import config

torch.set_num_threads(1)
PROMPTS = [[1, 0], [1, 3], [1, 4], [1, 5], [3, 1]]
KEYS = {"updates": 4, "batch_rows": 6, "minibatches": 2, "micro_rows": 2, "max_new_tokens": 4, "lr": 0.07,
        "adam_eps": 0.003, "adam_eps_mode": "tf", "beta": 0.4, "kl_control": "ziegler", "kl_target": 1.5,
        "kl_horizon": 77, "temperature": 0.7, "record": [2]}  # fmt: skip


def of(**parts: object) -> loop._Loop:
    """A loop with these attributes and no others."""
    made = loop._Loop.__new__(loop._Loop)
    for name, value in parts.items():
        setattr(made, name, value)
    return made


def made(folder: Path, one: Bigram | None = None, seed: int = 5, **keys: object) -> loop._Loop:
    settings = config(**{**KEYS, **keys})
    told = ("score", settings, seed, folder, [2], "look", "extra", "clock")
    return loop._Loop(one or Bigram(), settings.algorithm(), PROMPTS, *told)


def alone(**parts: object) -> SimpleNamespace:
    """A world of one process."""
    same = {"rank": 0, "processes": 1, "main": True, "wait": lambda: None, "same": lambda thing: thing,
            "largest": float, "sum": lambda tensor: tensor}  # fmt: skip
    return SimpleNamespace(**{**same, **parts})


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_train_hands_on_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(loop, "_Loop", lambda *args: asked.append(args) or SimpleNamespace(run=lambda: "outcome"))
    assert loop.train(*"abcdefgh", look="i", ptx="j", clock="k") == "outcome"
    assert asked.pop() == tuple("abcdefghijk")
    assert loop.train(*"abcdefgh") == "outcome"
    assert asked[0][:10] == (*"abcdefgh", None, None) and isinstance(asked[0][10], Clock)


def test_its_parts_are_those_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Bigram()
    found = made(tmp_path, one)
    assert (found.rows, found.own_seed, found.seed, found.folder, found.stop_ids) == (6, 5, 5, tmp_path, [2])
    assert (found.one, found.prompts, found.score) == (one, PROMPTS, "score")
    assert (found.look, found.ptx, found.clock) == ("look", "extra", "clock")
    assert isinstance(found.world, World) and found.state.world is found.world and found.state.one is one
    adam = found.state.optimiser
    assert isinstance(adam, steps.Adam)
    assert [group["params"] for group in adam.param_groups] == [one.policy_parameters(), one.value_parameters()]
    assert all((group["lr"], group["eps"]) == (0.07, 0.003) for group in adam.param_groups) and adam.eps_mode == "tf"
    assert found.state.beta == kl.Beta(0.4, "ziegler", 1.5, 77)
    assert found.state.generator.initial_seed() == 5
    table = Table()
    settings = config(**KEYS)
    without = loop._Loop(table, settings.algorithm(), PROMPTS, *[None, settings, 5, tmp_path], *[None] * 4)
    assert [group["params"] for group in without.state.optimiser.param_groups] == [table.policy_parameters()]
    monkeypatch.setattr(loop, "World", lambda device: alone(rank=2, processes=3, device=device))
    third = made(tmp_path)
    assert third.own_seed == third.state.generator.initial_seed() == 5 + 2 * 1_000_003
    assert third.rows == 2 and third.world.device == torch.device("cpu")


def test_nothing_to_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        loop._Loop(Bigram(), None, [], *[None] * 8)
    assert str(caught.value) == "there is no prompt left to answer: add prompts, or make max_new_tokens smaller"


@pytest.mark.parametrize(("keys", "group", "processes", "found"), [
    ({}, 1, 1, 6), ({}, 3, 2, 3), ({"minibatches": 3}, 1, 2, 3), ({"ptx": 0.1, "ptx_rows": 4}, 1, 2, 3),
    ({"ptx": 0.0, "ptx_rows": 3}, 1, 2, 3),
    ({}, 1, 4, "batch_rows 6 cannot be cut into 4 processes and 2 minibatches"),
    ({"minibatches": 4}, 1, 2, "batch_rows 6 cannot be cut into 2 processes and 4 minibatches"),
    ({}, 2, 2, "batch_rows 6 cannot be cut into 2 processes, groups of 2 responses and 2 minibatches"),
    ({"ptx": 0.1, "ptx_rows": 3}, 1, 2, "ptx_rows 3 cannot be divided over 2 processes: make it a multiple of 2"),
])  # fmt: skip
def test_a_share_is_whole_or_named(keys: dict, group: int, processes: int, found: int | str) -> None:
    call = (Reinforce(group=group), config(**{**KEYS, **keys}), processes)
    if isinstance(found, int):
        assert loop._share(*call) == found
    else:
        with pytest.raises(UsageError) as caught:
            loop._share(*call)
        assert str(caught.value) == f"{call[0].name}: {found}"


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "processes", "group"), [(0, 1, 1), (0, 2, 1), (1, 2, 1), (0, 1, 2), (1, 2, 3)])
def test_prompts_are_the_next_of_a_stream_of_orders(rank: int, processes: int, group: int) -> None:
    state = SimpleNamespace(cursor=4)
    it = of(state=state, config=config(**{**KEYS, "batch_rows": 12}), prompts=PROMPTS, seed=9,
            algorithm=SimpleNamespace(group=group), world=alone(rank=rank, processes=processes))  # fmt: skip
    asked = it._next_prompts()
    places = [place for place in range(4, 4 + 12 // group) if (place - 4) % processes == rank]
    numbers = [np.random.default_rng([9, place // 5]).permutation(5)[place % 5] for place in places]
    assert asked == [PROMPTS[number] for number in numbers for _ in range(group)]
    assert state.cursor == 4 + 12 // group


def test_minibatches_are_those_of_the_seed_the_update_and_the_epoch() -> None:
    it = of(rows=6, config=config(**{**KEYS, "minibatches": 3}), own_seed=11)
    expected = steps.minibatches(6, 3, 11, 4, 1)
    assert [rows.tolist() for rows in it._minibatches(4, 1)] == [rows.tolist() for rows in expected]
    assert [rows.tolist() for rows in it._minibatches(4, epoch=1)] != [
        rows.tolist() for rows in it._minibatches(1, epoch=4)]  # fmt: skip


# --- an update --------------------------------------------------------------------------------------------------------


def test_an_update_hands_each_step_what_the_one_before_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def gives(name: str, *found: object):
        return lambda *args, **more: calls.append((name, *args, *more.items())) or (found[0] if found else None)

    settings = config(**{**KEYS, "updates": 10, "lr_schedule": "linear"})
    episodes = SimpleNamespace(mask=torch.tensor([[True, True], [True, False]]))
    row, learnt = {"kl": 2.5, "score": 1.0}, {"loss": 0.25, "kl": 2.5}
    state = SimpleNamespace(beta=SimpleNamespace(value=0.4, update=gives("beta")), generator="generator")
    world = alone(sum=lambda tensor: 2 * tensor)
    clock = SimpleNamespace(tokens=100, phase=lambda name: calls.append(("phase", name)) or contextlib.nullcontext())
    algorithm = SimpleNamespace(targets=gives("targets", "aimed"), clip=0.3)
    it = of(config=settings, state=state, clock=clock, one="one", stop_ids=[2], world=world, score="score",
            algorithm=algorithm, ptx="extra", own_seed=3, rows=6)  # fmt: skip
    it._next_prompts = lambda: "prompts"
    it._record = gives("record")
    for name, found in (("answered", episodes), ("judged", "judged"), ("figures", row), ("learn", (learnt, "new"))):
        monkeypatch.setattr(loop, name, gives(name, found))
    monkeypatch.setattr(alarms, "check", lambda *args, **more: calls.append(("check", dict(args[2]), args[:2], more)))
    monkeypatch.setattr(loop, "replace", lambda *args, **more: (*args, more))
    it._update(4)
    assert clock.tokens == 106
    names = [call[0] if call[0] != "phase" else call[1] for call in calls]
    assert names == ["rollout", "answered", "score", "judged", "targets", "figures", "check", "learn", "learn", "check",
                     "beta", "record"]  # fmt: skip
    by = dict(zip(names, calls, strict=True))
    assert by["answered"][1:] == ("one", "prompts", 4, [2], 0.7, "generator")
    parts = [part.tolist() for rows in steps.minibatches(6, 2, 3, 4, 0) for part in rows.split(2)]
    assert by["judged"][1:4] == (episodes, "one", "score") and by["judged"][5] == 0.7
    assert [part.tolist() for part in by["judged"][4]] == parts
    assert by["targets"][1:] == ("judged", 0.4, world.sum) and by["figures"][1:] == ("aimed", 0.3, 0.4, world)
    assert calls[6][1:] == ({"kl": 2.5, "score": 1.0}, (settings, 4), {"last_good": 2})
    _, *told = by["learn"]
    assert told[:5] == [state, algorithm, "aimed", settings, world] and told[7] == "extra"
    assert told[5](1)[0].tolist() == steps.minibatches(6, 2, 3, 4, 1)[0].tolist()
    assert told[6] == pytest.approx(0.07 * (10 - 3) / 10)
    assert calls[9][1:] == ({"kl": 2.5, "score": 1.0, "loss": 0.25}, (settings, 4), {"last_good": 3})
    assert by["beta"][1:] == (2.5, 6)
    assert by["record"][1:] == (("aimed", {"new_log_probs": "new"}), row, 4)


# --- record and radar -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [True, False])
def test_a_row_is_history_a_record_and_a_look_where_they_are_due(
    main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**{**KEYS, "updates": 5, "radar_every": 3, "record": [2, 3]})
    written, looked = [], []
    monkeypatch.setattr(loop.recorder, "write", lambda *args: written.append(args))
    monkeypatch.setattr(loop.rl_state, "write_history", lambda *args: written.append((args[0], list(args[1]))))
    algorithm = SimpleNamespace(settings=lambda: {"lam": 0.9})
    state = SimpleNamespace(update=0, history=[])
    it = of(state=state, config=settings, world=alone(main=main), folder=tmp_path, algorithm=algorithm)
    it._radar = lambda: looked.append(state.update)
    for update in range(1, 6):
        it._record(f"episodes {update}", {"loss": update / 2}, update)
    rows = [{"step": n, "episodes": 6 * n, "loss": n / 2} for n in range(1, 6)]
    assert state.history == rows and state.update == 5 and looked == [3, 5]
    flights = {n: (tmp_path, n, f"episodes {n}", rows[n - 1], {"temperature": 0.7, "lam": 0.9}) for n in (2, 3)}
    expected = [entry for n in range(1, 6) for entry in ([flights[n]] if n in flights else []) + [(tmp_path, rows[:n])]]
    assert written == (expected if main else [])


@pytest.mark.parametrize("main", [True, False])
def test_a_look_sees_the_first_row_and_keeps_the_weights(
    main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, asked, phases = [], [], []
    monkeypatch.setattr(loop.rl_state, "save_weights", lambda *args: kept.append(args))
    state = SimpleNamespace(update=0, radar=[], samples=[])
    clock = SimpleNamespace(phase=lambda name: phases.append(name) or contextlib.nullcontext())
    same = {"same": lambda found: ({**found[0], "told": "all"}, found[1])}
    look = lambda *args: asked.append(args) or ({"update": args[0]}, [f"sample {args[0]}"])  # noqa: E731
    it = of(look=look, state=state, clock=clock, world=alone(main=main, **same), one="one", folder=tmp_path)
    for update in (0, 2):
        state.update = update
        it._radar()
    first = {"update": 0, "told": "all"}
    assert asked == [(0, None), (2, first)] and state.radar == [first, {"update": 2, "told": "all"}]
    assert state.samples == ["sample 0", "sample 2"] and phases == ["radar", "radar"]
    assert kept == ([("one", tmp_path, 0), ("one", tmp_path, 2)] if main else [])
    it.look = None
    it._radar()
    assert len(asked) == 2 and len(state.radar) == 2


@pytest.mark.parametrize(("keep", "golds", "best"), [
    ("last", {1: 0.9, 4: 0.1}, None), ("gold", {}, None), ("gold", {0: 0.9}, None),
    ("gold", {0: 9.0, 1: 0.5, 3: 1.0}, 3),
    ("gold", {1: 0.5, 2: 0.7, 4: 0.7}, 2), ("gold", {1: -0.7, 2: -0.5}, 2),
])  # fmt: skip
def test_what_is_kept_is_the_peak_or_the_last(
    keep: str, golds: dict, best: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple] = []
    monkeypatch.setattr(loop.rl_state, "load_weights", lambda *args: loaded.append(args))
    radar = [{"update": 5}, *({"update": update, "gold": {"value": gold}} for update, gold in golds.items())]
    waited: list[int] = []
    it = of(state=SimpleNamespace(update=7, radar=radar), config=SimpleNamespace(keep=keep), one="one",
            folder=tmp_path, world=alone(wait=lambda: waited.append(1)))  # fmt: skip
    assert it._keep() == (7 if best is None else best)
    assert loaded == ([] if best is None else [("one", tmp_path, best)]) and len(waited) == len(loaded)


# --- beginning and going back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("there", [None, "checkpoint-3"])
def test_it_begins_where_it_was_left(
    main: bool, there: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []
    folder = tmp_path / "deep/folder"
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(loop.rl_state, "resumable", lambda *args: calls.append(("resumable", *args)) or there)
    monkeypatch.setattr(loop.rl_state, "write_history", lambda *args: calls.append(("history", *args)))
    state = SimpleNamespace(load=lambda path: calls.append(("load", path)), history=["row"], parameters=list,
                            save=lambda path: calls.append(("save", path)))  # fmt: skip
    it = of(folder=folder if main else tmp_path / "other", state=state, config=SimpleNamespace(updates=9),
            world=alone(main=main, wait=lambda: calls.append(("wait",))))  # fmt: skip
    it._radar = lambda: calls.append(("radar",))
    for _ in range(2):  # the folder may be there already
        calls.clear()
        it._begin()
    first = [("resumable", it.folder)]
    expected = (first if main else []) + [("wait",), *first]
    expected += [("load", there)] if there else [("radar",), ("save", it.folder)]
    assert calls == expected + ([("history", it.folder, ["row"])] if main else [])
    progress = it.folder / "progress.json"
    assert (progress.read_text() == '{"steps": 9}\n') if main else not progress.exists()
    assert not main or json.loads(progress.read_text()) == {"steps": 9}


def alarm(limit: float | None = 6.0, last_good: int = 3) -> alarms.Alarm:
    return alarms.Alarm(5, "alarm_kl", "kl", {"kl": 7.0}, limit, last_good)


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize(("radar", "looks"), [([], 1), ([{"update": 2}], 1), ([{"update": 3}], 0)])
def test_it_goes_back_to_what_was_good(
    main: bool, radar: list, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []

    def load(path: str) -> None:
        calls.append(("load", path))
        state.update = 3

    state = SimpleNamespace(load=load, radar=radar, update=5, history=["row"])
    for name in ("last_good", "write_history"):
        monkeypatch.setattr(loop.rl_state, name, lambda *args, name=name: calls.append((name, *args)) or "checkpoint")
    monkeypatch.setattr(alarms, "report", lambda *args: calls.append(("report", *args)) or ["told"])
    it = of(state=state, folder=tmp_path, algorithm=SimpleNamespace(name="ppo"), world=alone(main=main))
    it._radar = lambda: calls.append(("radar",))
    said = alarm()
    assert it._roll_back(said) == (["told"] if main else [{}])
    assert calls[:2] == [("last_good", tmp_path, 3), ("load", "checkpoint")]
    assert calls[2 : 2 + looks] == [("radar",)] * looks
    assert calls[2 + looks :] == (
        [("write_history", tmp_path, ["row"]), ("report", tmp_path, said, 3, "ppo")] if main else [])


def test_with_nothing_learnt_there_is_nothing_to_go_back_to() -> None:
    it = of(algorithm=SimpleNamespace(name="grpo"))
    said = alarm(last_good=-1)
    with pytest.raises(UsageError) as caught:
        it._roll_back(said)
    assert str(caught.value) == (
        f"{said}, and nothing has been learnt yet: set `grpo.alarm_kl` in params.yaml to what is usual here")
    said = alarm(None, -1)
    with pytest.raises(DataError) as caught:
        it._roll_back(said)
    assert str(caught.value) == f"{said}: the very first scores are not finite"
    calls: list = []
    it.state = SimpleNamespace(load=calls.append, radar=[{"update": 0}], update=0, history=[])
    it.world, it.folder = alone(main=False), Path("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.rl_state, "last_good", lambda *args: args)
        assert it._roll_back(alarm(last_good=0)) == [{}] and calls == [(Path("x"), 0)]


def test_room_for_its_checkpoints_is_asked_for_at_the_start_alone(tmp_path, monkeypatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(loop.room, "ask", lambda wanted, what: asked.append((list(wanted), what)))
    for _ in range(2):  # the second goes on from checkpoint 0
        it = made(tmp_path)
        it._radar = lambda: None
        it._begin()
    assert asked == [([tmp_path], "the checkpoints of this training")]
