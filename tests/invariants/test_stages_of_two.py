"""Stages as torchrun starts them, two processes over gloo: the step of one process, one lock, one set of files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from safetensors.torch import load_file

from tests.keys.cases import first_rows
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.made.tiny_ppo import CONFIG as PPO
from tests.made.tuned import CONFIG as INSTRUCT
from tests.made.tuned import judged_set
from tests.tasks.test_dpo import COMPUTE, ReferenceConfig, reference
from tests.tasks.test_dpo import CONFIG as DPO
from tests.tasks.test_reward import CONFIG as REWARD
from tests.tasks.test_reward import comparisons

ROOT = Path(__file__).parents[2]
PARAMS = {
    "compute": {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0},
    # 41 rows: the last step of an epoch has a single one, which one of two processes takes
    "instruct": {**INSTRUCT.model_dump(), "batch_rows": 8, "accumulation": 2, "epochs": 2, "l2_to_w0": 0.0},
    "reward": {**REWARD.model_dump(), "batch_rows": 12, "accumulation": 2},
    "dpo": {**DPO.model_dump(), "batch_rows": 12, "accumulation": 2},
    "ppo": {**PPO, "updates": 1, "minibatches": 1, "epochs": 1, "radar_prompts": 2, "radar_every": 1, "record": [1],
            "ptx": 1.0, "ptx_rows": 2, "keep": "gold"},
}  # fmt: skip
OUT = "artifacts/adapters"


class Ran(NamedTuple):
    """A project after one stage: its folder, and what the stage printed."""

    folder: Path
    said: str

    def history(self, stage: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / OUT / stage / "history.jsonl").read_text().splitlines()]

    def files(self, below: str) -> set[str]:
        folder = self.folder / below
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def project(folder: Path, artifacts: Path, stage: str, **changes: object) -> Path:
    """params.yaml and dvc.yaml of one stage beside links to what it reads."""
    (folder / OUT).mkdir(parents=True)
    for path in ("base", "encoded", "merged", "reference", "adapters/reward"):
        if path != f"adapters/{stage}":
            (folder / "artifacts" / path).symlink_to(artifacts / path)
    section = {**PARAMS[stage], **changes}
    (folder / "params.yaml").write_text(yaml.safe_dump({"compute": PARAMS["compute"], stage: section}))
    entry = {"cmd": f"python -m tasks.{stage}", "deps": ["artifacts/encoded"], "params": ["compute", stage]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {stage: {**entry, "outs": [f"{OUT}/{stage}"]}}}))
    return folder


def begin(folder: Path, stage: str, processes: int) -> subprocess.Popen[str]:
    """The stage alone, or as torchrun starts it."""
    module = ["-m", f"tasks.{stage}"]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    return subprocess.Popen(
        [sys.executable, *module], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AJUSTE_HOME": str(folder)},
    )  # fmt: skip


def start(folder: Path, stage: str, processes: int) -> subprocess.CompletedProcess[str]:
    """The whole run."""
    process = begin(folder, stage, processes)
    try:
        out, err = process.communicate(timeout=900)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(folder: Path, artifacts: Path, stage: str, processes: int) -> Ran:
    done = start(project(folder, artifacts, stage), stage, processes)
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(folder, done.stdout)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the supervised stages read."""
    root = tmp_path_factory.mktemp("artifacts")
    base = tiny_decoders.tiny_base(root / "base/decoder")
    instruct = tiny_rlhf.whole(base, root / "merged/instruct", seed=3)
    first_rows(judged_set(base, root / "encoded/instructions"), 41)
    encoded = comparisons(instruct, root / "encoded/preferences", "rankings")
    tiny_rlhf.prompts(instruct, encoded, ("validation",))
    first_rows(encoded, 61)  # five steps of twelve, and one
    reference(ReferenceConfig(dtype="float32"), COMPUTE, encoded, instruct, root / "reference")
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "base/encoder"), root / "merged/gold")
    return root


@pytest.fixture(scope="module")
def ppo_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ppo")
    base = tiny_decoders.tiny_base(root / "base/decoder")
    instruct = tiny_rlhf.whole(base, root / "merged/instruct", seed=3)
    judged_set(base, root / "encoded/instructions")
    tiny_rlhf.reward_adapter(instruct, root / "adapters/reward")
    tiny_rlhf.prompts(instruct, root / "encoded/preferences", ("train", "validation"))
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "base/encoder"), root / "merged/gold")
    return root


