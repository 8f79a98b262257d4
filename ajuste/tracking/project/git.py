"""What git says of this checkout: its commit, its changed files, its author, its worktrees."""

import getpass
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from ajuste.core.errors import UsageError
from ajuste.core.home import without_git


class Ref(NamedTuple):
    """A reference: refs/..., its commit, and when that was committed (seconds since 1970)."""

    name: str
    commit: str
    when: float


def run(*args: str) -> str:
    """What a git command prints; a failure is a UsageError with git's own words."""
    done = _git(*args)
    if done.returncode != 0:
        raise UsageError(f"git {' '.join(args)}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout


def head() -> str:
    """The commit of the current checkout, or "" where there is none yet."""
    done = _git("rev-parse", "HEAD")
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_of(reference: str) -> str:
    """The commit that a branch, tag or hash names, or "" if git knows none."""
    done = _git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    return done.stdout.strip() if done.returncode == 0 else ""


def commits_with(path: str) -> list[str]:
    """The commits that changed a file, newest first; [] where there is no git."""
    return _git("log", "--format=%H", "--", path).stdout.split()


def content(commit: str, path: str) -> bytes | None:
    """A file as it was at a commit; None if there was none."""
    done = subprocess.run(["git", "show", f"{commit}:{path}"], capture_output=True, env=without_git(os.environ))
    return done.stdout if done.returncode == 0 else None


def author() -> str:
    """Who works here: the name and address that git has been told, else the login name."""
    done = _git("-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT")  # nothing made up from a host name
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


def refs(prefix: str) -> list[Ref]:
    """The references below a prefix, by name; [] where there is no git."""
    form = "%(refname) %(objectname) %(committerdate:unix)"
    lines = _git("for-each-ref", f"--format={form}", prefix).stdout.splitlines()
    return [Ref(name, commit, float(when)) for name, commit, when in map(str.split, lines)]


def delete_ref(ref: Ref) -> None:
    """Take a reference away, if it still names that commit."""
    run("update-ref", "-d", ref.name, ref.commit)


def _git(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *args], capture_output=True, text=True, env=without_git(os.environ))
