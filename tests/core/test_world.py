"""Several processes of one stage: who is first, and that the others neither lock nor write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core import world
from tests.core.test_stage import project, state  # noqa: F401

STAGE = """
import sys
from pathlib import Path
from ajuste.core import world
from ajuste.core.errors import DataError
from ajuste.core.params import Config
from ajuste.core.stage import start

class ToyConfig(Config):
    rate: float

world.wait = lambda: print("waited", flush=True)
with start("toy_one", ToyConfig, together="together" in sys.argv) as stage:
    print("checkpoints", stage.checkpoints.exists(), world.processes())
    if "fail" in sys.argv: raise DataError("no label")
    world.first_goes_on()
    Path("out").mkdir()
print("ended")
"""


def run(rank: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The stage as the process of that rank of two."""
    command = ["env", "WORLD_SIZE=2", f"RANK={rank}", sys.executable, "-c", STAGE, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_alone_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (world.rank(), world.processes(), world.first()) == (0, 1, True)
    world.wait()
    world.first_goes_on()
    assert world.same([1]) == [1] and world.any_of(True) and not world.any_of(False)
    monkeypatch.setenv("RANK", "3")  # a number without a world says nothing
    assert world.first()


def test_the_second_process_does_not_wait_for_the_lock_and_writes_nothing(project: Path) -> None:  # noqa: F811
    from ajuste.core.locks import held

    with held(project / ".checkpoints/toy_one.lock"):
        done = run(1, "together")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout.splitlines() == ["checkpoints False 2", "waited", "ended"]
        assert not (project / "out").exists() and not (project / ".state").exists()
        assert [path.name for path in (project / ".checkpoints").iterdir()] == ["toy_one.lock"]
    done = run(0, "together")
    assert done.stdout.splitlines() == ["checkpoints True 2", "waited", "ended"], done.stderr
    assert state()["error"] is None and (project / "out").is_dir()


def test_each_process_says_its_own_error_and_the_first_records_it(project: Path) -> None:  # noqa: F811
    done = run(1, "together", "fail")
    assert done.returncode == 3 and done.stderr.strip() == "error[data]: process 1: no label"
    assert not (project / ".state/toy_one.json").exists()
    done = run(0, "together", "fail")
    assert done.returncode == 3 and done.stderr.strip() == "error[data]: process 0: no label"
    assert json.loads((project / ".state/toy_one.json").read_text())["error"]["kind"] == "data"


def test_a_stage_that_shares_nothing_out_runs_once(project: Path) -> None:  # noqa: F811
    done = run(1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not (project / ".state").exists()
    done = run(0)
    assert done.stdout.splitlines() == ["checkpoints True 1", "waited", "ended"], done.stderr
    assert state()["error"] is None
