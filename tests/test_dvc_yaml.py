"""dvc.yaml says what the code does: each stage depends on the files it imports and on the params it reads, exactly."""


import pytest
import yaml

from ajuste.core.imports import ROOT
from ajuste.core.params import parse_yaml, section
from ajuste.core.stages import split_name
from ajuste.tracking.project import deps
from ajuste.tracking.project.check import config_type_of, keys_of

# the scores before and after come from one section
ALSO = {name: {also} for method in ("ppo", "dpo")
        for name, also in ((f"evaluate_{method}", "forgetting"), (f"assistant_{method}", "evaluate.instruct"))}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = parse_yaml((ROOT / "params.yaml").read_text())


def paths(entries: list) -> list[str]:
    """The paths of deps, outs, metrics or plots: each a string, or a mapping from path to options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries or []]


def test_the_deps_of_stages_and_studies_are_those_of_the_imports() -> None:
    for path in deps.files():
        text = path.read_text(encoding="utf-8")
        assert deps.with_deps(text) == text, f"{path.relative_to(ROOT)} is old: run `make deps`"


def test_an_edit_by_hand_of_the_deps_is_found_and_undone() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    damaged = text.replace("      - tasks/classify/lora.py\n", "", 1)
    assert deps.with_deps(damaged) == text != damaged


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_own_module(name: str) -> None:
    verb, variant = split_name(name)
    assert STAGES[name]["cmd"] == f"python -m tasks.{verb}.{variant}".rstrip(".")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_names_the_params_that_its_config_reads(name: str) -> None:
    verb, variant = split_name(name)
    whole = PARAMS.get(verb) or {}
    shared = {f"{verb}.{key}" for key, value in whole.items() if not isinstance(value, dict)}
    if len(shared) == len(whole):  # no variant has keys of its own: the whole section
        shared = {verb} if whole else set()
    expected = {"compute", *shared} | ({f"{verb}.{variant}"} if variant in whole else set()) | ALSO.get(name, set())
    assert set(STAGES[name]["params"]) == expected
    values = section(PARAMS, verb, variant)
    fields = config_type_of(name).model_fields
    assert set(values) == set(fields), f"params.yaml and {config_type_of(name).__name__} name other keys"
    config_type_of(name)(**values)
    assert keys_of(name, STAGES[name]) == set(fields), "told from the source, before anything is imported"


@pytest.mark.parametrize("name", STAGES)
def test_every_field_says_what_it_is(name: str) -> None:
    for key, field in config_type_of(name).model_fields.items():
        assert field.description, f"{config_type_of(name).__name__}.{key} has no description"


def test_params_hold_nothing_that_no_stage_reads() -> None:
    read = {param for stage in STAGES.values() for param in stage["params"]}
    for verb, value in PARAMS.items():
        if verb == "launch":
            continue  # where stages run: read by each of them, and no reason to run one again
        for key in value or {}:
            assert verb in read or f"{verb}.{key}" in read, f"no stage reads {verb}.{key}"


def test_every_path_is_written_once_and_read_paths_are_written_or_raw() -> None:
    written = [
        path for stage in STAGES.values() for kind in ("outs", "metrics", "plots") for path in paths(stage.get(kind))
    ]
    assert len(written) == len(set(written))
    for name, stage in STAGES.items():
        for dep in paths(stage["deps"]):
            made = any(dep == out or dep.startswith(f"{out}/") for out in written)
            given = dep.endswith(".py") or dep.startswith(("data/", "sources/"))
            assert made or given, f"{name} reads {dep}, which no stage writes"


def test_only_the_last_stage_writes_metrics() -> None:
    for name, stage in STAGES.items():
        small = paths(stage.get("metrics")) + paths(stage.get("plots"))
        assert bool(small) == (name == "summary")
        assert all(path.startswith("metrics/") for path in small)
        assert all(path.startswith("artifacts/") for path in paths(stage.get("outs")) if name != "summary")


def test_no_stage_is_named_like_a_module_of_python() -> None:
    import sys

    assert {split_name(name)[0] for name in STAGES} & set(sys.stdlib_module_names) == set()
