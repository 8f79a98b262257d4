"""Keys of study grpo: each of them changes what a run of two updates learns, or what it is paid for."""

from pathlib import Path

import pytest

from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml
from studies.stages import sampled
from tasks.grpo import GrpoConfig
from tasks.rloo import RlooConfig
from tests.keys.cases import To, cases
from tests.keys.test_every_key import leaves
from tests.made.tiny_group import Table, run
from tests.tasks.test_group_loop import PROMPTS, TABLE, liked

FAR = {"lr": 0.1, "epochs": 4}  # steps so large that ratios leave their bounds, by more and by less
CASES = {
    "grpo": {"group": 2, "scale": "none", "mean": "token", "clip_low": To(0.01, under=FAR),
             "clip_high": To(0.01, under=FAR), "kl_in": "reward"},
    "rloo": {"group": 2, "clip_low": To(0.01, under=FAR), "clip_high": To(0.01, under=FAR)},
}  # fmt: skip
SILENT = {f"{method}.score": "tests/tasks/test_grpo.py and test_scores.py run each kind of score" for method in CASES}
STUDY = read_yaml(ROOT / "studies/grpo/params.yaml")


def learnt(folder: Path, method: str, **changes: object) -> object:
    outcome, one = run(folder, method, Table(), PROMPTS, liked, **{**TABLE, "updates": 2, **changes})
    return one.policy.tolist(), outcome.history


@pytest.mark.parametrize(("method", "key", "to"), cases(CASES))
def test_a_key_says_something(tmp_path: Path, method: str, key: str, to: object) -> None:
    to = to if isinstance(to, To) else To(to)
    before, after = ({**to.under, **more} for more in ({}, {key: to.value}))
    assert learnt(tmp_path / "before", method, **before)[0] != learnt(tmp_path / "after", method, **after)[0]


def test_every_key_of_the_study_has_a_case_or_a_reason() -> None:
    told = {f"{method}.{key}" for method, keys in CASES.items() for key in keys}
    assert leaves(STUDY) == told | SILENT.keys()


@pytest.mark.parametrize(("method", "kind"), [("grpo", GrpoConfig), ("rloo", RlooConfig)])
def test_the_rest_is_section_ppo(method: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same budget, and a preset carries over."""
    monkeypatch.chdir(ROOT)
    config, shared = kind(**sampled(kind, STUDY[method])), read_yaml(ROOT / "params.yaml")["ppo"]
    own = STUDY[method].keys()
    assert {key: getattr(config, key) for key in kind.model_fields if key in shared and key not in own} == {
        key: value for key, value in shared.items() if key in kind.model_fields and key not in own}  # fmt: skip
    assert config.updates == shared["updates"] and kind(**sampled(kind, {**STUDY[method], "updates": 3})).updates == 3
    tiny = read_yaml(ROOT / "presets/tiny.yaml")["ppo"]
    small = sampled(kind, STUDY[method]) | {key: value for key, value in tiny.items() if key in kind.model_fields}
    assert kind(**small).batch_rows % STUDY[method]["group"] == 0
    rules = read_yaml(ROOT / "studies/rules/params.yaml")["grpo"]
    assert GrpoConfig(**sampled(GrpoConfig, rules)).group == 8
