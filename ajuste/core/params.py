"""params.yaml as a stage reads it: typed sections, unknown keys are errors.

Stage `verb_variant` reads the plain keys of section `verb`, shared by its variants, and the mapping `verb.variant`.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ajuste.core.errors import UsageError


class Config(BaseModel):
    """A section of params.yaml. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def check(self) -> None:
        """Raise UsageError for what is missing on this machine, as far as that can be known before anything runs."""


class Compute(Config):
    """Section `compute`, shared by all stages."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of training and inference.")
    device: Literal["auto", "cpu", "cuda"] = Field(description="`auto` takes a GPU when there is one.")
    threads: int = Field(ge=1, description="CPU threads. Equal bytes are promised for one count.")
    seed: int = Field(ge=0, description="The one seed of every stage.")
    portable: bool = Field(default=False, description="The same bytes on every x86-64 processor, and slower.")

    @model_validator(mode="after")
    def _one_kernel(self) -> Self:
        if self.portable and (self.dtype, self.device, self.threads) != ("float32", "cpu", 1):
            raise ValueError("portable needs dtype float32, device cpu and threads 1: `ajuste preset portable`")
        return self

    def torch_device(self) -> str:
        import torch

        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml's is eight times faster; some builds lack it
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


def lookup(params: dict, dotted: str) -> Any:
    """The value at a dotted key of params.yaml."""
    value: Any = params
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UsageError(f"params.yaml: `{dotted}` is missing")
        value = value[part]
    return value
