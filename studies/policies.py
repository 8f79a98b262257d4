"""What the studies that make an assistant by a method of their own share: where things stand, and sections of params.

Such an assistant is merged, judged and asked whether it is still an assistant by the functions, sections and test rows
of the default run's methods, so that all of them compare. It stands beside them, in artifacts/{adapters, merged}/
<method> and artifacts/evaluated/{<method>, assistant_<method>}; the method has a family file (ajuste/tracking/registry/
families/), and `ajuste study` registers its versions.
"""

import shutil
from pathlib import Path
from typing import Any

from ajuste.core.params import Compute, Config, read_yaml, section, typed

ARTIFACTS = Path("artifacts")
PREFERENCES, INSTRUCTIONS = ARTIFACTS / "encoded/preferences", ARTIFACTS / "encoded/instructions"
SFT, REWARD, GOLD = ARTIFACTS / "merged/instruct", ARTIFACTS / "merged/reward", ARTIFACTS / "merged/gold"


def compute() -> Compute:
    """Section `compute` of params.yaml."""
    return typed(Compute, read_yaml(Path("params.yaml")).get("compute") or {}, "compute")


def default(config_type: type[Config], verb: str, variant: str = "", **more: object) -> Any:
    """A section of the default run, typed. more: what a study sets in it."""
    values = {**section(read_yaml(Path("params.yaml")), verb, variant), **more}
    return typed(config_type, values, f"{verb}.{variant}".rstrip("."))


def checkpoints(study: str) -> Path:
    """An empty folder for the checkpoints of a training: such a run is short, so each begins anew."""
    folder = ARTIFACTS / "studies" / study / ".checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
