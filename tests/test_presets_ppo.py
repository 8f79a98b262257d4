"""The three published PPOs: their numbers, and that each detail does what its source says, on a tiny run of each."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from torch import Tensor

from ajuste.learning.rl.steps import Adam
from ajuste.models.one_base import OneBase, Settings
from tasks.ppo import PpoConfig
from tasks.rl import loop, recorder
from tasks.rl.episodes import Episodes
from tests.made import tiny_decoders, tiny_rlhf
from tests.made.tiny_ppo import CONFIG

ROOT = Path(__file__).parents[1]
OURS = {"2019": "lm-human-preferences-2019", "2024": "n-plus-2024", "trl": "trl-1.12"}
COMMON = {
    "minibatches": 1, "epochs": 4, "temperature": 0.7, "gamma": 1.0, "lam": 0.95, "clip": 0.2, "value_clip": 0.2,
    "vf_coef": 0.1, "kl_estimator": "k1", "whiten_advantages": True, "dual_clip": None, "max_grad_norm": None, "ptx": 0,
    "missing_end_penalty": 1.0,
}  # fmt: skip
PUBLISHED = {  # 2019: launch.py, train_policy.py; 2024: summarize_from_feedback_details, ppo.py; trl: ppo_config.py
    "2019": COMMON | {
        "value": "trunk", "value_start": "zero", "max_new_tokens": 24, "terminal": "at_end", "missing_end": "replace",
        "whiten_rewards": True, "unbiased": False, "kl_control": "ziegler", "beta": 0.15, "kl_target": 6.0,
        "kl_horizon": 10_000, "lr": 1e-5, "lr_schedule": "linear", "adam_eps": 1e-5, "adam_eps_mode": "tf",
    },
    "2024": COMMON | {
        "value": "adapter", "value_start": "reward", "max_new_tokens": 53, "terminal": "after_end",
        "missing_end": "replace", "whiten_rewards": False, "unbiased": False, "kl_control": "fixed", "beta": 0.05,
        "lr": 3e-6, "lr_schedule": "cosine", "adam_eps": 1e-5, "adam_eps_mode": "torch",
    },
    "trl": COMMON | {
        "value": "adapter", "value_start": "reward", "max_new_tokens": 53, "terminal": "after_end",
        "missing_end": "subtract", "whiten_rewards": False, "unbiased": True, "kl_control": "fixed", "beta": 0.05,
        "lr": 3e-6, "lr_schedule": "linear", "adam_eps": 1e-8, "adam_eps_mode": "torch",
    },
}  # fmt: skip
STOP = list(range(4, 90))  # of the tiny vocabulary: some responses end early, some never


def preset(name: str) -> dict:
    return yaml.safe_load((ROOT / "presets" / f"{OURS[name]}.yaml").read_text())["ppo"]


class Run(NamedTuple):
    name: str
    config: PpoConfig
    history: list[dict]
    flights: list[Episodes]  # of the three updates
    optimiser: Adam


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base and a reward model on it."""
    folder = tmp_path_factory.mktemp("presets")
    base = tiny_rlhf.whole(tiny_decoders.tiny_base(folder / "decoder"), folder / "instruct", seed=3)
    return base, tiny_rlhf.reward_adapter(base, folder / "reward")


