"""What the steps of study red-team-full share: params, folders, the model that is attacked, and how a step ends.

    classifier -> card        attack, search, rewrite        all of them -> draw
"""

from pathlib import Path
from typing import Any

import torch

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config, read_yaml, typed
from ajuste.judging.alignment.judges import JudgeConfig
from ajuste.learning.seeds import seed_everything
from ajuste.models import decoder
from ajuste.models.folder import CARD
from tasks.redteam.rewrite import Speaker

PARAMS, OUT = Path("studies/red-team-full/params.yaml"), Path("artifacts/studies/red-team-full")
ENCODER = Path("artifacts/base/encoder")


class Study:
    """The params of both files."""

    def __init__(self) -> None:
        self.params = read_yaml(PARAMS)
        self.compute = typed(Compute, read_yaml(Path("params.yaml")).get("compute") or {}, "compute")
        self.behaviours, self.golden = Path(self.params["behaviours"]), Path(self.params["golden"])

    def config(self, config_type: type[Config], step: str, **more: Any) -> Any:
        """The section of a step, typed, but for `dtype` where the step's model has it. more: what stands elsewhere."""
        values = dict(self.params.get(step) or {})
        if "dtype" not in config_type.model_fields:
            values.pop("dtype", None)
        return typed(config_type, {**values, **more}, step)

    def speaker(self, folder: str, step: str) -> Speaker:
        """A model with its tokenizer, on its device, in the dtype of the step. Raises UsageError for no model."""
        seed_everything(self.compute.seed, self.compute.threads)
        path = Path(folder)
        try:
            load = decoder.load if (path / CARD).is_file() else decoder.load_base
            model, tokenizer = load(path, dtype=getattr(torch, self.params[step]["dtype"]))[:2]
        except ValueError as error:
            raise UsageError(str(error)) from None
        return model.to(self.compute.torch_device()).eval(), tokenizer

    def judge(self, name: str) -> JudgeConfig:
        """A judge by its name. Raises UsageError that says which there are."""
        known = self.params.get("judges") or {}
        if name not in known:
            raise UsageError(f"{PARAMS}: no judge `{name}`: judges are {', '.join(known)}")
        return typed(JudgeConfig, known[name], f"judges.{name}")


def write(name: str, found: dict) -> None:
    """A step's result, as JSON below OUT."""
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
