"""A model folder as MLflow's logged model: a whole one as pyfunc from code, an adapter as PEFT wrote it.

The weights go straight to where the store keeps them, as a link to DVC's cache where that is the same file system
(ajuste/tracking/project/links.py), or are uploaded to a remote store.
"""

import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ajuste.core.imports import ROOT, closure
from ajuste.tracking.project import links
from ajuste.tracking.registry.families.family import Family
from ajuste.tracking.runs.store import client, local_path

WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "bottleneck.safetensors")
PYFUNCS = Path("ajuste/tracking/registry/pyfuncs")  # <kind>.py: what MLflow runs on loading
REQUIREMENTS = ("mlflow", "torch", "transformers", "peft", "safetensors", "numpy", "pandas")


@dataclass(frozen=True)
class Model:
    """A model folder of dvc.lock. `trained` is the folder that a served one was merged or copied from."""

    family: Family
    stage: str
    folder: Path
    md5: str
    key: str
    card: dict
    trained: Path | None

    @property
    def is_adapter(self) -> bool:
        """Whether it is registered as an adapter beside what is served."""
        return self.folder.parent.name == "adapters"

    @property
    def is_whole(self) -> bool:
        """Whether it answers without a base; a served adapter that cannot be merged does not."""
        return (self.folder / WEIGHTS[0]).is_file()

    @property
    def weights(self) -> Path:
        """The file whose sha256 the registry keeps."""
        return weights_of(self.folder)

    @property
    def strategy(self) -> str:
        """Which weights were trained, and how; of a method that has one way alone, that method."""
        return self.card.get("strategy", self.card.get("method"))

    @property
    def name(self) -> str:
        """The registered name."""
        served = self.family.registered.format(set=self.card.get("set"))
        return f"{served}{'-adapter' if self.is_adapter else ''}"


def weights_of(folder: Path) -> Path:
    """The weights of a model folder; of a whole model where there are none, so that an error names a file."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])



def logged_model(model: Model, run_id: str, experiment: str, params: dict[str, str]) -> tuple[str, str]:
    """(id, address) of the logged model with the files in it; one that a kill left half made is filled again."""
    from mlflow.entities import LoggedModelOutput

    opened = client()
    filter_string = f"tags.`stage_key` = '{model.key}' AND tags.`registered` = '{model.name}'"
    same = opened.search_logged_models([experiment], filter_string)
    logged = same[0] if same else opened.create_logged_model(
        experiment, f"{model.name}-{model.strategy}", run_id, model_type=model.family.kind,
        params=params,
        tags={"stage_key": model.key, "registered": model.name, "strategy": model.strategy},
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
        if model.is_adapter or not model.is_whole:
            links.copied(model.folder, out)
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

    columns = list(model.family.examples)
    # one column goes without its name, so that a list of texts will do
    asked = [ColSpec(DataType.string, *([name] if len(columns) > 1 else [])) for name in columns]
    types = {"string": DataType.string, "long": DataType.long, "double": DataType.double,
             "doubles": Array(DataType.double)}
    answers = [ColSpec(types[kind], name) for kind, name in model.family.answers_with]
    with tempfile.TemporaryDirectory() as folder:
        # MLflow would copy the files twice: it gets the small ones, and the weights come to where it puts them
        small = Path(folder) / "files" / model.folder.name
        weights = [file for file in sorted(model.folder.rglob("*")) if file.suffix == ".safetensors"]
        shutil.copytree(model.folder, small, ignore=shutil.ignore_patterns("*.safetensors"))
        pyfunc = PYFUNCS / f"{model.family.kind}.py"
        for path in closure(pyfunc) - {pyfunc}:  # the little that it imports of ours travels with it
            _copy_module(path, Path(folder))
        mlflow.pyfunc.save_model(
            str(out),
            python_model=str(ROOT / pyfunc),
            artifacts={"model": str(small)},
            code_paths=[str(Path(folder) / "ajuste")],
            mlflow_model=Description(run_id=run_id, model_id=model_id),
            signature=ModelSignature(Schema(asked), Schema(answers)),
            input_example=pd.DataFrame(model.family.examples),
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS],
        )
        for file in weights:
            links.place(file, out / "artifacts" / model.folder.name / file.relative_to(model.folder))


def _copy_module(path: Path, folder: Path) -> None:
    """A file of the project below `folder`, where it is imported by the same name."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.parents[:-1]:
        (folder / parent / "__init__.py").touch()
    shutil.copy(ROOT / path, target)
