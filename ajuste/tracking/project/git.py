"""What git says of this checkout: its commit, its changed files, its author, its worktrees."""

import getpass
import os
import subprocess
from pathlib import Path

from ajuste.core.errors import UsageError


def run(*args: str) -> str:
    """What a git command prints; a failure is a UsageError with git's own words."""
    done = subprocess.run(["git", *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise UsageError(f"git {' '.join(args)}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout


def head() -> str:
    """The commit of the current checkout, or "" where there is none yet."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_of(reference: str) -> str:
    """The commit that a branch, tag or hash names, or "" if git knows none."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def commits_with(path: str) -> list[str]:
    """The commits that changed a file, newest first; [] where there is no git."""
    done = subprocess.run(["git", "log", "--format=%H", "--", path], capture_output=True, text=True)
    return done.stdout.split()


def content(commit: str, path: str) -> bytes | None:
    """A file as it was at a commit; None if there was none."""
    done = subprocess.run(["git", "show", f"{commit}:{path}"], capture_output=True)
    return done.stdout if done.returncode == 0 else None


def author() -> str:
    """Who works here: the name and address that git has been told, else the login name."""
    command = ["git", "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT"]  # nothing made up from a host name
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.rpartition(">")[0] + ">"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def changed_files() -> list[str]:
    """Tracked files that differ from the commit. dvc.lock and metrics/ are what a run writes: they do not count."""
    lines = run("status", "--porcelain", "--untracked-files=no").splitlines()
    names = [line[3:].split(" -> ")[-1].strip('"') for line in lines]
    return [name for name in names if name != "dvc.lock" and not name.startswith("metrics/")]


def dirty() -> bool:
    """True if code, params or data.dvc differ from the commit."""
    return bool(changed_files())


def worktrees() -> list[Path]:
    """The git worktrees beside the main checkout."""
    lines = run("worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")][1:]


def remove_worktree(place: Path) -> None:
    """Take a worktree away, whatever was changed in it."""
    run("worktree", "remove", "--force", "--force", str(place))
