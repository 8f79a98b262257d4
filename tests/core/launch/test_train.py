"""A stage as the workers of Ray's TorchTrainer, on two raylets of this machine over gloo."""

import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml

from ajuste.core import checkpoints
from ajuste.models.folder import load_tokenizer
from tests.invariants import group_processes, ppo_processes
from tests.invariants.test_stages_of_two import (  # noqa: F401
    OUT,
    PARAMS,
    Ran,
    artifacts,
    one_set_of_files,
    project,
    run,
    same_losses,
    same_weights,
)
from tests.made import raylets, tiny_classifiers
from tests.made.tiny_rows import sentence_set
from tests.tasks.test_classify import LORA

pytestmark = pytest.mark.slow  # a cluster, and trainings on it
if importlib.util.find_spec("ray") is None:  # not importorskip: who imports Ray first decides what it asks of a cluster
    pytest.skip("the extra `cluster` is not installed", allow_module_level=True)
LONGER = {"epochs": 15, "evaluations": 1, "patience": 15}


@pytest.fixture(scope="module")
def cluster():
    with raylets.cluster(2) as found:
        yield found


def on_ray(folder: Path, cluster, stage: str) -> Ran:
    """Params.yaml sends the stage there."""
    return Ran(folder, raylets.ended(raylets.begin(raylets.launched(folder, cluster.address), "-m", f"tasks.{stage}")))


@pytest.mark.parametrize("stage", ["instruct", "reward", "dpo"])
def test_two_workers_train_as_one_process_does(stage: str, cluster, artifacts: Path, tmp_path: Path) -> None:  # noqa: F811
    """Losses and curves of every step and evaluation, and the files."""
    alone = run(tmp_path / "alone", artifacts, stage, 1)
    together = on_ray(project(tmp_path / "together", artifacts, stage), cluster, stage)
    one_set_of_files(alone, Ran(together.folder, alone.said), stage)  # Ray's own lines stand among what it printed
    same_losses(alone.history(stage), together.history(stage))
    same_weights(alone, together, stage)
    assert not list((together.folder / ".checkpoints/ray").iterdir()), "Ray's own folder of the run goes with it"


def test_two_workers_train_a_classifier_as_one_process_does(cluster, tmp_path: Path) -> None:
    base = tiny_classifiers.tiny_base(tmp_path / "artifacts/base/encoder")
    sentence_set(tmp_path / "artifacts/encoded/reviews", load_tokenizer(base), train=61)
    found = []
    for name in ("alone", "together"):
        folder = tmp_path / name
        (folder / "artifacts/adapters").mkdir(parents=True)
        for path in ("base", "encoded"):
            (folder / "artifacts" / path).symlink_to(tmp_path / "artifacts" / path)
        section = {**LORA.model_dump(), "dropout": 0.0}
        params = {"compute": PARAMS["compute"], "classify": {"class_weights": section.pop("class_weights")}}
        params["classify"]["lora"] = section
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        entry = {"cmd": "python -m tasks.classify.lora", "deps": ["artifacts/encoded"],
                 "params": ["compute", "classify"], "outs": [f"{OUT}/classify_lora"]}  # fmt: skip
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"classify_lora": entry}}))
        folder = raylets.launched(folder, cluster.address) if name == "together" else folder
        found.append(Ran(folder, raylets.ended(raylets.begin(folder, "-m", "tasks.classify.lora"))))
    alone, together = found
    same_losses(alone.history("classify_lora"), together.history("classify_lora"))


@pytest.mark.parametrize("method", ["ppo", "group"])
def test_two_workers_learn_from_the_same_episodes_as_one_process_does(method: str, cluster, tmp_path: Path) -> None:
    """PPO, and GRPO with RLOO: token counts, whitening, KL, gradients and losses are those of the whole batch."""
    module = f"tests.invariants.{method}_processes"
    (tmp_path / "two.py").write_text(f"import sys\nfrom {module} import main as both\n\ndef main():\n"
                                     f"    sys.argv[1:] = [{str(tmp_path)!r}]\n    both()\n")  # fmt: skip
    raylets.workers(tmp_path, "two", cluster.address)
    for rank in range(2):
        together = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name in {"ppo": ["fixed"], "group": list(group_processes.METHODS)}[method]:
            run_alone = {"ppo": ppo_processes, "group": group_processes}[method].run
            alone = run_alone(tmp_path / f"alone-{name}-{rank}", True if method == "ppo" else name)
            for left, right in zip(alone["history"], together[name]["history"], strict=True):
                for what, value in left.items():
                    assert right[what] == pytest.approx(value, rel=1e-3, abs=2e-5), (name, what)
                    assert "loss" not in what or right[what] == pytest.approx(value, abs=1e-5), (name, what)


def test_a_node_that_is_killed_costs_no_byte(cluster, artifacts: Path, tmp_path: Path) -> None:  # noqa: F811
    """The workers go on from the last whole checkpoint when another node has come."""
    calm, killed = (project(tmp_path / name, artifacts, "instruct", **LONGER) for name in ("calm", "killed"))
    on_ray(calm, cluster, "instruct")
    process = raylets.begin(raylets.launched(killed, cluster.address), "-m", "tasks.instruct")
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


def test_dvc_starts_the_driver_and_a_second_time_nothing(cluster, artifacts: Path, tmp_path: Path) -> None:  # noqa: F811
    """As a task of the flow does: `dvc repro` of one stage, whose workers are on the cluster that params.yaml names."""
    folder = raylets.launched(project(tmp_path / "p", artifacts, "instruct"), cluster.address)
    for path in ("base", "encoded"):
        (folder / "artifacts" / path).unlink()
        shutil.copytree(artifacts / path, folder / "artifacts" / path)
    raylets.ended(raylets.begin(folder, "-m", "dvc", "init", "--quiet", "--no-scm"))
    said = raylets.ended(raylets.begin(folder, "-m", "dvc", "repro", "--single-item", "instruct"))
    assert "held-out loss" in said and (folder / OUT / "instruct/adapter_model.safetensors").is_file()
    state = json.loads((folder / ".state/instruct.json").read_text())
    assert state["error"] is None and state["tokens"] > 0
    text = (folder / "params.yaml").read_text().replace("by: ray", "by: one")
    (folder / "params.yaml").write_text(text)
    assert "didn't change" in raylets.ended(raylets.begin(folder, "-m", "dvc", "repro", "--single-item", "instruct"))
