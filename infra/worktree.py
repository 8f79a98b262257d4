"""Where a scheduled run works: a git worktree of its own, at a named revision and preset. A pull step of prefect.yaml.

    python infra/worktree.py NAME [REVISION [PRESET]]

The worktree stands in <home>/.prefect/worktrees/NAME and is used again by the next run, so that what is up to date
stays so; edits in the main checkout neither disturb a run nor slip into it. It shares the home (MLflow's store,
checkpoints, locks) and DVC's cache with the main checkout, and has a dvc.lock of its own.
"""

import subprocess
import sys
from pathlib import Path

from tasks._params import DataError, UsageError
from tasks._stage import home
from tracking import versions


def worktree(name: str, revision: str = "HEAD", preset: str = "") -> Path:
    """Make or refresh the worktree; returns its folder.

    Raises UsageError for an unknown revision, DataError if the raw data of that revision cannot be had.
    """
    main, place = str(home()), home() / ".prefect" / "worktrees" / name
    commit = versions.git("-C", main, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    if (place / ".git").exists():
        # what the last run wrote into tracked files (dvc.lock, metrics/, a preset) gives way to the revision's own
        versions.git("-C", str(place), "checkout", "--quiet", "--force", "--detach", commit)
    else:
        versions.git("-C", main, "worktree", "prune")
        versions.git("-C", main, "worktree", "add", "--quiet", "--force", "--detach", str(place), commit)
    _dvc(place, "cache", "dir", "--quiet", "--local", str(home() / ".dvc" / "cache"))
    if preset:
        _ajuste(place, "preset", preset)
    if versions.dvc("--cd", str(place), "checkout", "--quiet", "--force", "data.dvc").returncode != 0:
        _ajuste(place, "data", "pull")
    # the stages alone: raw data that no cache holds would be removed
    _dvc(place, "checkout", "--quiet", "--force", "--allow-missing", "dvc.yaml")
    return place


def _dvc(place: Path, *args: str) -> None:
    done = versions.dvc("--cd", str(place), *args)
    if done.returncode != 0:
        raise DataError(f"dvc {' '.join(args)} in {place}: {' '.join(done.stderr.split())}")


def _ajuste(place: Path, *args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "cli.main", *args], cwd=place, capture_output=True, text=True)
    if done.returncode != 0:
        raise DataError(f"ajuste {' '.join(args)} in {place}: {' '.join(done.stderr.split())}")


def main() -> None:
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit("usage: python infra/worktree.py NAME [REVISION [PRESET]]")
    try:
        print(worktree(*sys.argv[1:]))
    except (UsageError, DataError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
