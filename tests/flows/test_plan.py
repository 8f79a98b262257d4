"""What a run will do, on this repository's own dvc.yaml and params.yaml: no pipeline is run, DVC is not asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.imports import ROOT
from ajuste.core.params import lookup, read_yaml
from ajuste.core.stages import md5_of, stage_names
from ajuste.tracking.project import dvc
from flows import _plan
from flows._plan import Asked, look, reach, stages_of_names

CLASSIFIERS = {"classify_frozen", "classify_full", "classify_lora", "merge_classify", "evaluate_classify"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's dvc.yaml and params.yaml, its home inside; DVC would find everything fresh."""
    for name in ("dvc.yaml", "params.yaml", "policy.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    home.cache_clear()
    monkeypatch.setattr(dvc, "status", dict)
    yield tmp_path
    home.cache_clear()


def test_a_name_needs_what_trains_merges_and_judges_it(project: Path) -> None:
    found = stages_of_names()
    assert found["reviews-classifier"] == CLASSIFIERS
    assert found["ratings-reward"] == {"reward", "merge_reward"}
    assert found["assistant:sft"] == {
        "instruct", "merge_instruct", "evaluate_instruct", "forgetting_instruct", "alignment_instruct"}  # fmt: skip
    assert {"ppo", "merge_ppo", "evaluate_ppo"} <= found["assistant:ppo"]
    assert {"dpo", "merge_dpo", "evaluate_dpo", "assistant_dpo", "alignment_dpo"} == found["assistant:dpo"]
    assert found["assistant"] == found["assistant:sft"] | found["assistant:ppo"] | found["assistant:dpo"]
    assert all(own <= set(stage_names()) for own in found.values())


def test_preferences_alone_train_no_classifier(project: Path) -> None:
    reached = reach(Asked(("ratings-reward",)))
    assert {"base_decoder", "encode_preferences", "instruct", "merge_instruct", "reward", "merge_reward"} <= reached
    assert reached.isdisjoint({"summary", "gold", "ppo", "evaluate_instruct"} | CLASSIFIERS)
    assert look(Asked(("ratings-reward",))).names == {"ratings-reward"}


def test_a_name_follows_the_set_of_params(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("set: ratings ", "set: hh "))
    assert {"hh-reward", "reviews-classifier"} <= stages_of_names().keys()
    assert reach(Asked(("hh-reward",))) == reach(Asked(("hh-reward-adapter",)))
    with pytest.raises(UsageError, match="`ratings-reward` is neither a registered name nor a stage: names are .*hh-"):
        reach(Asked(("ratings-reward",)))


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (Asked(), {"reviews-classifier", "ratings-reward", "assistant"}),
        (Asked(("summary",)), {"reviews-classifier", "ratings-reward", "assistant"}),
        (Asked(("assistant:sft",)), {"assistant"}),
        (Asked(("evaluate_classify",)), {"reviews-classifier"}),
        (Asked(("merge_classify",)), set()),
        (Asked(("evaluate_classify", "merge_reward")), {"reviews-classifier", "ratings-reward"}),
        (Asked(until="evaluate_classify"), {"reviews-classifier"}),
        (Asked(from_stage="merge_classify", until="evaluate_classify"), {"reviews-classifier"}),
    ],
)
def test_what_is_judged_at_the_end_follows_from_what_was_asked(project: Path, asked: Asked, names: set[str]) -> None:
    assert look(asked).names == names


def test_from_and_until_cut_what_the_targets_need(project: Path) -> None:
    found = look(Asked(("merge_classify",), "classify_lora"))
    assert set(stage_names()) - found.skipped == {"classify_lora", "merge_classify"} and "classify_lora" in found.stale
    assert reach(Asked(until="encode_reviews")) == {"base_encoder", "validate_reviews", "encode_reviews"}
    with pytest.raises(UsageError, match="stage `ppo` is not among those that would run: base_decoder, "):
        reach(Asked(("encode_instructions",), "ppo"))
    for asked in (Asked(("nope",)), Asked(from_stage="nope"), Asked(until="nope")):
        with pytest.raises(UsageError, match="`nope`.* stages are base_encoder, "):
            reach(asked)


