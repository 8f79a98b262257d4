"""Where the things of this machine stand, and files that no kill leaves half written."""

import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def home() -> Path:
    """The main checkout (git's common folder) or $AJUSTE_HOME: mlruns/, .checkpoints/, .state/ stand there once."""
    if os.environ.get("AJUSTE_HOME"):
        return Path(os.environ["AJUSTE_HOME"]).resolve()
    git = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"], capture_output=True, text=True
    )
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