@pytest.fixture(scope="module", params=OURS)
def run(request: pytest.FixtureRequest, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three updates under a preset, from a policy that has left its reference; only sizes are changed."""
    torch.set_num_threads(1)
    sizes = {"updates": 3, "batch_rows": 8, "micro_rows": 8, "max_new_tokens": 6, "record": [1, 2, 3], "radar_every": 9}
    config = PpoConfig(**{**CONFIG, **preset(request.param), **sizes})
    torch.manual_seed(0)
    one = OneBase.build(*folders, Settings(4, 8.0, value=config.value, value_start=config.value_start), torch.float32)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if ".policy." in name and "lora_B" in name:
                parameter.normal_(std=0.05)
    made = []
    real = loop.steps.Adam

    def noticed(*args, **kwargs) -> Adam:
        made.append(real(*args, **kwargs))
        return made[-1]

    folder = tmp_path_factory.mktemp(request.param)
    prompts = [[5 + i, 20 + i, 40] for i in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.steps, "Adam", noticed)
        history = loop.train(one, config.algorithm(), prompts, one.scores, config, 0, folder, STOP).history
    return Run(request.param, config, history, [recorder.read(folder, u).episodes for u in (1, 2, 3)], made[0])


def paid(run: Run, episodes: Episodes, row: dict) -> Tensor:
    """Rewards [B, R+1] before whitening, written down a token at a time from the sources."""
    rewards = torch.zeros(len(episodes.scores), episodes.mask.shape[1] + 1)
    for b, score in enumerate(episodes.scores.tolist()):
        length = int(episodes.mask[b].sum())
        for t in range(length):
            rewards[b, t] = -row["beta"] * (episodes.log_probs[b, t] - episodes.reference[b, t])
        if not episodes.ended[b]:
            score = score - 1 if run.name == "trl" else -1.0
        later = run.name != "2019" and bool(episodes.ended[b])
        rewards[b, length - 1 + later] += score
    return rewards


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in PUBLISHED.items() for key in keys])
def test_numbers_are_the_published_ones(name: str, key: str) -> None:
    assert preset(name)[key] == PUBLISHED[name][key]


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_named_that_was_not_published(name: str) -> None:
    assert preset(name).keys() == PUBLISHED[name].keys()


def test_both_kinds_of_ends_are_there(run: Run) -> None:
    """Else the tests below would say little."""
    ended = torch.cat([episodes.ended for episodes in run.flights])
    assert ended.any() and not ended.all()
    assert all(row["kl"] != 0 for row in run.history)


def test_score_and_kl_are_paid_where_the_source_pays_them(run: Run) -> None:
    for episodes, row in zip(run.flights, run.history, strict=True):
        expected = paid(run, episodes, row)
        if run.name != "2019":
            assert torch.allclose(episodes.rewards, expected, atol=1e-5)


def test_2019_whitens_rewards_and_keeps_their_mean(run: Run) -> None:
    for episodes, row in zip(run.flights, run.history, strict=True):
        raw, mask = paid(run, episodes, row)[:, :-1], episodes.mask
        inside = raw[mask]
        white = (inside - inside.mean()) / (inside.var(unbiased=False) + 1e-8).sqrt() + inside.mean()
        same = torch.allclose(episodes.rewards[:, :-1][mask], white, atol=1e-4)
        assert same is (run.name == "2019")


def test_advantages_and_returns_are_the_sources_loop_over_padded_rows(run: Run) -> None:
    """for t in reversed(range(gen_length)), values 0 behind `padding_mask_p1`; returns before the whitening."""
    for episodes in run.flights:
        values = episodes.values * episodes.value_mask
        reverse, last = [], 0.0
        for t in reversed(range(values.shape[1])):
            following = values[:, t + 1] if t + 1 < values.shape[1] else 0.0
            last = episodes.rewards[:, t] + following - values[:, t] + 0.95 * last
            reverse.append(last)
        advantages = torch.stack(reverse[::-1], 1)
        assert torch.allclose(episodes.returns, (advantages + values) * episodes.value_mask, atol=1e-4)
        inside = advantages[:, :-1][episodes.mask]
        spread = inside.var(unbiased=run.name == "trl")
        expected = (inside - inside.mean()) / (spread + 1e-8).sqrt()
        assert torch.allclose(episodes.advantages[episodes.mask], expected, atol=1e-3)


def test_the_value_of_the_state_after_the_end_counts_in_2024_and_trl_alone(run: Run) -> None:
    for episodes in run.flights:
        steps = episodes.mask.sum(1) + (episodes.ended if run.name != "2019" else 0)
        assert torch.equal(episodes.value_mask.sum(1), steps)


def test_the_value_starts_at_zero_or_as_the_reward_model(run: Run) -> None:
    """The reward model's value of a whole response is its score."""
    first = run.flights[0]
    if run.name == "2019":
        assert not first.values.any()
    else:
        end = first.values.gather(1, first.mask.sum(1)[:, None])[:, 0]
        assert torch.allclose(end, first.scores, atol=1e-5) and first.values[:, 0].std() > 0


def test_beta_moves_by_zieglers_rule_or_not_at_all(run: Run) -> None:
    betas = [row["beta"] for row in run.history]
    if run.name != "2019":
        assert betas == [0.05] * 3
        return
    expected = 0.15
    for row in run.history:
        assert row["beta"] == pytest.approx(expected, rel=1e-9)
        expected *= 1 + min(max(row["kl"] / 6.0 - 1, -0.2), 0.2) * 8 / 10_000
    assert betas[2] != betas[1] != betas[0]


def test_the_learning_rate_falls_as_in_the_source(run: Run) -> None:
    course = [1, 2 / 3, 1 / 3]
    if run.name == "2024":
        course = [(1 + math.cos(math.pi * u / 3)) / 2 for u in range(3)]
    assert [row["lr"] / preset(run.name)["lr"] for row in run.history] == pytest.approx(course)


def test_the_optimiser_is_the_sources(run: Run) -> None:
    """Adam without weight decay, its epsilon, and four steps an update, one for each epoch."""
    assert isinstance(run.optimiser, Adam) and run.optimiser.eps_mode == PUBLISHED[run.name]["adam_eps_mode"]
    assert run.optimiser.eps == PUBLISHED[run.name]["adam_eps"]
    assert all(group["weight_decay"] == 0 for group in run.optimiser.param_groups)
    assert {int(state["step"]) for state in run.optimiser.state.values()} == {12}


def test_samples_are_drawn_at_the_temperature_of_every_log_probability(run: Run) -> None:
    assert run.config.temperature == 0.7
    for row in run.history:
        assert row["sampler_gap"] < 1e-4 and row["first_ratio_error"] == 0.0


def test_no_other_text_is_mixed_in(run: Run) -> None:
    assert all("ptx_loss" not in row for row in run.history)
