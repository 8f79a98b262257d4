"""Where the things of this machine stand, and files that no kill leaves half written."""

import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# what points git, and all that asks git, at one repository: a hook sets GIT_DIR for all that it starts
OF_A_REPOSITORY = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
)  # fmt: skip


def without_git(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which git finds the repository of the folder that it stands in, and no other."""
    return {name: value for name, value in environment.items() if name not in OF_A_REPOSITORY}


@cache
def home() -> Path:
    """The main checkout (git's common folder) or $AJUSTE_HOME: mlruns/, .checkpoints/, .state/ stand there once."""
    if os.environ.get("AJUSTE_HOME"):
        return Path(os.environ["AJUSTE_HOME"]).resolve()
    git = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"], capture_output=True, text=True,
        env=without_git(os.environ),
    )  # fmt: skip
    return Path(git.stdout.strip()).parent if git.returncode == 0 else Path.cwd()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
