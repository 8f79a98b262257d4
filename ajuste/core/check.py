"""Is params.yaml right, for all stages that dvc.yaml names? Asked before anything runs."""

import importlib
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, Config, read_yaml, section, typed
from ajuste.core.stage import asking
from ajuste.core.stages import module_of, split_name, stage_names


def config_type_of(name: str) -> type[Config]:
    """The config of a stage: what its main() gives to `start`."""
    module = importlib.import_module(module_of(name))
    return asking(module.main)


def check_params() -> None:
    """Read every section that dvc.yaml's stages use, before anything runs. Raises UsageError for the first fault."""
    params = read_yaml(Path("params.yaml"))
    names = [split_name(name) for name in stage_names()]
    unknown = sorted(params.keys() - {"compute"} - {verb for verb, _ in names})
    if unknown:
        known = ", ".join(sorted({"compute"} | {verb for verb, _ in names}))
        raise UsageError(f"params.yaml: unknown section `{unknown[0]}`: known sections are {known}")
    typed(Compute, params.get("compute") or {}, "compute")
    for verb, variant in names:
        for key, value in (params.get(verb) or {}).items():
            if isinstance(value, dict) and (verb, key) not in names:
                raise UsageError(f"params.yaml: unknown section `{verb}.{key}`: dvc.yaml has no stage `{verb}_{key}`")
        where = f"{verb}.{variant}".rstrip(".")
        typed(config_type_of(f"{verb}_{variant}".rstrip("_")), section(params, verb, variant), where).check()
