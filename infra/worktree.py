"""Where a scheduled run works: a git worktree and a home of its own. A pull step of prefect.yaml.

    python infra/worktree.py NAME [REVISION [PRESET]]        NAME is the deployment's

    <home>/.prefect/worktrees/NAME   the checkout. Used again by the next run: what is up to date stays so
    <home>/.prefect/homes/NAME       the run's own .checkpoints and .state; all the rest of the home is linked

So edits in the main checkout neither disturb a run nor slip into it, and runs of two deployments never meet: not in a
stage's lock, not in its .state. They share what must be shared: MLflow's store with its locks, and DVC's cache. Nor do
two runs of one deployment meet, in whatever containers they are: ajuste/tracking/project/occupied.py.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import without_git
from ajuste.core.params import read_yaml
from ajuste.core.stages import md5_of
from ajuste.tracking.project import dvc, git, occupied

OWN = (".checkpoints", ".state")
UNLINKED = {*OWN, ".git", ".prefect", ".venv"}
LEAVE_SECONDS = 20  # a stage whose flow was killed ends within a second


def enter(name: str, revision: str = "HEAD", preset: str = "") -> Path:
    """`worktree`, for this run alone until its engine has ended. Raises UsageError while another run works in it."""
    with occupied.entered(_main(), name, LEAVE_SECONDS):
        return worktree(name, revision, preset)


def worktree(name: str, revision: str = "HEAD", preset: str = "") -> Path:
    """Make or refresh the worktree and its home; returns the worktree's folder.

    Raises UsageError for an unknown revision, DataError if the raw data of that revision cannot be had, if HEAD is
    asked for while the main checkout has raw data that is not committed, or if another run works in this worktree.
    """
    main = _main()
    place = main / ".prefect" / "worktrees" / name
    commit = git.run("-C", str(main), "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    if revision == "HEAD":
        check_data_committed(main)
    _alone(place)
    if (place / ".git").exists():
        results = [*place.glob("dvc.lock"), *place.glob("metrics/*.json")]
        result = {path: path.read_bytes() for path in results}
        # what the last run wrote into tracked files (a preset) gives way to the revision's own, but for its result
        git.run("-C", str(place), "checkout", "--quiet", "--force", "--detach", commit)
        for path, content in result.items():
            path.write_bytes(content)
    else:
        git.run("-C", str(main), "worktree", "prune")
        git.run("-C", str(main), "worktree", "add", "--quiet", "--force", "--detach", str(place), commit)
    own_home(main, name)
    local = main / ".dvc" / "config.local"  # the remote's secrets are there
    if local.exists():
        shutil.copyfile(local, place / ".dvc" / "config.local")
        (place / ".dvc" / "config.local").chmod(0o600)
    _dvc(place, "cache", "dir", "--local", str(main / ".dvc" / "cache"))
    if preset:
        _ajuste(place, "preset", preset)
    if dvc.run("--cd", str(place), "checkout", "--quiet", "--force", "data.dvc").returncode != 0:
        _ajuste(place, "data", "pull")
    # the stages alone: raw data that no cache holds would be removed
    _dvc(place, "checkout", "--force", "--allow-missing", "dvc.yaml")
    return place


def own_home(main: Path, name: str) -> Path:
    """The home of a deployment's runs: checkpoints and states of its own, links to the rest of the main checkout."""
    own = main / ".prefect" / "homes" / name
    for folder in (*(own / part for part in OWN), main / "mlruns", main / ".assets"):
        folder.mkdir(parents=True, exist_ok=True)
    for entry in own.iterdir():
        if entry.is_symlink() and not entry.exists():
            entry.unlink()
    for entry in main.iterdir():
        link = own / entry.name
        if entry.name not in UNLINKED and not link.exists():
            link.symlink_to(entry)
    return own


def check_data_committed(main: Path) -> None:
    """Raise DataError while raw data of the main checkout is not what its last commit names.

    A run would train on the data of before, and nobody would know. DVC is not asked: it may be busy there.
    """
    pointer, data = main / "data.dvc", main / "data"
    if git.run("-C", str(main), "status", "--porcelain", "--", "data.dvc").strip():
        raise DataError(f"{pointer} is not committed: `git commit data.dvc` accepts the new raw data, "
                        "`git checkout data.dvc && dvc checkout data.dvc` undoes it")  # fmt: skip
    if pointer.exists() and data.is_dir() and md5_of(data) != read_yaml(pointer)["outs"][0]["md5"]:
        raise DataError(f"{data} is not what data.dvc names: `dvc add data` and a commit of data.dvc accept it, "
                        "`dvc checkout data.dvc` undoes it")  # fmt: skip


def _main() -> Path:
    """The main checkout, which is the home that all deployments share."""
    return Path(git.run("rev-parse", "--path-format=absolute", "--git-common-dir").strip()).parent


def _alone(place: Path) -> None:
    """Wait until no other process of this container works in the worktree, as a stage whose run was killed. Raises
    DataError, naming one that goes on."""
    mine = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    deadline = time.monotonic() + LEAVE_SECONDS
    while found := [pid for pid in _inside(place) if pid not in mine]:
        if time.monotonic() > deadline:
            raise DataError(f"process {found[0]} works in {place}: wait for that run or end it")
        time.sleep(0.5)


def _inside(place: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(place):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def _dvc(place: Path, *args: str) -> None:
    done = dvc.run("--cd", str(place), *args)
    if done.returncode != 0:
        raise DataError(f"dvc {' '.join(args)} in {place}: {dvc.last_error(done.stderr)}")


def _ajuste(place: Path, *args: str) -> None:
    command = [sys.executable, "-m", "ajuste.cli.main", *args]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=without_git(os.environ))
    if done.returncode != 0:
        raise DataError(f"ajuste {' '.join(args)} in {place}: {' '.join(done.stderr.split())}")


def main() -> None:
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit("usage: python infra/worktree.py NAME [REVISION [PRESET]]")
    try:
        print(enter(*sys.argv[1:]))
    except (UsageError, DataError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
