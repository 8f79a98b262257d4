"""A model folder as MLflow's logged model: a served one as pyfunc from code, an adapter as PEFT wrote it.

The weights are copied once, straight to where the store keeps them, or uploaded to a remote store.
"""

import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tracking._store import client, local_path

REQUIREMENTS = ("mlflow", "torch", "transformers", "peft", "safetensors", "numpy", "pandas")


@dataclass(frozen=True)
class Model:
    """A model folder of dvc.lock. `adapter` is the folder that a merged one was made from."""

    stage: str
    folder: Path
    md5: str
    key: str
    card: dict
    adapter: Path | None

    @property
    def is_adapter(self) -> bool:
        return self.folder.parent.name == "adapters"

    @property
    def name(self) -> str:
        return f"{self.card['set']}-classifier{'-adapter' if self.is_adapter else ''}"



def logged_model(model: Model, run_id: str, experiment: str, params: dict[str, str]) -> tuple[str, str]:
    """(id, address) of the logged model with the files in it; one that a kill left half made is filled again."""
    from mlflow.entities import LoggedModelOutput

    opened = client()
    filter_string = f"tags.`stage_key` = '{model.key}' AND tags.`registered` = '{model.name}'"
    same = opened.search_logged_models([experiment], filter_string)
    logged = same[0] if same else opened.create_logged_model(
        experiment, f"{model.name}-{model.card['strategy']}", run_id, model_type="classifier",
        params=params,
        tags={"stage_key": model.key, "registered": model.name, "strategy": model.card["strategy"]},
    )
    if str(logged.status) != "READY":
        _write(model, run_id, logged.model_id, logged.artifact_location)
        opened.finalize_logged_model(logged.model_id, "READY")
        opened.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    return logged.model_id, logged.artifact_location


def _write(model: Model, run_id: str, model_id: str, location: str) -> None:
    """Write the files where they belong, or, for a remote store, into a temporary folder and upload that."""
    target = local_path(location)
    with tempfile.TemporaryDirectory() as folder:
        out = target or Path(folder) / "model"
        shutil.rmtree(out, ignore_errors=True)
        if model.is_adapter:
            shutil.copytree(model.folder, out)
        else:
            _save_pyfunc(model, run_id, model_id, out)
        if target is None:
            client().log_model_artifacts(model_id, str(out))


def _save_pyfunc(model: Model, run_id: str, model_id: str, out: Path) -> None:
    """The model folder under MLflow's wrapper. Everything is given, so MLflow loads nothing and infers nothing."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model as Description
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from learning import classifier

    scores = [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability"),
              ColSpec(Array(DataType.double), "probabilities")]
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "learning"  # as a package of one file: no name of a user's own can hide it
        code.mkdir()
        (code / "__init__.py").touch()
        shutil.copy(classifier.__file__, code / "classifier.py")
        mlflow.pyfunc.save_model(
            str(out),
            python_model=str(Path(__file__).with_name("pyfunc_classifier.py")),
            artifacts={"model": str(model.folder.resolve())},
            code_paths=[str(code)],
            mlflow_model=Description(run_id=run_id, model_id=model_id),
            signature=ModelSignature(Schema([ColSpec(DataType.string)]), Schema(scores)),
            input_example=pd.DataFrame({"text": ["A warm and funny film.", "Two hours that I will not get back."]}),
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS],
        )
