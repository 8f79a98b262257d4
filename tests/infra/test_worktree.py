"""Where a deployed run works: a worktree of the committed revision, a home of its own, never the user's checkout."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.core.stages import md5_of, md5_of_listing
from ajuste.tracking.project import git as project_git
from ajuste.tracking.project import occupied
from infra.worktree import check_data_committed, enter, own_home, worktree


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with raw data that DVC's cache holds and one stage that nothing has run."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    monkeypatch.delenv("AJUSTE_HOME", raising=False)
    main = tmp_path / "main"
    (main / "data").mkdir(parents=True)
    (main / "data" / "rows.csv").write_text("text,label\nA warm film.,positive\n")
    (main / ".dvc").mkdir()
    (main / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (main / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (main / ".gitignore").write_text("/data\n/.prefect/\n/mlruns/\n/.assets/\n")
    (main / "dvc.yaml").write_text("stages:\n  copy: {cmd: cp data/rows.csv out, deps: [data/rows.csv], outs: [out]}\n")
    (main / "params.yaml").write_text("r: 8\n")
    point_at_data(main)
    git(main, "init", "--quiet", "--initial-branch", "main")
    git(main, "add", "--all")
    git(main, "commit", "--quiet", "--message", "First")
    monkeypatch.chdir(main)
    return main


def point_at_data(main: Path) -> None:
    """What `dvc add data` does: data.dvc names the folder, the cache holds it. Independent of DVC's own code."""
    files = {path.name: md5_of(path) for path in (main / "data").iterdir()}
    listing = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    for md5, content in [(md5_of_listing(files), json.dumps(listing).encode()),
                         *((files[name], (main / "data" / name).read_bytes()) for name in files)]:  # fmt: skip
        place = main / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (main / "data.dvc").write_text(f"outs:\n- md5: {md5_of_listing(files)}\n  hash: md5\n  path: data\n")


def test_a_run_works_with_what_is_committed_and_leaves_the_checkout_alone(main: Path) -> None:
    (main / "params.yaml").write_text("r: 9\n")
    git(main, "add", "params.yaml")
    (main / "params.yaml").write_text("r: 10\n")  # staged, then edited further
    local = "['remote \"store\"']\n    url = ssh://store.invalid/x\n    password = secret\n"
    (main / ".dvc" / "config.local").write_text(local)
    before = everything(main)

    place = worktree("adapt")
    assert place == main / ".prefect" / "worktrees" / "adapt"
    assert (place / "params.yaml").read_text() == "r: 8\n"
    assert md5_of(place / "data") == md5_of(main / "data")
    assert git(place, "rev-parse", "HEAD") == git(main, "rev-parse", "HEAD")
    secret = place / ".dvc" / "config.local"
    assert "secret" in secret.read_text() and secret.stat().st_mode & 0o777 == 0o600
    assert "config.local" not in git(place, "status", "--porcelain", "--untracked-files=all")
    assert str(main / ".dvc" / "cache") in secret.read_text(), "one cache for all"
    assert everything(main) == before

    # the next run: what the last one changed gives way, but for its result
    (place / "params.yaml").write_text("r: 1\n")
    (place / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    assert worktree("adapt") == place
    assert (place / "params.yaml").read_text() == "r: 8\n" and (place / "dvc.lock").exists()
    assert everything(main) == before


def everything(main: Path) -> tuple:
    """The files of the checkout with their times, index, branches and HEAD."""
    files = [path for path in main.rglob("*") if path.is_file() and path.relative_to(main).parts[0] in
             ("data", "data.dvc", "params.yaml", "dvc.yaml", ".gitignore")]  # fmt: skip
    return (
        {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files},
        git(main, "status", "--porcelain"), git(main, "ls-files", "--stage"), git(main, "for-each-ref"),
        (main / ".git" / "HEAD").read_text(), (main / ".dvc" / "config.local").read_text(),
    )  # fmt: skip


def test_raw_data_that_is_not_committed_is_refused_by_name(main: Path) -> None:
    check_data_committed(main)
    (main / "data" / "rows.csv").write_text("text,label\nA dull film.,negative\n")
    with pytest.raises(DataError, match=r"data is not what data\.dvc names: `dvc add data`"):
        worktree("adapt")
    point_at_data(main)
    with pytest.raises(DataError, match=r"data\.dvc is not committed: `git commit data\.dvc`"):
        worktree("adapt")
    assert not (main / ".prefect").exists(), "nothing was made"
    git(main, "commit", "--quiet", "--all", "--message", "More data")
    check_data_committed(main)
    (main / "data" / "rows.csv").unlink()
    (main / "data").rmdir()  # a clone that has not pulled yet
    check_data_committed(main)


def test_what_dvc_cannot_read_is_said_in_its_own_words(main: Path) -> None:
    (main / ".dvc" / "config.local").write_text("['remote \"store\"']\n    password = secret\n")
    with pytest.raises(DataError, match="required key not provided|config file error") as error:
        worktree("adapt")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_revision_that_is_not_there_is_one_line(main: Path) -> None:
    with pytest.raises(UsageError, match="v9"):
        worktree("adapt", "v9")


def test_two_homes_have_nothing_in_common_but_what_is_linked(main: Path) -> None:
    (main / "notes.txt").write_text("mine\n")
    one, two = (own_home(main, name) for name in ("adapt", "adapt-full"))
    for own in (one, two):
        for part in (".checkpoints", ".state"):
            assert (own / part).is_dir() and not (own / part).is_symlink()
        assert (own / "mlruns").resolve() == main / "mlruns" and (own / ".assets").resolve() == main / ".assets"
        assert not {".git", ".prefect", ".venv"} & set(os.listdir(own))
    (one / ".state" / "reward.json").write_text("{}")
    assert not list((two / ".state").iterdir())
    (main / "notes.txt").unlink()
    assert not (own_home(main, "adapt") / "notes.txt").is_symlink(), "a link to what is gone is gone"
    assert (one / ".state" / "reward.json").exists()


def test_a_worktree_in_which_somebody_works_is_refused_with_the_process(main: Path, monkeypatch) -> None:
    monkeypatch.setattr("infra.worktree.LEAVE_SECONDS", 0)
    place = main / ".prefect" / "worktrees" / "adapt"
    place.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=place)
    try:
        with pytest.raises(DataError, match=f"process {other.pid} works in"):
            worktree("adapt")
    finally:
        other.kill()
        other.wait()


