"""The supervised loop's own pieces: what Trainer is told, a loss with figures, and a process that is one of several.

The several processes are stand-ins: what the others would say is written into the test. The real ones, over gloo, are
in tests/invariants.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from ajuste.core.params import Compute
from ajuste.learning.batching import LengthGroupedSampler
from tasks.supervised import loop
from tests.keys.test_first_step import COMPUTE, Measured, Rows, Toy, Y, cross_entropy, run

torch.set_num_threads(1)


def of_two(monkeypatch: pytest.MonkeyPatch, rank: int, **answers: object) -> None:
    """This process is `rank` of two; answers: what the functions of ajuste/core/world.py give."""
    known = {"rank": lambda: rank, "processes": lambda: 2, "first": lambda: rank == 0, "wait": lambda: None,
             "same": lambda thing: thing, "any_of": bool, **answers}  # fmt: skip
    for name, function in known.items():
        monkeypatch.setattr(loop.world, name, function)


def trainer(**parts: object) -> loop._Trainer:
    """A Trainer with these attributes and no others."""
    made = loop._Trainer.__new__(loop._Trainer)
    for name, value in parts.items():
        setattr(made, name, value)
    return made


# --- what Trainer is told ---------------------------------------------------------------------------------------------


def test_trainer_is_told_the_keys_and_nothing_goes_by_its_own_habits(tmp_path: Path) -> None:
    keys = {"lr": 0.03, "warmup": 0.25, "epochs": 7, "batch_rows": 12, "accumulation": 3, "weight_decay": 0.02,
            "max_grad_norm": 0.7, "evaluations": 2, "patience": 3}  # fmt: skip
    told = loop._arguments(loop.LoopConfig(**keys), COMPUTE, tmp_path / "checkpoints")
    assert told.output_dir == str(tmp_path / "checkpoints")
    assert (told.learning_rate, told.warmup_steps, told.num_train_epochs) == (0.03, 0.25, 7)
    assert (told.per_device_train_batch_size, told.gradient_accumulation_steps) == (4, 3)
    assert (told.weight_decay, told.max_grad_norm, told.seed) == (0.02, 0.7, COMPUTE.seed)
    assert told.lr_scheduler_type == "linear" and told.use_cpu is True and told.bf16 is False
    assert told.logging_strategy == told.eval_strategy == told.save_strategy == "no"
    assert told.logging_nan_inf_filter is told.remove_unused_columns is told.dataloader_pin_memory is False
    assert told.disable_tqdm is True and told.report_to == [] and told.log_level == "error"
    half = Compute(dtype="bfloat16", device="cpu", threads=1, seed=3)
    assert loop._arguments(loop.LoopConfig(**keys), half, tmp_path).bf16 is True


# --- a loss with figures ----------------------------------------------------------------------------------------------


def with_figures(model: torch.nn.Module, batch: dict, items: object) -> tuple:
    loss = cross_entropy(model, batch, items)
    return loss, {"zeros": (batch["labels"] == 0).sum() / items, "all": torch.tensor(len(batch["labels"])) / items}


@pytest.mark.parametrize("pieces", [1, 2])
def test_figures_of_a_loss_stand_in_the_row_of_their_step(pieces: int, tmp_path: Path) -> None:
    model, history = run(tmp_path / "run", Measured([0.5, 0.4]), loss=with_figures, epochs=2, accumulation=pieces)
    plain, rows = run(tmp_path / "plain", Measured([0.5, 0.4]), epochs=2, accumulation=pieces)
    assert torch.equal(model.layer.weight, plain.layer.weight)
    steps = [row for row in history if "loss" in row]
    order = LengthGroupedSampler([3] * len(Y), 4, COMPUTE.seed)
    for number, row in enumerate(steps):
        order.set_epoch(number // 3)
        chosen = list(order)[number % 3 * 4 :][:4]
        assert row["zeros"] == pytest.approx((Y[chosen] == 0).mean()) and row["all"] == pytest.approx(1.0)
        assert list(row) == ["step", "loss", "lr", "grad_norm", "all", "zeros"]
    assert [{key: row[key] for key in row if key not in ("all", "zeros")} for row in history] == rows
    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


def test_a_run_gone_on_with_has_the_figures_of_the_steps_before(tmp_path: Path) -> None:
    keys = {"loss": with_figures, "epochs": 4, "batch_rows": 12}
    _, whole = run(tmp_path / "whole", Measured([0.5, 0.3, 0.2, 0.1]), **keys)
    with pytest.raises(IndexError):
        run(tmp_path / "killed", Measured([0.5, 0.3]), **keys)
    _, history = run(tmp_path / "killed", Measured([0.2, 0.1]), **keys)
    assert history == whole
    assert (tmp_path / "killed/history.jsonl").read_bytes() == (tmp_path / "whole/history.jsonl").read_bytes()


# --- one of two processes ---------------------------------------------------------------------------------------------


def accelerator(processes: int) -> SimpleNamespace:
    return SimpleNamespace(num_processes=processes, reduce=lambda tensor, how: {"sum": 3 * tensor}[how])


@pytest.mark.parametrize("rank", [0, 1])
def test_its_batches_are_its_share_of_each_step(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of_two(monkeypatch, rank)
    order = LengthGroupedSampler(list(range(12)), 4, 3)
    made = trainer(sampler=order, shares=(4, 2), train_dataset=Rows(), data_collator=lambda rows: {"labels": rows})
    expected = np.array(list(order)).reshape(3, 4)[:, rank::2].ravel().tolist()  # pieces of a row, every second one
    assert [batch["labels"] for batch in made.get_train_dataloader()] == [[row] for row in expected]


def loss_of(labels: list[int], processes: int, items: int | None = 8, across: bool = True) -> tuple[float, dict]:
    made = trainer(
        accelerator=accelerator(processes), args=SimpleNamespace(average_tokens_across_devices=across),
        figures={"sum": torch.tensor(0.5)}, compute_loss_func=lambda model, batch, items: (model(batch), {
            "sum": torch.tensor(2.0, requires_grad=True), "items": torch.tensor(float(items or 0))}),
    )  # fmt: skip
    inputs = {"labels": torch.tensor(labels)}
    loss = made.compute_loss(lambda batch: torch.tensor(5.0) + batch["labels"][0], inputs, num_items_in_batch=items)
    assert not any(value.requires_grad for value in made.figures.values())
    return loss.item(), {name: value.item() for name, value in made.figures.items()}


def test_a_loss_is_the_sum_of_all_processes_and_rows_for_company_count_nothing() -> None:
    assert loss_of([1, -100], 2) == (12.0, {"sum": 2.5, "items": 8.0})  # DDP takes the mean of the two
    assert loss_of([-100, -100], 2) == (0.0, {"sum": 0.5, "items": 0.0})
    assert loss_of([1, -100], 2, across=False)[0] == loss_of([1, 2], 2, items=None)[0] == 6.0
    assert loss_of([1, 2], 1) == (6.0, {"sum": 2.5, "items": 8.0})
    assert loss_of([-100], 1) == (-95.0, {"sum": 2.5, "items": 8.0})  # alone every row counts
    plain = trainer(accelerator=accelerator(2), args=SimpleNamespace(average_tokens_across_devices=True),
                    compute_loss_func=lambda model, batch, items: model)  # fmt: skip
    assert plain.compute_loss(torch.tensor(4.0), {"labels": torch.tensor([1])}, num_items_in_batch=2).item() == 8.0


def test_figures_are_summed_over_the_processes_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(loop.Trainer, "log", lambda self, *arguments: seen.append(arguments))
    made = trainer(accelerator=accelerator(2), figures={"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    made.log({"eval_loss": 1.0}, 7.0)
    made.log({"loss": 1.0}, 7.0)
    made.log({"loss": 2.0})
    assert seen == [({"eval_loss": 1.0}, 7.0), ({"loss": 1.0, "figures": {"a": 3.0, "b": 6.0}}, 7.0), ({"loss": 2.0},)]


def test_all_go_by_what_the_first_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two(monkeypatch, 1, same=lambda thing: {"loss": 0.25, "accuracy": thing["accuracy"] + 1})
    seen: list = []
    made = trainer(model=Toy().train(), measure=lambda model: {"loss": 9.0, "accuracy": float(model.training)},
                   args="args", state="state", control="control")  # fmt: skip
    made.callback_handler = SimpleNamespace(on_evaluate=lambda *arguments: seen.append(arguments) or "changed")
    monkeypatch.setattr(loop.Trainer, "log", lambda self, logs: seen.append(logs))
    expected = {"eval_loss": 0.25, "eval_accuracy": 1.0}
    assert made.evaluate() == expected and made.control == "changed"
    assert seen == [expected, ("args", "state", "control", expected)]


def follow(folder: Path, metric: str = "loss", every: int = 2) -> loop._Follow:
    return loop._Follow(folder, metric, 3, every)


def test_the_other_process_has_other_dropout_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = [{"step": 1, "loss": 0.5, "learning_rate": 0.1, "grad_norm": 2.0, "epoch": 0.1}]
    state, args = SimpleNamespace(log_history=log, global_step=1), TrainingArguments(tmp_path / "out", seed=11)
    row = {"step": 1, "loss": 0.5, "lr": 0.1, "grad_norm": 2.0}
    of_two(monkeypatch, 1)
    other = follow(tmp_path)
    other.on_train_begin(args, state, None)
    assert torch.initial_seed() == 11 + 1_000_003 and other.history == [row]
    other.on_log(args, state, None)
    other.on_save(args, state, None)
    assert other.history == [row, row] and not list(tmp_path.glob("*.jsonl")) and not list(tmp_path.glob("check*"))
    of_two(monkeypatch, 0)
    torch.manual_seed(5)
    first = follow(tmp_path)
    first.on_train_begin(args, state, None)
    first.on_log(args, state, None)
    assert torch.initial_seed() == 5 and (tmp_path / "history.jsonl").read_text() == 2 * (json.dumps(row) + "\n")


@pytest.mark.parametrize(("step", "due"), [(1, False), (2, True), (3, False), (4, True), (5, True)])
def test_evaluations_and_checkpoints_are_due_together(
    step: int, due: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every second step and the last of 5; a checkpoint besides when one of the processes was interrupted."""
    asked: list[bool] = []
    of_two(monkeypatch, 1, any_of=lambda flag: asked.append(flag) or "one of them")
    made, control = follow(tmp_path), SimpleNamespace()
    made.on_step_end(None, SimpleNamespace(global_step=step, max_steps=5), control)
    assert vars(control) == {"should_log": True, "should_evaluate": due, "should_save": "one of them"}
    made.interrupt.asked = True
    made.on_step_end(None, SimpleNamespace(global_step=step, max_steps=5), control)
    assert asked == [due, True] and control.should_evaluate is due


