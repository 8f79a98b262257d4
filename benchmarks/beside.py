"""One side of a side-by-side measurement: a process of its own, both sides under the same settings.

The process prints its figures as JSON in a line that begins with RESULT.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def trl_options(doc: str, name: str, variable: str, version: str, rounds: int = 3) -> argparse.ArgumentParser:
    """The options that all measurements beside TRL share. `variable` of the environment names a python that has that
    version of TRL, a package that this project does not depend on."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--peer-python", default=os.environ.get(variable),
                        help=f"python that has trl {version}; or ${variable}")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(f"docs/measured/{name}.md"))
    return parser


def result_of(side: str, command: Sequence[object], threads: int) -> dict:
    """Run the command in the project's folder and return its figures. Ends the benchmark if it fails."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "2000",  # as stages run, for both sides; the default is as fast on quiet cores
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, cwd=root)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not found:
        raise SystemExit(f"{side} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(found[0].removeprefix("RESULT "))
