"""Each key of the supervised loop does what its formula says: the weights after some steps, beside AdamW by hand.

    rate_k = lr k / w in the first w = ceil(warmup K) of K steps, then lr (K - k) / (K - w)          k = 0 ... K - 1
    g <- g min(1, max_grad_norm / |g|)
    W <- W - rate (decay W + mhat / (sqrt(vhat) + 1e-8))        decay: of matrices, not of biases and norms

A linear model with a bias and no transformer; the reference is float64 NumPy and shares no code with Trainer or torch.
"""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute
from ajuste.learning.batching import LengthGroupedSampler
from tasks.supervised import loop

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=3)
USUAL = {"lr": 0.1, "warmup": 0.0, "epochs": 1, "batch_rows": 4, "accumulation": 1, "weight_decay": 0.0,
         "max_grad_norm": 1e9, "evaluations": 1, "patience": 50}  # fmt: skip
X = np.random.default_rng(0).normal(size=(12, 3)) * [1.0, 2.0, 0.5]
Y = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1])
W0, B0 = np.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]]), np.array([0.2, -0.1])


class Toy(nn.Module):
    """z = W x + b, and a frozen weight beside them that no step may touch and no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.still = nn.Parameter(torch.ones(2), requires_grad=False)
        self.modes: list[bool] = []
        self.halved = False  # were the products of the last pass under autocast?
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(W0))
            self.layer.bias.copy_(torch.tensor(B0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        self.halved = torch.is_autocast_enabled("cpu")
        return self.layer(x) * self.still


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, i: int) -> int:
        return i


def collate(chosen: list[int]) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(X[chosen], dtype=torch.float32), "labels": torch.tensor(Y[chosen])}


def cross_entropy(model: nn.Module, batch: dict, items: torch.Tensor | int | None) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="sum") / items


class Measured:
    """A validation that says what it is told, and remembers the weights that it saw."""

    def __init__(self, losses: list[float], name: str = "loss", values: list[float] | None = None) -> None:
        self.losses, self.name, self.values = losses, name, values
        self.weights: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        number = len(self.weights)
        self.weights.append(model.layer.weight.detach().clone())
        self.modes.append(model.training)
        return {"loss": self.losses[number]} | ({self.name: self.values[number]} if self.values else {})


def falling() -> Measured:
    return Measured([1.0 - 0.01 * n for n in range(90)])


def run(folder: Path, measured: Measured | None = None, metric: str = "loss", model: nn.Module | None = None,
        loss=cross_entropy, compute: Compute = COMPUTE, **keys: object) -> tuple[nn.Module, list[dict]]:  # fmt: skip
    model = model or Toy()
    folder.mkdir(exist_ok=True)
    config = loop.LoopConfig(**{**USUAL, **keys})
    lengths = [3] * len(Y)
    history = loop.train(model, Rows(), lengths, collate, loss, measured or falling(), metric, config, compute, folder)
    return model, history


def by_hand(keys: dict) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """W, b and for each step its loss, the norm before the cut, and its rate."""
    c = {**USUAL, **keys}
    per_epoch = math.ceil(len(Y) / c["batch_rows"])
    K = per_epoch * c["epochs"]
    w = math.ceil(c["warmup"] * K)
    theta, m, v, rows = np.concatenate([W0.ravel(), B0]), np.zeros(8), np.zeros(8), []
    decay = c["weight_decay"] * np.array([1.0] * 6 + [0.0] * 2)

    def rate(k: int) -> float:
        return c["lr"] * (k / w if k < w else (K - k) / (K - w))

    sampler = LengthGroupedSampler([3] * len(Y), c["batch_rows"], COMPUTE.seed)
    for k in range(K):
        if k % per_epoch == 0:
            sampler.set_epoch(k // per_epoch)
            order = list(sampler)
        chosen = order[(k % per_epoch) * c["batch_rows"] :][: c["batch_rows"]]
        x, y = X[chosen], np.eye(2)[Y[chosen]]
        z = x @ theta[:6].reshape(2, 3).T + theta[6:]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        d = (p - y) / len(chosen)
        g = np.concatenate([(d.T @ x).ravel(), d.sum(0)])
        norm = np.sqrt((g**2).sum())
        rows.append({"loss": -(y * np.log(p)).sum() / len(chosen), "grad_norm": norm, "lr": rate(k)})
        g = g * min(1.0, c["max_grad_norm"] / (norm + 1e-6))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        theta = theta - rate(k) * (decay * theta + step)
    return theta[:6].reshape(2, 3), theta[6:], rows


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lr": 0.03},
        {"warmup": 0.26, "epochs": 3},
        {"batch_rows": 5},
        {"accumulation": 4, "max_grad_norm": 0.1},
        {"weight_decay": 0.7},
        {"max_grad_norm": 0.05, "epochs": 2},
        {"max_grad_norm": 0.4, "weight_decay": 0.3, "lr": 0.02, "warmup": 0.3, "epochs": 4, "batch_rows": 6},
    ],
    ids=str,
)
def test_the_weights_are_those_of_adamw_by_hand(keys: dict, tmp_path: Path) -> None:
    model, history = run(tmp_path / "run", **keys)
    W, b, rows = by_hand(keys)
    assert np.abs(model.layer.weight.detach().numpy() - W).max() < 2e-6
    assert np.abs(model.layer.bias.detach().numpy() - b).max() < 2e-6
    assert torch.equal(model.still, torch.ones(2))
    steps = [row for row in history if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(rows) + 1))
    for row, expected in zip(steps, rows, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-6)


@pytest.mark.parametrize(("evaluations", "steps"), [(1, [3, 6]), (2, [2, 4, 6])])
def test_evaluations_stand_at_their_steps_and_the_last(evaluations: int, steps: list[int], tmp_path: Path) -> None:
    measured = falling()
    model, history = run(tmp_path / "run", measured, epochs=2, evaluations=evaluations)
    assert [row["step"] for row in history if "eval_loss" in row] == steps
    assert not any(measured.modes) and all(model.modes)  # evaluated without dropout, trained with it
    assert torch.equal(model.layer.weight, measured.weights[-1])


def test_an_evaluation_out_of_step_comes_at_the_end_too(tmp_path: Path) -> None:
    _, history = run(tmp_path / "run", evaluations=2)
    assert [row["step"] for row in history if "eval_loss" in row] == [2, 3]


def test_patience_counts_evaluations_since_the_best_and_its_weights_are_kept(tmp_path: Path) -> None:
    for patience, seen in ((1, 3), (2, 4), (3, 8)):
        measured = Measured([0.5, 0.4, 0.6, 0.45, 0.39, 0.6, 0.6, 0.6])
        model, history = run(tmp_path / f"run-{patience}", measured, epochs=9, batch_rows=12, patience=patience)
        assert len(measured.weights) == seen
        assert torch.equal(model.layer.weight, measured.weights[1 if patience < 3 else 4])
        assert history[-1] == {"step": seen, "eval_loss": measured.losses[seen - 1]}


def test_a_higher_metric_is_better_and_a_lower_loss_where_it_is_the_loss(tmp_path: Path) -> None:
    measured = Measured([0.5, 0.4, 0.6], "accuracy", [0.7, 0.6, 0.8])
    model, history = run(tmp_path / "run", measured, "accuracy", epochs=3, batch_rows=12)
    assert torch.equal(model.layer.weight, measured.weights[2])
    assert history[-1] == {"step": 3, "eval_accuracy": 0.8, "eval_loss": 0.6}
    assert loop.best_step(history, "accuracy") == 3 and loop.best_step(history, "loss") == 2
    assert loop.stale_evaluations(history, "accuracy") == 0 and loop.stale_evaluations(history, "loss") == 1


def test_the_history_is_a_file_and_the_kept_checkpoints_are_the_best_and_the_last(tmp_path: Path) -> None:
    measured = Measured([0.5, 0.3, 0.6, 0.4])
    _, history = run(tmp_path / "run", measured, epochs=4, batch_rows=12)
    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    weights = loop.load_file(tmp_path / "run/checkpoint-2" / loop.WEIGHTS)
    assert sorted(weights) == ["layer.bias", "layer.weight"]  # what does not learn is the base's
    assert torch.equal(weights["layer.weight"], measured.weights[1])


def test_a_run_that_had_stopped_early_is_not_gone_on_with(tmp_path: Path) -> None:
    keys = {"epochs": 9, "batch_rows": 12, "patience": 2}
    first, history = run(tmp_path / "run", Measured([0.5, 0.6, 0.7]), **keys)
    again = Measured([])
    model, same = run(tmp_path / "run", again, **keys)
    assert same == history and again.weights == [] and model.modes == []
    assert torch.equal(model.layer.weight, first.layer.weight)


LOSSES = [0.9, 0.3, 0.6, 0.5, 0.8]
EACH = {"epochs": 5, "batch_rows": 12, "warmup": 0.4}  # a step, an evaluation and a checkpoint in each epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, list[dict], bytes]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder, Measured(LOSSES), **EACH), (folder / "history.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("spoilt", "left"), [(None, LOSSES[4:]), ("checkpoint-2", LOSSES), ("checkpoint-4", LOSSES[2:])]
)
def test_a_killed_run_goes_on_to_the_same_bits(whole: tuple, spoilt: str | None, left: list, tmp_path: Path) -> None:
    """Killed in the fifth evaluation; without its last checkpoint (4) it goes on from the best (2), without that it
    begins again."""
    with pytest.raises(IndexError):
        run(tmp_path, Measured(LOSSES[:4]), **EACH)
    if spoilt:
        (tmp_path / spoilt / "COMPLETE").unlink()
    measured = Measured(left)
    model, history = run(tmp_path, measured, **EACH)
    assert history == whole[1] and len(measured.weights) == len(left)
    assert torch.equal(model.layer.weight, whole[0].layer.weight)
    assert torch.equal(model.layer.bias, whole[0].layer.bias)
    assert (tmp_path / "history.jsonl").read_bytes() == whole[2]


def test_an_interrupt_keeps_a_checkpoint_after_the_running_step(tmp_path: Path) -> None:
    asked: list[int] = []

    def interrupting(model: nn.Module, batch: dict, items: object) -> torch.Tensor:
        asked.append(1)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(model, batch, items)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", loss=interrupting)
    assert len(asked) == 2 and [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    model, history = run(tmp_path / "run")
    W, b, rows = by_hand({})
    assert np.abs(model.layer.weight.detach().numpy() - W).max() < 2e-6
    assert [row["step"] for row in history] == [1, 2, 3, 3]


def test_a_run_that_diverges_is_named(tmp_path: Path) -> None:
    def wrong(model: nn.Module, batch: dict, items: object) -> torch.Tensor:
        return cross_entropy(model, batch, items) * float("nan")

    with pytest.raises(UsageError, match="^training diverged: the loss of step 1 is no number: lower `lr`$"):
        run(tmp_path / "run", loss=wrong)
    with pytest.raises(UsageError, match="the loss of step 3 is no number"):
        run(tmp_path / "validation", Measured([math.inf]))


def test_bfloat16_runs_the_products_under_autocast_and_keeps_the_weights_float32(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        model, _ = run(tmp_path / dtype, compute=COMPUTE.model_copy(update={"dtype": dtype}))
        assert model.layer.weight.dtype == torch.float32
        assert model.halved is (dtype == "bfloat16")


def test_pieces_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="batch_rows 4 cannot be cut into accumulation 3 pieces"):
        loop.LoopConfig(**{**USUAL, "accumulation": 3})
