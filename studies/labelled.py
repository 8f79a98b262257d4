"""What the studies `ner` and `qa` share: their params, their folders, and how a step ends.

    validate -> encode -> train -> evaluate      artifacts/studies/<study>/{validated,encoded,model,evaluated}

A study's params.yaml has `set`, the folder of the set, and a section for each step; `compute` is that of the default
run, and so is the base, artifacts/base/encoder.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, Config, read_yaml, typed

BASE = Path("artifacts/base/encoder")


class Study:
    """One study by its name: params and paths."""

    def __init__(self, name: str) -> None:
        self.params = read_yaml(Path("studies") / name / "params.yaml")
        self.compute = typed(Compute, read_yaml(Path("params.yaml"))["compute"], "compute")
        self.set = Path(self.params["set"])
        self.folder = Path("artifacts/studies") / name

    def config(self, config_type: type[Config], step: str, **more: Any) -> Any:
        """The section of a step, typed. more: what stands elsewhere in the params."""
        return typed(config_type, {**(self.params.get(step) or {}), **more}, step)

    def checkpoints(self) -> Path:
        """An empty folder for the checkpoints of a training: such a run is short, so each begins anew."""
        folder = self.folder / ".checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def run(main: Callable[[], None]) -> None:
    """Run a step; what is wrong with data or params is one line."""
    try:
        main()
    except (DataError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
