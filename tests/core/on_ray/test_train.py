"""A stage as the workers of Ray's TorchTrainer, on two raylets of this machine over gloo."""

import json
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ajuste.core import checkpoints
from tests.invariants.test_stages_of_two import OUT, Ran, artifacts, one_set_of_files, project, run  # noqa: F401
from tests.made import raylets

pytestmark = pytest.mark.slow  # a cluster, and trainings on it
pytest.importorskip("ray", reason="the extra `cluster` is not installed")
LONGER = {"epochs": 15, "evaluations": 1, "patience": 15}


@pytest.fixture(scope="module")
def cluster():
    with raylets.cluster(2) as found:
        yield found


def on_ray(folder: Path, cluster, stage: str) -> Ran:
    return Ran(folder, raylets.ended(raylets.begin(folder, f"tasks.{stage}", 2, cluster.address)))


@pytest.mark.parametrize("stage", ["instruct", "reward", "dpo"])
def test_two_workers_train_as_one_process_does(stage: str, cluster, artifacts: Path, tmp_path: Path) -> None:  # noqa: F811
    """Losses and curves of every step and evaluation, and the files."""
    alone = run(tmp_path / "alone", artifacts, stage, 1)
    together = on_ray(project(tmp_path / "together", artifacts, stage), cluster, stage)
    one_set_of_files(alone, Ran(together.folder, alone.said), stage)
    rows, others = alone.history(stage), together.history(stage)
    assert len(rows) == len(others) and len(rows) > 5
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys() and row["step"] == other["step"]
        for name, value in row.items():
            tolerance = 1e-3 if name == "grad_norm" else 1e-5
            assert other[name] == pytest.approx(value, rel=tolerance, abs=1e-5), (row["step"], name)
    weights, found = (load_file(ran.folder / OUT / stage / "adapter_model.safetensors") for ran in (alone, together))
    assert all((found[name] - value).abs().max() < 1e-3 for name, value in weights.items())
    assert not list((together.folder / ".checkpoints/ray").iterdir()), "Ray's own folder of the run goes with it"


def test_a_node_that_is_killed_costs_no_byte(cluster, artifacts: Path, tmp_path: Path) -> None:  # noqa: F811
    """The workers go on from the last whole checkpoint when another node has come."""
    calm, killed = (project(tmp_path / name, artifacts, "instruct", **LONGER) for name in ("calm", "killed"))
    on_ray(calm, cluster, "instruct")
    process = raylets.begin(killed, "tasks.instruct", 2, cluster.address)
    first = _until(lambda: next(killed.glob(".checkpoints/*/checkpoint-*/COMPLETE"), None), process)
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    assert not (killed / OUT / "instruct").exists(), "the training had ended before the node was killed"
    last = checkpoints.last_complete(first.parents[1])
    reached = int(last.name.split("-")[1])
    history = last.parent / "history.jsonl"
    cluster.add_node(**raylets.node())
    steps = []
    while process.poll() is None:
        steps += [json.loads(line)["step"] for line in _lines(history)[-1:]]
        time.sleep(0.01)
    raylets.ended(process)
    assert min(steps) >= reached > 0, "it began anew"
    assert len(Ran(calm, "").history("instruct")) > 90
    for path in sorted((calm / OUT / "instruct").rglob("*")):
        again = killed / path.relative_to(calm)
        assert path.is_dir() or again.read_bytes() == path.read_bytes(), path.name


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that another process writes."""
    return [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []


def _until(found, process, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    return value