def one_set_of_files(alone: Ran, together: Ran, stage: str) -> None:
    """Out, state and home hold what one process leaves there, and nothing is said twice."""
    assert together.files(f"{OUT}/{stage}") == alone.files(f"{OUT}/{stage}")
    assert together.files(".state") == alone.files(".state")
    for ran in (alone, together):  # checkpoints wait for DVC, those of two processes with two generators' states
        assert len(list(ran.folder.glob(".checkpoints/*/ENDED"))) == 1
    state = json.loads((together.folder / f".state/{stage}.json").read_text())
    assert state["error"] is None and state["tokens"] > 0
    assert len(together.said.splitlines()) == len(alone.said.splitlines())


def same_losses(rows: list[dict], others: list[dict]) -> None:
    assert len(rows) == len(others) and len(rows) > 5
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys() and row["step"] == other["step"]
        for name, value in row.items():
            tolerance = 1e-3 if name == "grad_norm" else 1e-5
            assert other[name] == pytest.approx(value, rel=tolerance, abs=1e-5), (row["step"], name)


def same_weights(alone: Ran, together: Ran, stage: str) -> None:
    weights, found = (load_file(ran.folder / OUT / stage / "adapter_model.safetensors") for ran in (alone, together))
    assert all((found[name] - value).abs().max() < 1e-3 for name, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["instruct", "reward", "dpo"])
def test_two_processes_train_as_one_does(stage: str, artifacts: Path, tmp_path: Path) -> None:
    """Losses and curves of every step and evaluation, gradient norms, learning rates and weights."""
    alone, together = (run(tmp_path / str(n), artifacts, stage, n) for n in (1, 2))
    one_set_of_files(alone, together, stage)
    same_losses(alone.history(stage), together.history(stage))
    same_weights(alone, together, stage)


@pytest.mark.slow
def test_ppo_in_two_processes_takes_the_configured_step(ppo_artifacts: Path, tmp_path: Path) -> None:
    """Its samples are other ones; the instruction rows beside them are those of one process."""
    alone, together = (run(tmp_path / str(n), ppo_artifacts, "ppo", n) for n in (1, 2))
    one_set_of_files(alone, together, "ppo")
    (row,), (other,) = alone.history("ppo"), together.history("ppo")
    assert row.keys() == other.keys() and row["episodes"] == other["episodes"] == 8
    assert other["ptx_loss"] == pytest.approx(row["ptx_loss"], rel=1e-5)
    assert other["score"] != row["score"]


@pytest.mark.slow
def test_an_interrupt_stops_both_after_the_same_step_and_the_next_run_goes_on(artifacts: Path, tmp_path: Path) -> None:
    """torchrun hands SIGTERM on; what is then there is one checkpoint with the generators of both."""
    longer = {"epochs": 15, "evaluations": 1, "patience": 15}
    calm, folder = (project(tmp_path / name, artifacts, "instruct", **longer) for name in ("calm", "stopped"))
    assert start(calm, "instruct", 1).returncode == 0
    process, deadline = begin(folder, "instruct", 2), time.monotonic() + 600
    while not any(path.stat().st_size for path in folder.glob(".checkpoints/*/history.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert all(f"process {rank}: stage `instruct` was interrupted" in err for rank in range(2)), err
    (last,) = folder.glob(".checkpoints/*/checkpoint-*")
    assert {path.name for path in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert (last / "COMPLETE").is_file() and 0 < int(last.name.split("-")[1]) < 90
    assert start(folder, "instruct", 2).returncode == 0
    rows, others = (Ran(ran, "").history("instruct") for ran in (calm, folder))
    assert [row["step"] for row in rows] == [row["step"] for row in others] and rows[-1]["step"] == 90
    assert others[0]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)
    assert others[-1]["eval_loss"] == pytest.approx(rows[-1]["eval_loss"], rel=1e-2)


@pytest.mark.slow
def test_a_step_that_cannot_be_divided_is_one_line(artifacts: Path, tmp_path: Path) -> None:
    done = start(project(tmp_path / "p", artifacts, "instruct", batch_rows=6, accumulation=2), "instruct", 2)
    assert done.returncode != 0
    said = "error[usage]: process 0: batch_rows 6 cannot be divided over 2 processes in accumulation 2 pieces: make it"
    assert said in done.stderr and "Traceback" not in done.stderr.split(said)[0]
    assert json.loads((tmp_path / "p/.state/instruct.json").read_text())["error"]["kind"] == "usage"
