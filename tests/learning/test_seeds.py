"""ajuste/learning/seeds.py: who is seeded, with what, and which switches stand."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ajuste.learning.seeds import seed_everything


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What the call switches on for the whole process is as before afterwards."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield monkeypatch
    torch.use_deterministic_algorithms(strict, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.set_num_threads(1)


def test_python_numpy_and_torch_draw_what_their_own_generators_of_that_seed_draw(restored) -> None:
    for seed in (0, 5):
        seed_everything(seed, 1)
        assert random.random() == random.Random(seed).random()
        assert np.random.random() == np.random.RandomState(seed).random_sample()
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


def test_threads_and_deterministic_kernels(restored) -> None:
    seed_everything(1, 2)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is False
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    restored.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what a user has set stays
    seed_everything(1, 1)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
