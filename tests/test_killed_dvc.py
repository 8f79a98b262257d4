"""DVC is killed when a stage has ended and its result is not recorded yet: nothing is trained a second time."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made.projects import ROOT, environment, run, tiny_project

MOMENTS = 10
STAGE = "classify_lora"
DYING = Path(__file__).parent / "made" / "dying_dvc.py"


TOY = """
from pathlib import Path
from ajuste.core.checkpoints import last_complete, seal
from ajuste.core.params import Config
from ajuste.core.stage import start

class ToyConfig(Config):
    pass

def main():
    with start("classify_lora", ToyConfig) as stage:
        if last_complete(stage.checkpoints) is None:
            folder = stage.checkpoints / "checkpoint-3"
            folder.mkdir()
            (folder / "weights").write_text("trained")
            seal(folder)
        out = Path("artifacts/adapters/classify_lora")
        out.mkdir(parents=True)
        for number in range(20):
            (out / f"{number}").write_text(str(number))

if __name__ == "__main__":
    main()
"""
DVC = (sys.executable, "-P", "-m", "dvc", "repro")


@pytest.mark.slow
def test_a_toy_is_not_trained_again_whenever_dvc_dies(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "toy.py").write_text(TOY)
    (project / "ajuste").symlink_to(ROOT / "ajuste")
    compute = "{dtype: float32, device: cpu, threads: 1, seed: 0}"
    (project / "params.yaml").write_text(f"compute: {compute}\nclassify: {{lora: {{}}}}\n")
    (project / "dvc.yaml").write_text("stages:\n  classify_lora: {cmd: python -m toy, deps: [toy.py], "
                                      "params: [compute], outs: [artifacts/adapters/classify_lora]}\n")
    run(project, "git", "init", "--quiet")
    run(project, *DVC[:-1], "init", "-q")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    dies_at_ten_moments(project, tmp_path / "kept")


@pytest.mark.slow
def test_no_training_is_repeated_whenever_dvc_dies(tmp_path: Path) -> None:
    project = tiny_project(tmp_path / "project")
    run(project, *DVC, "encode_reviews")
    shutil.rmtree(project / ".checkpoints")
    dies_at_ten_moments(project, tmp_path / "kept")


def dies_at_ten_moments(project: Path, kept: Path) -> None:
    begun = (project / "dvc.lock").read_bytes()
    checkpoints = project / ".checkpoints"
    dying(project, 0)
    steps = int((checkpoints / "steps").read_text())
    assert steps >= MOMENTS
    expected = (project / "dvc.lock").read_bytes()
    trained = files(checkpoints)
    assert trained, "the stage left the checkpoints that it goes on from"
    subprocess.run(["cp", "-a", str(checkpoints), str(kept)], check=True)
    for number in range(MOMENTS):
        moment = 1 + number * (steps - 1) // (MOMENTS - 1)
        for gone in (checkpoints, project / ".dvc/cache/runs", project / "artifacts/adapters"):
            shutil.rmtree(gone)
        subprocess.run(["cp", "-a", str(kept), str(checkpoints)], check=True)
        (project / "dvc.lock").write_bytes(begun)  # younger than the end of the stage, but without it
        assert dying(project, moment) == -signal.SIGKILL, moment
        run(project, *DVC, "--single-item", STAGE)
        assert (project / "dvc.lock").read_bytes() == expected, moment
        assert files(checkpoints) == trained, f"killed at step {moment} of {steps}: it was trained again"


def dying(project: Path, moment: int) -> int:
    command = [sys.executable, "-P", str(DYING), str(moment), str(project / ".checkpoints"), "repro", "--single-item",
               STAGE]  # fmt: skip
    (project / ".checkpoints").mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode


def files(checkpoints: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of the trained checkpoints: writing one again changes its time."""
    return {str(path.relative_to(checkpoints)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in checkpoints.glob("*/checkpoint-*/*")}  # fmt: skip
