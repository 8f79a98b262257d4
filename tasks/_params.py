"""params.yaml and dvc.yaml as a stage reads them: typed sections, dvc.yaml's definitions, hashes, the stage key.

    stage key = sha256(canonical JSON of {cmd, deps: {path: md5}, params}), with the values that dvc.lock writes

Stage `verb_variant` reads the plain keys of section `verb`, shared by its variants, and the mapping `verb.variant`.
Unknown keys are errors.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class DataError(Exception):
    """The data is wrong. The message names the file, the row or the set, what is wrong and what to do."""


class UsageError(Exception):
    """A parameter, a path or a name is wrong. The message names it, what is wrong and what to do."""


class Config(BaseModel):
    """A section of params.yaml. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Compute(Config):
    """Section `compute`, shared by all stages."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of training and inference.")
    device: Literal["auto", "cpu", "cuda"] = Field(description="`auto` takes a GPU when there is one.")
    threads: int = Field(ge=1, description="CPU threads. Equal bytes are promised for one count.")
    seed: int = Field(ge=0, description="The one seed of every stage.")

    def torch_device(self) -> str:
        import torch

        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's floats, so that 5e-5 is a number here as it is in DVC."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> dict:
    """YAML as DVC reads it."""
    return yaml.load(text, _Yaml) or {}  # _Yaml is a SafeLoader


def read_yaml(path: Path) -> dict:
    """A YAML file as a dict; a syntax error is a UsageError that names the file and the line."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run this in the project's folder") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None


# --- params ---------------------------------------------------------------------------------------------------------


def stage_names() -> list[str]:
    """The stages of the default run, in the order of dvc.yaml."""
    return list(read_yaml(Path("dvc.yaml"))["stages"])


def split_name(name: str) -> tuple[str, str]:
    """classify_lora -> ("classify", "lora"); summary -> ("summary", "")."""
    verb, _, variant = name.partition("_")
    return verb, variant


def section(params: dict, verb: str, variant: str) -> dict:
    """What a stage reads of params.yaml: the verb's plain keys, shared by its variants, and the variant's own.

    Where the verb has plain keys alone, they are those of every variant.
    """
    whole = params.get(verb)
    if whole is None and not variant:
        return {}
    if not isinstance(whole, dict):
        raise UsageError(f"params.yaml: section `{verb}` is missing")
    shared = {key: value for key, value in whole.items() if not isinstance(value, dict)}
    if not variant or shared == whole:
        return shared
    if not isinstance(whole.get(variant), dict):
        raise UsageError(f"params.yaml: section `{verb}.{variant}` is missing")
    twice = sorted(shared.keys() & whole[variant].keys())
    if twice:
        raise UsageError(f"params.yaml: `{verb}.{variant}.{twice[0]}` repeats `{verb}.{twice[0]}`: keep one of them")
    return {**shared, **whole[variant]}


def typed(config_type: type[Config], values: dict, where: str) -> Any:
    """The section as its config; the first wrong key is named with what is allowed."""
    try:
        return config_type(**values)
    except ValidationError as error:
        # a misspelt key is an unknown one and a missing one: the unknown one says more
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(config_type.model_fields))
            raise UsageError(f"params.yaml: unknown key `{key}`: known keys are {known}") from None
        got = "" if isinstance(first.get("input"), dict) else f" (got {first.get('input')!r})"
        raise UsageError(f"params.yaml: `{key}`: {first['msg'].removeprefix('Value error, ')}{got}") from None


def config_type_of(name: str) -> type[Config]:
    """The config class of a stage: `<Variant>Config` of its module, else `<Verb>Config`."""
    verb, variant = split_name(name)
    module = importlib.import_module(f"tasks.{verb}")
    own = getattr(module, f"{variant.capitalize()}Config", None) if variant else None
    return own or getattr(module, f"{verb.capitalize()}Config")


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
        typed(config_type_of(f"{verb}_{variant}".rstrip("_")), section(params, verb, variant), where)


# --- stage key ------------------------------------------------------------------------------------------------------


def md5_of(path: Path) -> str:
    """DVC's hash of a file or a folder."""
    if path.is_dir():
        return md5_of_listing(
            {file.relative_to(path).as_posix(): md5_of(file) for file in path.rglob("*") if file.is_file()}
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def md5_of_listing(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the md5 of its files by relative path: md5 of their sorted JSON list."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def key_of(cmd: str, deps: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """The stage key. `deps` maps path to md5, `params` dotted key to value, as dvc.lock writes them."""
    text = json.dumps({"cmd": cmd, "deps": dict(deps), "params": dict(params)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def definition(name: str) -> dict:
    """The stage's entry of dvc.yaml with ${...} filled in from params.yaml."""
    params = read_yaml(Path("params.yaml"))
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    if name not in stages:
        raise UsageError(f"dvc.yaml has no stage `{name}`: stages are {', '.join(stages)}")
    text = json.dumps(stages[name])
    return json.loads(re.sub(r"\$\{([\w.]+)\}", lambda match: str(lookup(params, match[1])), text))


def lookup(params: dict, dotted: str) -> Any:
    """The value at a dotted key of params.yaml."""
    value: Any = params
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"params.yaml: `{dotted}` is missing")
        value = value[part]
    return value


def stage_key(name: str) -> str:
    """The key of a stage from the files as they stand now. Raises UsageError for a missing dep."""
    entry, params = definition(name), read_yaml(Path("params.yaml"))
    deps = {}
    for dep in entry.get("deps", []):
        if not Path(dep).exists():
            cure = "`ajuste data list` shows the sets" if dep.startswith("data/") else "`ajuste run` makes it"
            raise UsageError(f"{dep} is missing: stage `{name}` needs it; {cure}")
        deps[dep] = md5_of(Path(dep))
    return key_of(entry["cmd"], deps, {key: lookup(params, key) for key in entry.get("params", [])})
