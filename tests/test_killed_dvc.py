"""DVC is killed when a stage has ended and its result is not recorded yet: nothing is trained a second time."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made.projects import environment, run, tiny_project

MOMENTS = 10
STAGE = "classify_lora"
DYING = Path(__file__).parent / "made" / "dying_dvc.py"


@pytest.mark.slow
def test_no_training_is_repeated_whenever_dvc_dies(tmp_path: Path) -> None:
    project = tiny_project(tmp_path / "project")
    dvc = (sys.executable, "-P", "-m", "dvc", "repro")
    run(project, *dvc, "encode_reviews")
    shutil.rmtree(project / ".checkpoints")
    begun = (project / "dvc.lock").read_bytes()
    checkpoints = project / ".checkpoints"
    dying(project, 0)
    steps = int((checkpoints / "steps").read_text())
    assert steps >= MOMENTS
    expected = (project / "dvc.lock").read_bytes()
    trained = files(checkpoints)
    assert trained, "the stage left the checkpoints that it goes on from"
    kept = tmp_path / "kept"
    subprocess.run(["cp", "-a", str(checkpoints), str(kept)], check=True)
    for number in range(MOMENTS):
        moment = 1 + number * (steps - 1) // (MOMENTS - 1)
        for gone in (checkpoints, project / ".dvc/cache/runs", project / "artifacts/adapters"):
            shutil.rmtree(gone)
        subprocess.run(["cp", "-a", str(kept), str(checkpoints)], check=True)
        (project / "dvc.lock").write_bytes(begun)  # younger than the end of the stage, but without it
        assert dying(project, moment) == -signal.SIGKILL, moment
        run(project, *dvc, "--single-item", STAGE)
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