def test_an_interrupt_of_another_process_ends_this_one_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of_two(monkeypatch, 1, any_of=lambda flag: flag is False)
    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path).on_save(None, SimpleNamespace(global_step=1), None)


# --- history and checkpoints ------------------------------------------------------------------------------------------


def test_the_best_of_equals_is_that_of_the_lower_loss_then_the_earlier() -> None:
    def rows(*numbers: tuple[float, float]) -> list[dict]:
        found = [{"step": n, "eval_accuracy": a, "eval_loss": x} for n, (a, x) in enumerate(numbers, 1)]
        return [{"step": 1, "loss": 0.1}, *found]

    history = rows((0.5, 0.4), (0.7, 0.6), (0.7, 0.5), (0.7, 0.5), (0.6, 0.1))
    assert loop.best_step(history, "accuracy") == 3 and loop.best_step(history, "loss") == 5
    assert loop.stale_evaluations(history, "accuracy") == 2
    assert loop.best_step(rows((0.1, -3.0), (0.2, -0.5)), "loss") == 1  # a loss may be below 0


def test_only_the_best_and_the_last_checkpoint_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: list[str] = []
    monkeypatch.setattr(loop, "seal", lambda folder: sealed.append(folder.name))
    made = follow(tmp_path, "accuracy")
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    made.history = [{"step": step, "eval_accuracy": -abs(step - 2), "eval_loss": step} for step in (1, 2, 3, 4)]
    made._seal(SimpleNamespace(global_step=4))
    assert sealed == ["checkpoint-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    made.history = [{"step": 4, "loss": 1.0}]  # interrupted before the first evaluation
    made._seal(SimpleNamespace(global_step=4))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_checkpoint_before_the_first_evaluation_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loop._resumable(tmp_path, "loss") is None
    monkeypatch.setattr(loop, "is_complete", lambda folder: folder.name == "checkpoint-3")
    monkeypatch.setattr(loop, "last_complete", lambda folder: folder / "checkpoint-3")
    log: list[dict] = [{"step": 1, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0}]
    for evaluations, expected in (([], True), ([(2, 0.5), (3, 0.4)], True), ([(2, 0.4), (3, 0.5)], False)):
        for step in (2, 3):
            (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
        rows = log + [{"step": step, "eval_loss": value} for step, value in evaluations]
        text = json.dumps({"log_history": rows}, ensure_ascii=False)
        (tmp_path / "checkpoint-3/trainer_state.json").write_text(text, encoding="utf-8")
        assert loop._resumable(tmp_path, "loss") == (tmp_path / "checkpoint-3" if expected else None)
        assert len(list(tmp_path.glob("checkpoint-*"))) == (2 if expected else 0)


def test_weights_that_train_are_kept_alone_and_come_back(tmp_path: Path) -> None:
    model = Toy()
    made = trainer(model=model, args=SimpleNamespace(should_save=True, output_dir=str(tmp_path / "default")))
    made._save(str(tmp_path / "deep/folder"))
    made._save(str(tmp_path / "deep/folder"))
    made._save()
    given = {name: value + 1 for name, value in model.state_dict().items()}
    made._save(str(tmp_path / "given"), given)
    wanted = {name: value.clone() for name, value in model.state_dict().items() if name != "still"}
    for folder, more in (("deep/folder", 0), ("default", 0), ("given", 1)):
        found = loop.load_file(tmp_path / folder / loop.WEIGHTS)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name] + more) for name in wanted)
    made._load_from_checkpoint(str(tmp_path / "given"))
    assert torch.equal(model.layer.bias, wanted["layer.bias"] + 1) and torch.equal(model.still, torch.ones(2))
    made.args.should_save = False
    made._save(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_run_is_unfinished_until_its_patience_is_over(tmp_path: Path) -> None:
    made = loop._Follow(tmp_path, "loss", 2, 1)
    history = [{"step": 1, "loss": 1.0}]
    assert made.unfinished(history)
    for step, value, more in ((1, 0.5, True), (2, 0.6, True), (3, 0.7, False)):
        history.append({"step": step, "eval_loss": value})
        assert made.unfinished(history) is more
    assert not made.unfinished(history[1:]), "evaluations alone"
    control = SimpleNamespace(should_training_stop=False)
    made.history = history[:-1]
    made.on_evaluate(None, None, control)
    assert control.should_training_stop is False
    made.history = history
    made.on_evaluate(None, None, control)
    assert control.should_training_stop is True


def test_room_for_its_checkpoints_is_asked_for_once_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(loop.room, "ask", lambda wanted, what: asked.append((list(wanted), what)))
    with pytest.raises(IndexError):
        run(tmp_path, Measured([0.5]), epochs=2, batch_rows=12)
    assert asked == [([tmp_path], "the checkpoints of this training")]
    run(tmp_path, Measured([0.4]), epochs=2, batch_rows=12)  # goes on: its room is taken already
    assert len(asked) == 1
    monkeypatch.setattr(loop.world, "first", lambda: False)
    run(tmp_path / "other", Measured([0.5, 0.4]), epochs=2, batch_rows=12)
    assert len(asked) == 1
