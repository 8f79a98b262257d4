"""Pieces of an update of tasks/rl that a run of PPO as it is usually set does not show, each by hand."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ajuste.core.figures import rounded
from ajuste.learning.rl import kl
from ajuste.learning.rl.steps import Adam
from tasks.rl import loop, recorder, score
from tasks.rl import state as rl_state
from tasks.rl.algorithm import Items, Losses, Now
from tasks.rl.episodes import Episodes
from tasks.rl.learn import _items, learn
from tasks.rl.state import State
from tasks.rl.world import World
from tests.keys.test_ppo_by_hand import PROMPTS, USUAL, run
from tests.keys.test_ppo_by_hand import score as likes
from tests.made.bigram import Bigram
from tests.made.reinforce import Reinforce
from tests.made.tiny_group import Table
from tests.made.tiny_ppo import config, same
from tests.tasks import test_rl_table as table

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Watched(Bigram):
    """Remembers the prompts of each pass, and whether it wanted gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple] = []

    def policy_and_values(self, prompts, responses: Tensor, mask: Tensor, temperature: float):
        self.passes.append((torch.is_grad_enabled(), [tuple(prompt) for prompt in prompts]))
        return super().policy_and_values(prompts, responses, mask, temperature)


def test_opinions_are_computed_in_the_micro_batches_of_the_first_epoch(tmp_path: Path) -> None:
    """So the first ratio is exactly 1 whatever a batch does to rounding."""
    one = Watched()
    settings = config(**{**USUAL, "updates": 2, "minibatches": 2, "micro_rows": 2, "epochs": 2})
    loop.train(one, settings.algorithm(), PROMPTS, likes, settings, 5, tmp_path, [2])
    for update in range(2):
        passes = one.passes[update * 12 : (update + 1) * 12]  # 2 x 2 of opinions, then twice as many of learning
        assert [gradients for gradients, _ in passes] == [False] * 4 + [True] * 8
        parts = [prompts for _, prompts in passes]
        assert [len(part) for part in parts] == [2, 1] * 6
        assert parts[:4] == parts[4:8] != parts[8:]


