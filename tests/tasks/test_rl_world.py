"""The loop of tasks/rl as one of several processes: what it adds up, what it takes as its share, and that it is still.

The other processes are stand-ins: what they would say is written into the test. The real ones, over gloo, are in
tests/invariants/test_ppo_processes.py.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.rl import loop
from tasks.rl import world as rl_world
from tasks.rl.learn import _ptx
from tasks.rl.world import World
from tests.keys.test_ppo_by_hand import PROMPTS, USUAL, ptx, run
from tests.made.bigram import Bigram
from tests.made.reinforce import Reinforce
from tests.made.tiny_ppo import config, files, same
from tests.tasks import test_rl_table as table

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Accelerator:
    """Process 1 of 2; the other one always has twice as much."""

    process_index, num_processes, is_main_process, device = 1, 2, False, CPU

    def __init__(self, cpu: bool = True) -> None:
        self.cpu, self.waited = cpu, 0

    def reduce(self, tensor: Tensor, how: str) -> Tensor:
        return {"sum": 3 * tensor}[how]

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(rl_world, "Accelerator", Accelerator)
    monkeypatch.setattr(rl_world, "gather", lambda tensor: torch.cat([2 * tensor, tensor]))
    monkeypatch.setattr(rl_world, "broadcast_object_list", lambda things: [("first", *things)])
    return World(CPU)


def test_alone_numbers_are_what_they_are() -> None:
    alone, third = World(CPU), 1 / 3  # no float32
    assert (alone.rank, alone.processes, alone.main) == (0, 1, True)
    assert alone.totals({"a": third, "b": 2}) == {"a": third, "b": 2.0} and alone.totals({"a": third})["a"] == third
    assert alone.largest(third) == third and alone.largest(torch.tensor(2.5)) == 2.5
    assert alone.same({"a": [1]}) == {"a": [1]}
    tensor = torch.arange(6.0).view(2, 3)
    assert alone.stacked(tensor).shape == (1, 2, 3) and torch.equal(alone.stacked(tensor)[0], tensor)
    assert torch.equal(alone.sum(tensor), tensor)
    parameter = nn.Parameter(torch.ones(2))
    alone.add_gradients([parameter])
    assert parameter.grad is None
    alone.wait()


def test_of_two_numbers_and_gradients_are_those_of_both(second: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (second.rank, second.processes, second.main) == (1, 2, False) and second.accelerator.cpu is True
    assert World(torch.device("meta")).accelerator.cpu is False
    third = 1 / 3
    assert second.totals({"a": third, "b": -1}) == {"a": 3 * third, "b": -3.0}
    assert second.sum(torch.tensor([1, 2])).tolist() == [3, 6]
    assert second.largest(third) == 2 * third and second.largest(-third) == -third
    assert second.same("second") == ("first", "second")
    assert second.stacked(torch.tensor([1.0, 2.0])).tolist() == [[2.0, 4.0], [1.0, 2.0]]
    learnt = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    learnt[0].grad, learnt[2].grad = torch.arange(6.0).view(2, 3), torch.tensor([7.0])
    second.add_gradients(learnt)
    assert learnt[0].grad.tolist() == [[0.0, 3.0, 6.0], [9.0, 12.0, 15.0]]
    assert learnt[1].grad.tolist() == [0.0] * 4 and learnt[2].grad.tolist() == [21.0]
    second.wait()
    assert second.accelerator.waited == 1


def made(monkeypatch: pytest.MonkeyPatch, rank: int, processes: int, folder: Path, group: int = 1, **keys: object):
    """The loop of one of several processes, which has not begun."""
    of = SimpleNamespace(rank=rank, processes=processes, main=rank == 0)
    monkeypatch.setattr(loop, "World", lambda device: of)
    settings = config(**{**USUAL, "batch_rows": 12, **keys})
    return loop._Loop(Bigram(), Reinforce(group), PROMPTS, None, settings, 5, folder, [2], None, None, None)


@pytest.mark.parametrize("group", [1, 2])
def test_processes_take_the_prompts_of_the_stream_in_turns(
    group: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two updates of 12 episodes: 24 / group prompts of passes over five, each pass in an order of its own."""
    orders = [np.random.default_rng([5, turn]).permutation(5) for turn in range(5)]
    stream = [PROMPTS[i] for order in orders for i in order]
    for processes in (1, 2, 3):
        loops = [made(monkeypatch, rank, processes, tmp_path, group) for rank in range(processes)]
        assert {one.rows for one in loops} == {12 // processes}
        for update in range(2):
            asked = stream[update * 12 // group : (update + 1) * 12 // group]
            for rank, one in enumerate(loops):
                assert one._next_prompts() == [prompt for prompt in asked[rank::processes] for _ in range(group)]
                assert one.state.cursor == (update + 1) * 12 // group


def test_each_process_has_random_numbers_and_orders_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loops = [made(monkeypatch, rank, 2, tmp_path, minibatches=2) for rank in range(2)]
    assert [one.state.generator.initial_seed() for one in loops] == [5, 5 + 1_000_003]
    for one, seed in zip(loops, (5, 5 + 1_000_003), strict=True):
        expected = np.array_split(np.random.default_rng([seed, 3, 1]).permutation(6), 2)
        assert [part.tolist() for part in one._minibatches(3, 1)] == [part.tolist() for part in expected]


@pytest.mark.parametrize(("ptx_rows", "processes", "said"), [
    (3, 2, "^ppo: ptx_rows 3 cannot be divided over 2 processes: make it a multiple of 2$"), (4, 2, None), (3, 1, None),
])  # fmt: skip
def test_instruction_rows_are_divided_or_refused(ptx_rows: int, processes: int, said: str | None) -> None:
    settings = config(**{**USUAL, "batch_rows": 12, "ptx": 0.1, "ptx_rows": ptx_rows})
    off = settings.model_copy(update={"ptx": 0.0})
    assert loop._share(off.algorithm(), off, processes) == 12 // processes
    if said is None:
        assert loop._share(settings.algorithm(), settings, processes) == 12 // processes
    else:
        with pytest.raises(loop.UsageError, match=said):
            loop._share(settings.algorithm(), settings, processes)


def test_instruction_rows_of_a_step_are_a_mean_over_the_items_of_all() -> None:
    """The second of two processes, after 4 rows: rows 5 and 7 of 4 to 7; the other one has twice as many items."""
    one = Bigram()
    extra, asked = ptx(one)
    of = SimpleNamespace(rank=1, processes=2, totals=lambda numbers: {name: 3 * n for name, n in numbers.items()})
    state, settings = SimpleNamespace(ptx_cursor=4), SimpleNamespace(ptx_rows=4, ptx=0.7)
    found = _ptx(state, settings, of, extra)
    assert asked == [[5, 7]] and state.ptx_cursor == 8
    expected = sum((one.policy[row] - 0.3).square().sum() for row in (5, 1)) / 12  # 2 items a row, three times
    assert found == pytest.approx(expected.item())
    (gradient,) = torch.autograd.grad(expected, one.policy)
    assert torch.allclose(one.policy.grad, 0.7 * gradient)


# --- the others write nothing -----------------------------------------------------------------------------------------


class Other(World):
    """Alone, and yet not the first: as one of several processes behaves once it has what the others give."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.main = False


def look(update: int, first: dict | None) -> tuple[dict, list[dict]]:
    return {"update": update, "gold": {"value": 0.0}}, [{"update": update}]


def test_a_process_that_is_not_the_first_learns_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, outcome, _ = run(tmp_path / "first", record=[1])
    monkeypatch.setattr(loop, "World", Other)
    (tmp_path / "other").mkdir()
    other, found, _ = run(tmp_path / "other", record=[1])
    assert same(other.trainable_state(), first.trainable_state()) and found.history == outcome.history
    assert set(files(tmp_path / "other")) <= {"alarms.json"} < set(files(tmp_path / "first"))


def test_it_goes_back_with_the_others_and_leaves_the_report_to_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.run(tmp_path, updates=1, look=look)
    before = files(tmp_path)
    monkeypatch.setattr(loop, "World", Other)
    one = Bigram()
    outcome, weights = table.run(tmp_path, one, score=lambda *batch: table.liked(*batch) * torch.nan, look=look)
    assert outcome.alarms == [{}] and outcome.history == [] and same(weights, Bigram().trainable_state())
    assert capsys.readouterr().err == "" and files(tmp_path) == before
