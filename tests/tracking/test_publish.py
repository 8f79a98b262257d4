"""What a deployed run leaves behind, on a small git repository with a DVC pipeline and a remote in a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.errors import DataError
from ajuste.tracking.project import publish


def git(*args: str) -> str:
    return subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout.strip()


def dvc(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *args], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    git("init", "--quiet")
    git("config", "user.email", "user@localhost")
    git("config", "user.name", "user")
    (place / "params.yaml").write_text("r: 4\n")
    (place / "data").mkdir()
    (place / "data" / "rows.csv").write_text("a\n")
    (place / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp data/rows.csv out.csv\n    deps: [data/rows.csv]\n    params: [r]\n"
        "    outs: [out.csv]\n"
    )
    git("add", "dvc.yaml", "params.yaml")
    git("commit", "--quiet", "--message", "Start")
    (place / "params.yaml").write_text("r: 2\n")  # as a preset does
    (place / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")  # new: the revision has none
    return place


def with_dvc() -> None:
    dvc("init", "--quiet")
    Path("dvc.lock").unlink()
    dvc("add", "--quiet", "data")
    dvc("repro", "--quiet")


def test_the_result_is_kept_as_a_ref_and_nothing_of_the_users_moves(project: Path) -> None:
    (project / "untracked.txt").write_text("mine")
    (project / "staged.txt").write_text("mine, in the index")
    git("add", "staged.txt")
    before = [git(*line) for line in (["status", "--porcelain"], ["ls-files", "--stage"], ["rev-parse", "HEAD"],
                                      ["branch", "--list"])]  # fmt: skip
    ref = publish.keep()
    first = git("rev-parse", ref)
    assert ref.startswith("refs/ajuste/runs/") and publish.keep() == ref and git("rev-parse", ref) == first
    assert git("show", f"{ref}:params.yaml") == "r: 2"
    assert git("show", f"{ref}:dvc.lock") == (project / "dvc.lock").read_text().strip()
    assert git("rev-parse", f"{ref}^") == git("rev-parse", "HEAD")
    assert git("ls-tree", "--name-only", ref).split() == ["dvc.lock", "dvc.yaml", "params.yaml"]
    after = [git(*line) for line in (["status", "--porcelain"], ["ls-files", "--stage"], ["rev-parse", "HEAD"],
                                     ["branch", "--list"])]  # fmt: skip
    assert after == before


def test_other_inputs_are_another_ref(project: Path) -> None:
    first = publish.keep()
    (project / "params.yaml").write_text("r: 8\n")
    assert publish.keep() != first


@pytest.mark.slow
def test_results_and_data_come_to_a_remote_in_a_folder(project: Path, tmp_path: Path) -> None:
    with_dvc()
    assert not publish.push(), "no remote is configured"
    dvc("remote", "add", "--default", "files", str(tmp_path / "remote"))
    assert publish.push() and publish.push()
    for out in ("out.csv", "data"):
        subprocess.run(["rm", "-rf", out, ".dvc/cache"], check=True)
        dvc("pull", "--quiet", out)
        assert (project / out).exists()


@pytest.mark.slow
def test_a_remote_that_cannot_be_written_is_one_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with_dvc()
    dvc("remote", "add", "--default", "files", str(tmp_path / "file" / "remote"))
    with pytest.raises(DataError, match="dvc push failed") as error:
        publish.push()
    assert "\n" not in str(error.value)