def test_it_says_what_will_run_and_how_long_it_took(project: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (project / ".state").mkdir()
    states = {"classify_lora": {"seconds": 95.2}, "merge_classify": {"seconds": 7, "error": {"kind": "data"}}}
    for name, state in states.items():
        (project / ".state" / f"{name}.json").write_text(json.dumps(state))
    monkeypatch.setattr(dvc, "status", lambda: {"classify_lora": [], "ppo": [], "studies/x/dvc.yaml:y": []})
    look(Asked(("evaluate_classify",)))
    assert capsys.readouterr().err.splitlines() == [
        "to run: 3 of 9 stages, about 1 min 35 s by their last runs here, 2 of them not known yet",
        "  classify_lora 1 min 35 s, merge_classify ?, evaluate_classify ?",
    ]
    look(Asked(("base_encoder",)))
    assert capsys.readouterr().err == ""
    assert _plan.forecast(["ppo"], 26).startswith("[bold]to run: 1 of 26 stages[/], how long is not known yet\n")
    assert [_plan.in_words(seconds) for seconds in (0.2, 59.4, 60, 4000)] == ["1 s", "59 s", "1 min 0 s", "1 h 6 min"]


def test_what_is_begun_before_prefect_is_taken_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = Asked(("base_encoder",)), iter([{"base_encoder": []}, {}])
    monkeypatch.setattr(dvc, "status", lambda: next(answers))
    _plan.look_ahead(asked)
    assert _plan.looked(asked).stale == {"base_encoder"}
    assert _plan.looked(asked).stale == set()  # asked anew


# --- a mistake is said before Prefect is there ------------------------------------------------------------------------

HEAVY = ("prefect", "mlflow", "torch", "transformers", "great_expectations", "scipy")
PROGRAM = f"""
import sys
from ajuste.cli import main
try:
    main.main()
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""


@pytest.fixture
def recorded(project: Path) -> Path:
    """The project with the code of the stages and a dvc.lock that records all of its params with this code."""
    stages, params = {}, read_yaml(project / "params.yaml")
    for name in ("ajuste", "flows", "tasks"):
        (project / name).symlink_to(ROOT / name)
    for name, entry in read_yaml(project / "dvc.yaml")["stages"].items():
        code = [dep for dep in entry["deps"] if dep.startswith("tasks/")]
        stages[name] = {
            "cmd": entry["cmd"],
            "deps": [{"path": dep, "md5": md5_of(ROOT / dep)} for dep in code],
            "params": {"params.yaml": {key: lookup(params, key) for key in entry["params"]}},
        }
    (project / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    for name in ("encoder", "decoder"):
        (project / "artifacts/base" / name).mkdir(parents=True)
    return project


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("params.yaml", "compute:", "clasify: {}\ncompute:", "params.yaml: unknown section `clasify`: known"),
        ("params.yaml", "  by: one ", "  by: two ", "params.yaml: `launch.by`: Input should be 'one' or 'ray'"),
        ("params.yaml", "  lora:\n", "  lorra: {}\n  lora:\n", "params.yaml: unknown section `classify.lorra`"),
        ("params.yaml", "classify:\n", "classify:\n  tsk: x\n", "params.yaml: unknown key `classify.tsk`: known"),
        ("params.yaml", "dtype: float32 ", "dtype: f32 ", "params.yaml: `compute.dtype`: Input should be"),
        ("params.yaml", "compute:", "compute: [", "params.yaml is no valid YAML"),
        ("params.yaml", "    r: 8", "    rr: 8", "unknown key `classify.lora.rr`: known keys are accumulation, "),
        ("params.yaml", "batch_rows: 2048", "batch_rows: many", "`encode.reviews.batch_rows`: Input should be"),
        ("policy.yaml", "  window:", "  wndow: 1\n  window:", "policy.yaml: unknown key `drift.wndow`: known keys"),
        ("policy.yaml", "\ndrift:", "\ndrfit: {}\ndrift:", "policy.yaml: unknown section `drfit`: known sections"),
    ],
)
def test_a_mistake_is_one_line_without_heavy_imports(recorded: Path, file: str, old: str, new: str, said: str) -> None:
    """DVC and the state of the stages are not even asked, so it is the same when nothing is stale."""
    path = recorded / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, "run"], capture_output=True, text=True, env=env)
    assert done.stdout == "[]\n", done.stderr
    first, error = done.stderr.splitlines()
    assert first == "ajuste run: all stages; what is stale is being looked up"
    assert error.startswith("error: ") and said in error and done.returncode == 2


def test_a_section_is_typed_unless_the_lock_vouches_for_it(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ajuste.tracking.project import check

    typed, config_type_of = [], check.config_type_of
    monkeypatch.setattr(check, "config_type_of", lambda name: typed.append(name) or config_type_of(name))
    check.check_params()
    assert typed == []
    (recorded / "artifacts/base/encoder").rmdir()  # then it must be brought, and its source be there
    check.check_params()
    assert typed.pop() == "base_encoder" and typed == []
    (recorded / "artifacts/base/encoder").mkdir()
    params = recorded / "params.yaml"
    params.write_text(params.read_text().replace("batch_rows: 2048", "batch_rows: 1024", 1))
    check.check_params()
    assert typed == ["encode_reviews"]
    lock = json.loads((recorded / "dvc.lock").read_text())
    lock["stages"]["summary"]["deps"][0]["md5"] = "other code"
    lock["stages"]["base_encoder"]["params"]["params.yaml"]["base.encoder"] = {"sauce": "x"}
    (recorded / "dvc.lock").write_text(json.dumps(lock))
    typed.clear()
    check.check_params()
    assert typed == ["base_encoder", "encode_reviews", "summary"]
