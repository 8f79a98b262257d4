"""The grid of a sweep: `key=value,value,...` words as points, and everything about them that can be wrong, told first.

A key is one of params.yaml that the swept stage, or one that it reads from, depends on; each point must fit the
configs of those stages.
"""

import copy
import itertools
import json
import math
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, lookup, parse_yaml, read_yaml, section, typed
from ajuste.core.stages import definition, split_name, stage_names
from ajuste.tracking.project import lock
from ajuste.tracking.project.check import config_type_of
from ajuste.tracking.registry.families.all import of_stage
from ajuste.tracking.registry.families.family import Family

MOST = 256  # points; more is a typing error


def swept_family(target: str) -> Family:
    """The family whose models the stage trains. Raises UsageError for a stage that trains none."""
    names = stage_names()
    trains = [name for name in names if (found := of_stage(name)) and split_name(name)[0] == found.trains]
    if target not in trains:
        raise UsageError(f"`{target}` trains no model that is registered: sweep one of {', '.join(trains)}")
    return of_stage(target)


def parse(words: list[str]) -> dict[str, list]:
    """["classify.lora.r=4,8"] -> {"classify.lora.r": [4, 8]}. Commas in brackets or quotes part no values."""
    grid: dict[str, list] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.removeprefix("params.yaml:").strip()
        if not equals or not key or not text.strip():
            raise UsageError(f"`-S {word}`: write a key of params.yaml, `=` and values: -S classify.lora.r=4,8")
        if key in grid:
            raise UsageError(f"`{key}` is given twice: write all its values in one -S")
        values = [_value(word, part) for part in _parts(text)]
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise UsageError(f"`-S {word}`: the value {twice[0]} is given twice")
        grid[key] = values
    if not grid:
        raise UsageError("a sweep needs at least one -S: ajuste sweep classify_lora -S classify.lora.r=4,8")
    if (number := math.prod(map(len, grid.values()))) > MOST:
        raise UsageError(f"this grid has {number} points, more than {MOST}: take fewer values")
    return grid


def _parts(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _value(word: str, text: str) -> object:
    import yaml

    if not text.strip():
        raise UsageError(f"`-S {word}`: a value is empty; write null for none")
    try:
        return parse_yaml(f"value: {text.strip()}")["value"]
    except yaml.YAMLError:
        raise UsageError(f"`-S {word}`: `{text}` is no YAML value") from None


def points(target: str, grid: dict[str, list]) -> list[dict[str, object]]:
    """Every combination, checked against params.yaml and the configs of the stages. The first fault is told."""
    params = read_yaml(Path("params.yaml"))
    read = _upstream(target)
    watched = {key: name for name in read for key in definition(name).get("params", [])}
    for key in grid:
        if isinstance(lookup(params, key), dict):
            raise UsageError(f"`{key}` is a section of params.yaml: name one of {', '.join(lookup(params, key))}")
        if not any(key == known or key.startswith(f"{known}.") for known in watched):
            raise UsageError(f"`{key}` changes nothing about stage `{target}`: it reads {', '.join(sorted(watched))}")
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for point in found:
        changed = copy.deepcopy(params)
        for key, value in point.items():
            *above, last = key.split(".")
            (lookup(changed, ".".join(above)) if above else changed)[last] = value
        try:
            typed(Compute, changed.get("compute") or {}, "compute")
            for name in read:
                verb, variant = split_name(name)
                typed(config_type_of(name), section(changed, verb, variant), f"{verb}.{variant}".rstrip("."))
        except UsageError as error:
            raise UsageError(f"the point {said(point)} is refused: {error}") from None
    return found


def _upstream(target: str) -> list[str]:
    """The stage and all that it reads from, in the order of dvc.yaml."""
    found, todo = set(), [target]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += lock.parents_of(name)
    return [name for name in stage_names() if name in found]


def downstream(target: str, wanted: set[str]) -> list[str]:
    """Those of the wanted stages that read, directly or not, what the stage makes."""
    return [name for name in stage_names() if name in wanted and name != target and target in _upstream(name)]


def said(point: dict[str, object]) -> str:
    """classify.lora.r=4 classify.lora.lr=0.0001"""
    return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in point.items())
