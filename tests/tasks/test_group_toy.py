"""GRPO and RLOO as a whole on PPO's toy task (test_ppo_toy.py): they learn what is rewarded, nothing from noise."""

import math
from functools import partial
from pathlib import Path

import pytest

from tests.made.tiny_group import config
from tests.tasks.test_ppo_toy import SLOW, VOCABULARY, rise, toy

METHODS = {
    "grpo": {}, "dr-grpo": {"scale": "none", "mean": "constant"}, "dapo": {"mean": "token", "clip_high": 0.28},
    "grpo, KL in the reward": {"kl_in": "reward"}, "rloo": {},
}  # fmt: skip
FAST = ("grpo", pytest.param("rloo", marks=pytest.mark.slow))


def run(method: str, seed: int, folder: Path, updates: int, random: bool = False) -> float:
    """How much the count of the wanted token rose; nothing blew up on the way."""
    section = partial(config, "rloo" if method == "rloo" else "grpo", **METHODS[method])
    said, history = toy(seed, folder, random, section, "none", updates=updates)
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert max(row["kl"] for row in history) < 8 * math.log(VOCABULARY) * 2
    return rise(said)


@pytest.mark.parametrize("method", FAST)
def test_the_count_of_a_token_rises(method: str, tmp_path: Path) -> None:
    assert run(method, 0, tmp_path, updates=16) > 1


def test_a_random_reward_teaches_nothing(tmp_path: Path) -> None:
    assert abs(run("grpo", 0, tmp_path, updates=16, random=True)) < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ten_seeds_of_ten_rise_and_noise_stays_flat(method: str, tmp_path: Path) -> None:
    up = [run(method, seed, tmp_path / f"count-{seed}", 40) for seed in SLOW]
    flat = [run(method, seed, tmp_path / f"noise-{seed}", 40, random=True) for seed in SLOW]
    print(method, "rise:", [round(x, 2) for x in up], "under a random reward:", [round(x, 2) for x in flat])
    assert min(up) > 3, up
    assert max(map(abs, flat)) < 1 and abs(sum(flat)) / len(flat) < 0.3, flat
