"""policy.yaml: every key is known and fits, and a person's mistake is named with the file."""

from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.judging.policy import check_policy, policy
from ajuste.judging.verdicts.gate import GateConfig

TEXT = (ROOT / "policy.yaml").read_text(encoding="utf-8")


def test_the_projects_own_policy_names_every_key() -> None:
    check_policy(ROOT / "policy.yaml")
    assert policy("gate", GateConfig, ROOT / "policy.yaml").mode == "enforce"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mode: enforce", "mode: enforced", "`gate.mode`"),
        ("mode: enforce", "mod: enforce", "unknown key `gate.mod`"),
        ("gate:  ", "gates:  ", "unknown section `gates`"),
        ("drift:  ", "# drift:  ", "policy.yaml"),
        ("alpha: 0.01", "alpha: [", "no valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != TEXT
    with pytest.raises(UsageError) as caught:
        check_policy(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "params.yaml" not in str(caught.value)
