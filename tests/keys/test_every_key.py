"""Every leaf of params.yaml and policy.yaml has a case that shows what it does, or a reason why it changes nothing."""

import copy
import json
from pathlib import Path

import pytest

from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml
from tests.keys import test_alignment, test_judging, test_policy, test_ppo, test_rows, test_supervised
from tests.keys.cases import Compared, To, changed

PARAMS = (test_alignment, test_judging, test_ppo, test_rows, test_supervised)


def leaves(values: dict, above: str = "") -> set[str]:
    """Dotted names of all that is no mapping; a mapping without keys is a leaf itself."""
    found = set()
    for key, value in values.items():
        name = f"{above}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) and value else {name}
    return found


def named(modules: tuple) -> tuple[set[str], set[str]]:
    """What the modules change, and what they give a reason for."""
    tables = [module.CASES for module in modules]
    told = {f"{section}.{key}" for table in tables for section, keys in table.items() for key in keys}
    return told, {key for module in modules for key in module.SILENT}


@pytest.mark.parametrize(("file", "modules"), [("params.yaml", PARAMS), ("policy.yaml", (test_policy,))])
def test_every_leaf_has_a_case_or_a_reason(file: str, modules: tuple) -> None:
    there, (told, silent) = leaves(read_yaml(ROOT / file)), named(modules)
    assert there - told - silent == set(), f"give each of these keys of {file} a case in tests/keys/"
    assert (told | silent) - there == set(), f"{file} has no such key"
    assert told & silent == set(), "a key with a case needs no reason"
    assert all(len(reason.split()) > 3 for module in modules for reason in module.SILENT.values())


def test_a_new_leaf_would_be_noticed() -> None:
    params = copy.deepcopy(read_yaml(ROOT / "params.yaml"))
    params["encode"]["reviews"]["rows"]["holdout"] = 1
    assert leaves(params) - set().union(*named(PARAMS)) == {"encode.reviews.rows.holdout"}


def test_a_dead_key_is_found_though_a_report_repeats_it() -> None:
    def stage(section: dict, out: Path) -> None:
        report = {"rule": section["dead"], "found": section["alive"] * section["more"]}
        (out / "report.json").write_text(json.dumps(report))

    compared = Compared(stage, {"dead": 1, "alive": 1, "more": 0})
    with pytest.raises(AssertionError, match="`dead` changes nothing: 2 "):
        compared.differs("dead", 2)
    with pytest.raises(AssertionError, match="`alive` changes nothing"):
        compared.differs("alive", 2)
    compared.differs("alive", To(2, under={"more": 1}))


def test_another_value_must_be_another_one() -> None:
    with pytest.raises(AssertionError, match="already"):
        changed({"a": {"b": 1}}, "a.b", 1)