# --- two runs of one deployment -------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, str(ROOT / "infra" / "worktree.py"), "adapt"]
# what Prefect does: the pull step is a child of the engine, which goes on when it is over
ENGINE = """
import os, subprocess, sys, time
print(subprocess.run(sys.argv[2:], capture_output=True, text=True), flush=True)
print("pulled", flush=True)
time.sleep(120)
"""
CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
SPACES = subprocess.run([*CONTAINER, "true"], capture_output=True).returncode == 0


def engine(main: Path, *before: str) -> subprocess.Popen:
    """A stand-in for a run's engine whose pull step is done."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT__FLOW_RUN_ID": "5f0c"}
    started = subprocess.Popen([*before, sys.executable, "-c", ENGINE, "prefect.engine", *RUN], cwd=main, env=env,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    said = started.stdout.readline()
    assert started.stdout.readline() == "pulled\n" and "returncode=0" in said, said
    return started


@pytest.mark.parametrize("container", [
    pytest.param([], id="process"),
    pytest.param(CONTAINER, id="container", marks=pytest.mark.skipif(not SPACES, reason="no PID namespace here")),
])  # fmt: skip
def test_a_second_run_waits_for_the_end_of_the_first_wherever_that_is(
    main: Path, monkeypatch: pytest.MonkeyPatch, container: list[str]
) -> None:
    monkeypatch.setattr("infra.worktree.LEAVE_SECONDS", 0)
    first = engine(main, *container)
    try:
        assert " of run 5f0c" in occupied.holder(main, "adapt")
        (main / ".prefect/worktrees/adapt/params.yaml").write_text("r: 1\n")  # what the living run made of it
        with pytest.raises(UsageError, match=r"another run works in the worktree of `adapt` as process \d+ of run 5f"):
            enter("adapt")
        assert (main / ".prefect/worktrees/adapt/params.yaml").read_text() == "r: 1\n", "not under the living one"
        assert enter("adapt-full") == main / ".prefect/worktrees/adapt-full", "another deployment is another worktree"
    finally:
        first.kill()
        first.wait()
    deadline = time.monotonic() + 20
    while occupied.holder(main, "adapt"):
        assert time.monotonic() < deadline, "the kernel frees the lock of a killed run"
        time.sleep(0.1)
    assert (enter("adapt") / "params.yaml").read_text() == "r: 8\n"
    assert occupied.holder(main, "adapt") is None, "a person's call leaves nobody behind"


def test_another_repository_in_the_environment_is_not_met(
    main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook sets GIT_DIR, GIT_INDEX_FILE and others for all that it starts."""
    git(tmp_path, "init", "--quiet", "other")
    commit = git(main, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / "index"))
    home.cache_clear()
    assert project_git.head() == commit and home() == main
    place = worktree("adapt")
    assert (place / "params.yaml").read_text() == "r: 8\n" and not (tmp_path / "other" / "index").exists()
    home.cache_clear()
