"""studies/stages.py: a study's stage in the rooms has the key that its lock will have, and its checkpoints stay."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ajuste.core import checkpoints
from ajuste.core import stages as core_stages
from ajuste.core.imports import ROOT
from ajuste.core.params import Config
from ajuste.core.stages import key_of_entry, md5_of
from studies import stages
from studies.rules import draw, point
from tasks.rl.scores import practice
from tests.made import tiny_decoders, tiny_rlhf
from tests.made.tiny_group import SECTIONS
from tests.made.tiny_ppo import CONFIG as PPO

COMPUTE = {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0}


class Tiny(Config):
    number: int


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "home", lambda: tmp_path)
    monkeypatch.setattr(core_stages, "home", lambda: tmp_path)
    monkeypatch.setattr(checkpoints, "home", lambda: tmp_path)
    (tmp_path / "studies/mine").mkdir(parents=True)
    (tmp_path / "artifacts/base").mkdir(parents=True)
    (tmp_path / "artifacts/base/file").write_text("x")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"compute": COMPUTE, "ppo": {"lr": 1.0, "number": 7}}))
    (tmp_path / "studies/mine/params.yaml").write_text("own: {number: 3}\nother: 1\n")
    entry = {"wdir": "../..", "cmd": "python -m studies.mine.own", "deps": ["artifacts/base"],
             "params": ["compute", "ppo.lr", {"studies/mine/params.yaml": ["own"]}], "outs": ["artifacts/adapters/own"]}
    (tmp_path / "studies/mine/dvc.yaml").write_text(yaml.safe_dump({"stages": {"own": entry}}))
    return tmp_path


def test_its_key_is_that_of_the_entry_that_dvc_will_lock(project: Path) -> None:
    base = {"path": "artifacts/base", "md5": md5_of(Path("artifacts/base"))}
    locked = {"cmd": "python -m studies.mine.own", "deps": [base],
              "params": {"params.yaml": {"compute": COMPUTE, "ppo.lr": 1.0},
                         "studies/mine/params.yaml": {"own": {"number": 3}}}}  # fmt: skip
    key = stages.stage_key("mine", "own")
    assert key == key_of_entry(locked)
    Path("studies/mine/params.yaml").write_text("own: {number: 4}\nother: 1\n")
    assert stages.stage_key("mine", "own") != key


def test_checkpoints_stay_until_it_has_succeeded(project: Path) -> None:
    own = ("mine", "own", Tiny, {"number": 3})
    with pytest.raises(SystemExit, match="^own was interrupted; run again to go on from"), stages.start(*own) as stage:
        (stage.checkpoints / "state").write_text("half")
        raise KeyboardInterrupt
    with stages.start(*own) as stage:
        assert stage.config.number == 3 and stage.compute.seed == 0
        assert (stage.checkpoints / "state").read_text() == "half"
        assert stage.checkpoints.parent == project / ".checkpoints"
    assert (stage.checkpoints / "state").exists(), "no dvc.lock has the result yet"
    base = {"path": "artifacts/base", "md5": md5_of(Path("artifacts/base"))}
    params = {"params.yaml": {"compute": COMPUTE, "ppo.lr": 1.0}, "studies/mine/params.yaml": {"own": {"number": 3}}}
    entry = {"cmd": "python -m studies.mine.own", "deps": [base], "params": params}
    (project / "studies/mine/dvc.lock").write_text(yaml.safe_dump({"stages": {"own": entry}}))
    checkpoints.sweep()
    assert not stage.checkpoints.exists()


@pytest.mark.parametrize(("values", "said"), [({"number": "x"}, "own.number"), ({}, "own")])
def test_what_is_wrong_is_one_line(project: Path, values: dict, said: str) -> None:
    with pytest.raises(SystemExit) as caught, stages.start("mine", "own", Tiny, values):
        pass
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_dep_is_named(project: Path) -> None:
    (project / "artifacts/base/file").unlink()
    (project / "artifacts/base").rmdir()
    with pytest.raises(SystemExit, match="artifacts/base is missing: stage `own` needs it; `ajuste run` makes it"), (
        stages.start("mine", "own", Tiny, {"number": 3})
    ):
        pass


def test_own_values_stand_over_those_of_ppo(project: Path) -> None:
    assert stages.sampled(Tiny, {}) == {"number": 7} and stages.sampled(Tiny, {"number": 2}) == {"number": 2}


# --- study rules ------------------------------------------------------------------------------------------------------


def test_pass_rates_are_paired_and_topics_hold_together() -> None:
    asked = practice.read(ROOT / "sources/rules", "test")
    before = [one.kind == "words" for one in asked]
    after = [one.kind in ("words", "sentence", "quoted") for one in asked]
    found = point.compared(asked, {"before": before, "after": after}, 500, 0)
    assert (found["prompts"], found["topics"]) == (336, 24)
    assert found["passed"]["before"]["value"] == 24 / 336 and found["passed"]["after"]["value"] == 72 / 336
    difference = found["passed"]["difference"]
    assert difference["value"] == pytest.approx(48 / 336) and 0.1 < difference["low"] < difference["high"] < 0.25
    assert found["kinds"]["quoted"] == {"before": 0.0, "after": 1.0} and len(found["kinds"]) == 14
    # every topic gained the same: with topics held together there is nothing left to vary
    assert found["at_least"] == pytest.approx(48 / 336)
    nothing = point.compared(asked, {"before": before, "after": before}, 500, 0)
    assert nothing["passed"]["difference"] == {"value": 0, "low": 0, "high": 0} and nothing["at_least"] == 0


def test_the_table_says_what_its_intervals_support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "STUDY", ROOT / "studies/rules")
    monkeypatch.setattr(draw, "POINTS", tmp_path)
    monkeypatch.setattr(draw, "OUT", tmp_path / "rules.md")
    for seed, low in enumerate((0.05, 0.01, -0.02)):
        rate = {"value": 0.3, "low": 0.25, "high": 0.35}
        gap = {"value": 0.1, "low": low, "high": 0.15}
        (tmp_path / f"{seed}.json").write_text(json.dumps({
            "seed": seed, "updates": 40, "alarms": 0, "kl": 6.5, "reward": [0.2, 0.4], "flat_groups": 0.25,
            "passed": {"before": rate, "after": rate, "difference": gap}, "at_least": 0.02, "prompts": 288,
            "topics": 24, "kinds": {"words": {"before": 0.1 * seed, "after": 0.5}},
        }))  # fmt: skip
    draw.main()
    page = (tmp_path / "rules.md").read_text()
    assert "rose with an interval that excludes 0 for 2 of 3 seeds." in page and "288 prompts about 24 topics" in page
    rate = "0.300 (0.250 to 0.350)"
    assert f"| 1 | {rate} | {rate} | +0.100 (+0.010 to +0.150) | +0.020 | 6.50 | 25% | 0 |" in page
    assert "| words | 0.10 | 0.50 |" in page


@pytest.mark.slow
def test_a_point_from_a_base_alone(project: Path) -> None:
    base = tiny_decoders.tiny_base(project / "artifacts/base/decoder")
    tiny_rlhf.whole(base, project / "artifacts/merged/instruct", seed=3)
    (project / "sources/rules").mkdir(parents=True)
    topics = {"train": ["rain", "sun"], "validation": ["wind"], "test": ["snow", "fog", "ice"]}
    rules = {n: [{"rule": "words", "max": n}] for n in (1, 2, 3, 4)}
    asked = [{"id": f"at-most-{n}", "prompt": f"Describe {{topic}} in {n} words.", "rules": of}
             for n, of in rules.items()]  # fmt: skip
    (project / "sources/rules/practice.yaml").write_text(yaml.safe_dump({"asked": asked, "topics": topics}))
    own = {"score": "rules", "updates": 2, "batch_rows": 8, "max_new_tokens": 4, "radar_every": 2, "lr": 0.05,
           **{key: SECTIONS["grpo"][key] for key in ("group", "scale", "mean", "clip_low", "clip_high", "kl_in")}}
    (project / "params.yaml").write_text(yaml.safe_dump({"compute": COMPUTE, "ppo": PPO}))
    (project / "studies/rules").mkdir()
    (project / "studies/rules/params.yaml").write_text(
        yaml.safe_dump({"seeds": [0], "prompts": 10, "bootstrap": 200, "grpo": own}))  # fmt: skip
    texts = []
    for _ in range(2):
        point.main(0)
        texts.append(Path("artifacts/studies/rules/0.json").read_text())
    found = json.loads(texts[0])
    assert texts[0] == texts[1] and found["prompts"] == 10 and found["updates"] == 2 and found["kl"] > 0
    assert np.isclose(found["passed"]["difference"]["value"],
                      found["passed"]["after"]["value"] - found["passed"]["before"]["value"])  # fmt: skip
