"""What the steps of study rlaif share: params, folders, and how a step ends.

    samples -> card -> pairs -> point -> draw        critique stands by itself

Params are those of studies/rlaif/params.yaml; compute, reward and encode.preferences are those of the default run.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home, write_atomically
from ajuste.core.params import Compute, Config, read_yaml, typed
from ajuste.judging.judges.opened import JudgeConfig, WordsConfig

PARAMS, OUT, ARTIFACTS = Path("studies/rlaif/params.yaml"), Path("artifacts/studies/rlaif"), Path("artifacts")
VALIDATED, ENCODED = ARTIFACTS / "validated/preferences", ARTIFACTS / "encoded/preferences"
POLICY = ARTIFACTS / "merged/instruct"


class Study:
    """The params of both files."""

    def __init__(self) -> None:
        self.params, self.default = read_yaml(PARAMS), read_yaml(Path("params.yaml"))
        self.compute = typed(Compute, self.default.get("compute") or {}, "compute")

    def config(self, config_type: type[Config], step: str) -> Any:
        """The section of a step, typed."""
        return typed(config_type, self.params.get(step) or {}, step)

    def words(self) -> WordsConfig:
        """How judges are asked."""
        return typed(WordsConfig, {key: self.params.get(key) for key in WordsConfig.model_fields}, "rlaif")

    def judge(self, name: str) -> JudgeConfig:
        """A judge by its name. Raises UsageError that says which there are."""
        known = self.params.get("judges") or {}
        if name not in known:
            raise UsageError(f"{PARAMS}: no judge `{name}`: judges are {', '.join(known)}")
        return typed(JudgeConfig, known[name], f"judges.{name}")


def run(step: str, main: Callable[[], None]) -> None:
    """Run a step, and keep its seconds in .state; what is wrong with data, params or a network is one line."""
    began = time.monotonic()
    try:
        main()
    except (DataError, UsageError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    state = {"stage": f"rlaif_{step}", "seconds": round(time.monotonic() - began, 2), "error": None}
    write_atomically(home() / ".state" / f"rlaif_{step}.json", json.dumps(state, indent=2) + "\n")