def test_an_interrupt_in_the_last_update_ends_the_run_as_it_would(tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupts(*batch: object) -> Tensor:
        calls.append(1)
        if len(calls) == 4 * 4:
            os.kill(os.getpid(), signal.SIGINT)
        return table.liked(*batch)

    outcome, weights = table.run(tmp_path / "asked", score=interrupts)
    calm, expected = table.run(tmp_path / "calm")
    assert len(calls) == 16 and outcome.kept == 4 and outcome.history == calm.history and same(weights, expected)
    assert (tmp_path / "asked/alarms.json").read_text() == "[]\n"


class Largest(Reinforce):
    """Says a figure of which the row wants the largest: of a minibatch's parts, and of all steps."""

    first = ("nats",)

    def losses(self, now: Now, part: Episodes, items: Items) -> Losses:
        terms, sums, _ = super().losses(now, part, items)
        return Losses(terms, sums, {"highest": float(part.scores.max()), "lowest": -1.0})


def test_of_a_largest_figure_the_row_has_the_largest_of_all_parts_and_steps() -> None:
    """Six episodes in three minibatches of two, one at a time; the fourth has the highest score."""
    one = Bigram()
    scores = torch.tensor([0.1, 0.2, 0.15, 0.4, 0.3, 0.05])
    prompts = [[1, number % 2] for number in range(6)]
    responses, mask = torch.tensor([[3], [4], [5], [0], [1], [3]]), torch.ones(6, 1, dtype=torch.bool)
    found = Episodes(prompts, responses, mask, mask[:, 0], scores=scores)
    log_probs, entropy, _ = one.policy_and_values(*found.batch(), 1.0)
    reference = one.reference(*found.batch(), 1.0)
    found = Episodes(prompts, responses, mask, mask[:, 0], scores=scores, log_probs=log_probs.detach(),
                     reference=reference, entropy=entropy)  # fmt: skip
    algorithm, world = Largest(2), World(CPU)
    found = algorithm.targets(found, 0.1, lambda x: x)
    settings = config(**{**USUAL, "micro_rows": 1, "minibatches": 3, "epochs": 1})
    optimiser = Adam([{"params": [one.policy]}, {"params": [one.value]}], 9.0)
    state = State(one, optimiser, kl.Beta(0.1, "fixed", 1.0, 1), torch.Generator(), world)
    parts = list(torch.arange(6).split(2))
    row, new = learn(state, algorithm, found, settings, world, lambda epoch: parts, 0.01, None)
    assert row["highest"] == pytest.approx(0.4) and row["lowest"] == 0.0  # a largest figure begins at 0
    assert row["lr"] == 0.01 and {group["lr"] for group in optimiser.param_groups} == {0.01}
    assert row["first_nats"] == pytest.approx((entropy[0] + entropy[1]).item() / 2)
    assert row["nats"] != row["first_nats"] and row["first_ratio_error"] == 0.0
    assert new.shape == (6, 1) and torch.equal(new[:2], log_probs[:2]) and not torch.equal(new[4:], log_probs[4:])
    assert set(row) == {"loss", "policy_loss", "nats", "highest", "lowest", "grad_norm", "first_ratio_error",
                        "first_nats", "lr"}  # fmt: skip


def one_step(world: World, moved: float = 0.0) -> dict[str, float]:
    """The row of one step over two episodes, the second a token shorter; their old log-probs lie `moved` lower. The
    policy has no value function."""
    one, algorithm = Table(), Reinforce(2)
    mask = torch.tensor([[True, True], [True, False]])
    found = Episodes([[1, 0], [1, 3]], torch.tensor([[4, 5], [3, 0]]), mask, mask[:, 1], scores=torch.tensor([1.0, 0]))
    log_probs, entropy, _ = one.policy_and_values(*found.batch(), 1.0)
    reference = one.reference(*found.batch(), 1.0)
    found = replace(found, log_probs=log_probs.detach() - moved * mask, reference=reference, entropy=entropy)
    optimiser = Adam([{"params": [one.policy]}], 0.1)
    state = State(one, optimiser, kl.Beta(0.1, "fixed", 1.0, 1), torch.Generator(), world)
    found, settings = algorithm.targets(found, 0.0, lambda x: x), config(**{**USUAL, "micro_rows": 2})
    return learn(state, algorithm, found, settings, world, lambda epoch: [torch.arange(2)], 0.01, None)[0]


def test_the_first_ratio_is_that_of_the_tokens_that_there_are() -> None:
    """Beside a response that is shorter: what stands behind its end has no ratio."""
    assert one_step(World(CPU))["first_ratio_error"] == 0.0
    assert one_step(World(CPU), 0.25)["first_ratio_error"] == pytest.approx(np.expm1(0.25), rel=1e-5)


def test_a_step_is_made_with_the_gradients_of_all_processes() -> None:
    class Both(World):
        """The other process has the same gradient."""

        def add_gradients(self, parameters: list) -> None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad *= 2

    alone = one_step(World(CPU))["grad_norm"]
    assert alone > 0.1 and one_step(Both(CPU))["grad_norm"] == pytest.approx(2 * alone)


def test_targets_are_whitened_over_the_steps_of_all_processes() -> None:
    """The other one has the same episodes: as if each stood there twice, and 2 n - 1 is not 2 (n - 1)."""
    algorithm = config(**{**USUAL, "unbiased": True, "whiten_rewards": True}).algorithm()
    some = replace(episodes(), values=torch.tensor([[0.5, -1.0, 2.0, 0.1], [1.5, 0.2, 0.0, 0.0]]))
    found = algorithm.targets(some, 0.3, lambda sums: 2 * sums)
    both = algorithm.targets(some.rows(torch.tensor([0, 1, 0, 1])), 0.3, lambda sums: sums)
    for name in ("rewards", "advantages", "returns"):
        assert torch.allclose(getattr(found, name), getattr(both, name)[:2], atol=1e-6), name
    assert not torch.allclose(found.advantages, algorithm.targets(some, 0.3, lambda sums: sums).advantages, atol=1e-2)


def test_items_of_a_minibatch() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    plain = Episodes([[1], [2]], torch.zeros(2, 3, dtype=torch.int64), mask, mask[:, 0])
    assert _items(plain, World(CPU)) == Items(rows=2, tokens=3, states=0)
    states = torch.nn.functional.pad(mask, (1, 0), value=True)
    whole = Episodes([[1], [2]], plain.responses, mask, mask[:, 0], value_mask=states)
    assert _items(whole, World(CPU)) == Items(rows=2, tokens=3, states=5)


def test_a_checkpoint_before_the_first_step_takes_the_moments_away(tmp_path: Path) -> None:
    one = Bigram()
    optimiser = Adam([{"params": [one.policy]}, {"params": [one.value]}], 0.1)
    state = State(one, optimiser, kl.Beta(0.1, "fixed", 1.0, 1), torch.Generator().manual_seed(3), World(CPU))
    state.save(tmp_path)
    (tmp_path / "checkpoint-0/half").write_text("of a file")
    state.save(tmp_path)  # as after a kill: anew, and whole
    assert {path.name for path in (tmp_path / "checkpoint-0").iterdir()} == {
        "state.safetensors", "state.json", "COMPLETE"}  # fmt: skip
    (one.policy.sum() + one.value.square().sum()).backward()
    optimiser.step()
    state.update, state.cursor, state.ptx_cursor, state.history = 1, 12, 5, [{"step": 1}]
    state.radar, state.samples = [{"update": 0}], [{"id": "a"}]
    state.save(tmp_path)
    moved, moments = one.trainable_state(), {name: x.clone() for name, x in optimiser.state[one.policy].items()}
    drawn = torch.rand(3, generator=state.generator)
    state.load(tmp_path / "checkpoint-0")
    assert not optimiser.state and same(one.trainable_state(), Bigram().trainable_state())
    assert (state.update, state.cursor, state.ptx_cursor, state.history, state.radar) == (0, 0, 0, [], [])
    assert torch.equal(torch.rand(3, generator=state.generator), drawn)
    state.load(tmp_path / "checkpoint-1")
    assert (state.update, state.cursor, state.ptx_cursor, state.history) == (1, 12, 5, [{"step": 1}])
    assert state.radar == [{"update": 0}] and state.samples == [{"id": "a"}]
    assert same(one.trainable_state(), moved) and same(dict(optimiser.state[one.policy]), moments)


def test_weights_that_were_looked_at_are_written_anew_after_a_kill(tmp_path: Path) -> None:
    one, out = Bigram(), tmp_path / "peaks/checkpoint-2"
    rl_state.save_weights(one, tmp_path, 2)
    (out / "half").write_text("of a file")
    with torch.no_grad():
        one.policy += 1
    rl_state.save_weights(one, tmp_path, 2)
    assert {path.name for path in out.iterdir()} == {"state.safetensors", "COMPLETE"}
    other = Bigram()
    rl_state.load_weights(other, tmp_path, 2)
    assert same(other.trainable_state(), one.trainable_state())


# --- figures of the episodes ------------------------------------------------------------------------------------------


def episodes() -> Episodes:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    return Episodes(
        [[1], [2]], torch.tensor([[5, 5, 5], [4, 0, 0]]), mask, torch.tensor([True, False]),
        drawn=torch.tensor([[-1.0, -2.0, -1.5], [-0.5, 0.0, 0.0]]), scores=torch.tensor([3.0, 1.0]),
        log_probs=torch.tensor([[-1.1, -1.7, -1.5], [-0.5, 0.0, 0.0]]),
        reference=torch.tensor([[-1.0, -2.0, -2.5], [-1.5, 0.0, 0.0]]),
        entropy=torch.tensor([[0.5, 0.7, 0.2], [0.6, 0.0, 0.0]]),
    )  # fmt: skip


@pytest.mark.parametrize("clip", [0.2, None])
def test_figures_of_the_episodes_by_hand(clip: float | None) -> None:
    row = score.figures(episodes(), clip, 0.5, World(CPU))
    k1 = (-0.1 + 0.3 + 1.0 + 1.0) / 2
    assert row["score"] == 2.0 and row["score_std"] == pytest.approx(1.0) and row["beta"] == 0.5
    assert row["kl"] == pytest.approx(k1, abs=1e-6) and row["rlhf_reward"] == pytest.approx(2.0 - 0.5 * k1, abs=1e-6)
    assert row["length"] == 2.0 and row["ended"] == 0.5 and row["repeats"] == pytest.approx(0.25)
    assert row["entropy"] == pytest.approx(2.0 / 4, abs=1e-6)
    assert row["sampler_gap"] == pytest.approx(0.3, abs=1e-6)
    assert row["sampler_gap_mean"] == pytest.approx(0.1, abs=1e-6)
    assert row.get("sampler_gap_beyond_clip") == (None if clip is None else pytest.approx(1 / 4))  # exp(0.3) alone
    assert set(row) - {"sampler_gap_beyond_clip"} == {
        "score", "score_std", "kl", "k2", "k3", "rlhf_reward", "length", "ended", "repeats", "entropy", "beta",
        "sampler_gap", "sampler_gap_mean", "sampler_gap_p50", "sampler_gap_p90", "sampler_gap_p99",
    }  # fmt: skip


def test_equal_scores_have_no_deviation_whatever_is_rounded() -> None:
    row = score.figures(replace(episodes(), scores=torch.tensor([0.1, 0.1])), 0.2, 0.5, World(CPU))
    assert row["score_std"] == pytest.approx(0.0, abs=1e-8)


def test_the_share_of_groups_that_teach_nothing_where_there_are_groups() -> None:
    row = score.figures(replace(episodes(), flat=torch.tensor([True, False])), 0.2, 0.5, World(CPU))
    assert row["flat_groups"] == 0.5


def test_of_several_processes_means_are_over_all_episodes() -> None:
    """The other one has the same: sums twice as large, and twice as many."""
    class Two:
        processes = 2
        totals = staticmethod(lambda numbers: {name: 2 * float(value) for name, value in numbers.items()})
        stacked = staticmethod(lambda tensor: torch.stack([tensor, tensor]))

    assert score.figures(episodes(), 0.2, 0.5, Two()) == pytest.approx(score.figures(episodes(), 0.2, 0.5, World(CPU)))


def test_the_first_figures_of_a_run_have_the_gap_beyond_the_clip(tmp_path: Path) -> None:
    _, outcome, _ = run(tmp_path)
    assert all(row["sampler_gap_beyond_clip"] == 0.0 for row in outcome.history)


def test_a_record_has_what_the_targets_were_made_of(tmp_path: Path) -> None:
    _, outcome, _ = run(tmp_path, record=[1], updates=1, temperature=0.6)
    found, row, settings = recorder.read(tmp_path, 1)
    assert row == rounded(outcome.history[0])
    assert settings == {"temperature": 0.6, **config(**USUAL).algorithm().settings()}
    assert torch.allclose(found.kl, (found.log_probs - found.reference) * found.mask, atol=1e-6)
    assert torch.allclose(found.rewards.sum(1), found.scores - 0.3 * found.kl.sum(1), atol=1e-5)
