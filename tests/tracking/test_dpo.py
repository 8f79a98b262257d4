"""DPO in the registry beside PPO: found, ranked with it by one figure, gated, compared, reported.

And rejection sampling, a method that a study makes, beside both.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ajuste.cli.project import study
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml, typed
from ajuste.judging.verdicts.gate import GateConfig
from ajuste.tracking.comparing import compare, text
from ajuste.tracking.pages import report, report_dpo
from ajuste.tracking.project import dvc, lock, raw_data
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families.dpo import DPO
from ajuste.tracking.registry.rank import _best
from ajuste.tracking.verdicts import gate
from flows import _steps
from flows._plan import stages_of_names
from tests.cli.registered import run
from tests.made import tiny_rlhf
from tests.tracking import rlhf
from tests.tracking.stored import stored
from tests.tracking.test_report_instruct import text_of
from tests.tracking.test_rlhf import of
from tests.tracking.test_runs import history_of, run_of

NAME = "assistant"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """A run with SFT, PPO and DPO, whose gold gain on validation is the larger one."""
    folder = tmp_path_factory.mktemp("dpo")
    root = rlhf.add_dpo(rlhf.make(folder / "run"), gold_gain=0.2, gold_gain_low=0.1)
    with stored(folder, {"run": root}):
        yield folder, root


def test_it_is_registered_with_its_figures_and_becomes_challenger_by_the_larger_gain(root: Path) -> None:
    sft, ppo, dpo = (of(root, folder=name) for name in ("instruct", "ppo", "dpo"))
    assert (dpo.tags["method"], dpo.tags["strategy"]) == ("dpo", "dpo")
    assert dpo.tags["base_version"] == f"{NAME}/{sft.version}"
    assert float(dpo.tags["test.gold_gain"]) == 0.08 and float(dpo.tags["test.loss"]) == 2.03
    assert float(dpo.tags["validation.displacement"]) == 0.3 and float(dpo.tags["forgetting.general"]) == 0.15
    assert dpo.tags["adapter_version"] == of(root, f"{NAME}-adapter", "dpo").version
    assert dpo.aliases == ("challenger",) and ppo.aliases == ()
    assert "0.2000 (at least 0.1000) above version " + sft.version in dpo.tags["alias.challenger"]
    page = registry.client().get_model_version(NAME, dpo.version).description
    for said in ("dpo, gold +0.080 against", "trained on the comparisons themselves", "0.900 of the pairs in order",
                 "preferred responses lost 0.300 nats a token", "as an assistant: held-out loss 2.0300"):
        assert said in page, said
    (run, *_) = run_of("dpo")
    assert history_of(run.info.run_id, "curve/chosen")[0] == (1, pytest.approx(-3.05))
    assert run.data.metrics["accuracy_margin_1.5/test"] == 0.85
    (run, *_) = run_of("evaluate_dpo")
    assert run.data.metrics["gold/dpo"] == 0.68


@pytest.mark.parametrize(("gains", "expected"), [
    ({2: ("ppo", 0.2, 0.1), 3: ("dpo", 0.1, 0.05)}, "2"),  # the newer method does not win by being newer
    ({2: ("ppo", 0.1, 0.05), 3: ("dpo", 0.2, 0.1)}, "3"),
    ({2: ("ppo", 0.1, 0.05), 3: ("dpo", 0.4, -0.1)}, "2"),  # maybe better is not better
])  # fmt: skip
def test_methods_that_rank_by_one_figure_are_ranked_together(gains: dict, expected: str) -> None:
    facts = {"1": {"method": "sft", "validation.loss": "2.0", "parameters.trainable": "9", "validation_rows": "a"}}
    facts |= {str(n): {"method": method, "base_version": f"{NAME}/1", "validation.gold_gain": str(gain),
                       "validation.gold_gain_low": str(low), "parameters.trainable": "9", "validation_rows": "b"}
              for n, (method, gain, low) in gains.items()}
    found = [SimpleNamespace(version=number, name=NAME, tags=tags) for number, tags in facts.items()]
    assert _best(found, facts)[0].version == expected


def made_from_one(**versions: dict[str, float]) -> tuple[list, dict]:
    """An SFT version 1 and policies made from it, by their tags, as `_best` reads them: MLflow's numbers are int."""
    facts = {1: {"method": "sft", "validation.loss": "2.0", "parameters.trainable": "9", "validation_rows": "a"}}
    methods = ("ppo", "dpo", "rejection")
    for number, (method, tags) in enumerate(zip(methods, versions.values(), strict=False), start=2):
        facts[number] = {"method": method, "base_version": f"{NAME}/1", "parameters.trainable": "9",
                              "validation_rows": "b", **{key: str(value) for key, value in tags.items()}}
    return [SimpleNamespace(version=number, name=NAME, tags=tags) for number, tags in facts.items()], facts


def ranked(gold: float, second: float | None = None, kl: float = 2.0, **more: object) -> dict:
    """Tags of one whose own training says a gain of 0.9; on the prompts that all answered it is another one."""
    tags = {"validation.gold_gain": 0.9, "validation.gold_gain_low": 0.8, "judge.gold": "g", "ranked.prompts": 64}
    for judge, value in {"gold_gain": gold, "second_gain": second}.items():
        if value is not None:
            bounds = {f"ranked.{judge}.low": value - 0.05, f"ranked.{judge}.high": value + 0.05}
            tags |= {f"ranked.{judge}": value} | bounds
    return tags | {"ranked.kl": kl, "ranked.kl.low": kl - 0.2, "ranked.kl.high": kl + 0.2} | more


def test_the_same_prompts_and_two_judges_rank_the_methods() -> None:
    found, facts = made_from_one(ppo=ranked(0.3, 0.2), dpo=ranked(0.6, 0.35))
    best, why = _best(found, facts)
    assert best.version == 3
    assert "its score by the second judge on validation is 0.3500 (at least 0.3000) above version 1" in why
    assert "a gain of 0.3500 [0.3000, 0.4000] is above 0.2000 [0.1500, 0.2500] of version 2" in why
    # the judge that is less convinced speaks
    assert _best(*made_from_one(ppo=ranked(0.3, 0.25), dpo=ranked(0.6, 0.06)))[0].version == 2
    assert _best(*made_from_one(ppo=ranked(0.6, 0.01)))[0].version == 1, "the second one sees nothing"
    assert _best(*made_from_one(ppo=ranked(0.3), dpo=ranked(0.2)))[0].version == 2, "without a second judge"


def test_overlapping_gains_go_to_the_smaller_kl_then_to_the_cost_and_a_worse_assistant_is_out() -> None:
    near = {"ppo": ranked(0.3, kl=5.0), "dpo": ranked(0.28, kl=1.5)}
    found, facts = made_from_one(**near)
    best, why = _best(found, facts)
    assert best.version == 3 and "overlap, and its KL of 1.50 [1.30, 1.70] is less" in why
    seconds = {2: 100.0, 3: 300.0}
    near["ppo"] = ranked(0.3, kl=1.6)
    found, facts = made_from_one(**near)
    best, why = _best(found, facts, lambda version, tags: (seconds[version.version], ""))
    assert best.version == 2 and "it has the fewest seconds to train, 100" in why
    lost = {2: "keeps loss: 2.4 against 2.0", 3: ""}
    best, why = _best(found, facts, lambda version, tags: (None, lost[version.version]))
    assert best.version == 3 and "version 2 is out, keeps loss: 2.4 against 2.0" in why
    best, why = _best(found, facts, lambda version, tags: (None, "keeps rules"))
    assert best.version == 1 and "version 2 is out, keeps rules; version 3 is out, keeps rules" in why


def test_only_who_was_judged_as_the_newest_version_compares() -> None:
    """An older version of other prompts or judges, or of none, is no evidence beside it, whatever its card says."""
    card = {"validation.gold_gain": 0.95, "validation.gold_gain_low": 0.92}
    for other in ({"ranked.prompts": 32}, {"judge.gold": "h"}, {"ranked.temperature": 1.0}):
        best, why = _best(*made_from_one(ppo=ranked(0.9, 0.9, **other, **card), dpo=ranked(0.1, 0.1)))
        assert best.version == 3 and "version 2" not in why
    assert _best(*made_from_one(ppo=card, dpo=ranked(0.1, 0.1)))[0].version == 3
    best, why = _best(*made_from_one(ppo=ranked(0.3, 0.3), dpo=card))  # the newest has its card alone: so all of them
    assert best.version == 3 and "a gain of 0.9500" in why


def test_the_gate_judges_it_and_holds_it_against_a_champion_of_another_method(root: Path) -> None:
    config = typed(GateConfig, read_yaml(ROOT / "policy.yaml")["gate"], "gate")
    verdict = gate.judge(NAME, config=config)
    names = [rule.name for rule in verdict.rules]
    assert "base gold" in names and any(name.startswith("kept") or "keeps" in name for name in names), names
    ppo, dpo = of(root, folder="ppo"), of(root, folder="dpo")
    paired = DPO.beside(dpo, ppo, DPO.recorded(dpo))
    assert len(paired.others) == rlhf.PROMPTS and paired.own.keys() == paired.others.keys() and not paired.problem
    sft = of(root, folder="instruct")
    assert DPO.beside(dpo, sft, DPO.recorded(dpo)).others.keys() == paired.own.keys(), "the one that it was made from"
    other = replace(dpo, tags={**dpo.tags, "base_version": f"{NAME}/99"})
    assert "it has no gold score on these prompts" in DPO.beside(other, sft, DPO.recorded(dpo)).problem


def test_it_is_compared_with_ppo_on_the_same_prompts(root: Path) -> None:
    ppo, dpo = of(root, folder="ppo").version, of(root, folder="dpo").version
    found = compare.compare(NAME, [ppo, dpo])
    assert {pair["metric"] for pair in found["paired"]} == {"gold score", "proxy reward", "held-out loss"}
    shown = text.to_markdown(found)
    for fact in ("| validation pairs in order |", "| validation displacement, nats a token |", "| gold score |"):
        assert fact in shown, fact


def test_the_report_has_its_curves_and_its_displacement(root: Path) -> None:
    said = text_of(report.write_report(Path("index.html")))
    for fact in ("Of 60 pairs that it never saw, its implicit reward puts 75.0% in the order of the people",
                 "DPO: learnt the order", "Held-out pairs in the order of people: 0.850 [0.800, 0.900] of those 1.5",
                 "They lost 0.30 nats a token on validation.", "DPO: really better", "Loss sigmoid, beta 0.1"):
        assert fact in said, fact
    drawn = Path("index.html").read_text()
    for title in ("preferred: -3.05 at 1", "the other, validation: -3.3 at 3", "lost: 0.05 at 1"):
        assert title in drawn, title
    assert [title for title, _ in report_dpo.curves([])] == []


def test_an_alarm_is_shown_where_the_person_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("artifacts/adapters/dpo")
    tiny_rlhf.direct_curves(folder, "step 6: preferred responses have lost 0.3 nats")
    (folder / "ajuste.json").write_text(json.dumps({"validation": {"displacement": 0.3}}))
    (state, what, detail), _ = DPO.findings()
    assert (state, what) == ("warn", "DPO: preferred responses stay likely") and "ALARM: step 6" in detail
    monkeypatch.setattr(_steps.lock, "stages", lambda: {"dpo": {"outs": [{"path": str(folder)}]}})
    assert _steps._alarms("dpo") == ["step 6: preferred responses have lost 0.3 nats"]


# --- a method that a study makes, after the run: the last tests of this store -----------------------------------------


@pytest.fixture(scope="module")
def studied(store) -> Path:
    """Study best-of-n has run, and nothing of it is registered yet."""
    return rlhf.add_rejection(store[1], gold_gain=0.4, gold_gain_low=0.3, gold_gain_high=0.5)


def test_a_study_registers_what_it_made(studied, root: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert lock.of_study("best-of-n") == set(rlhf.REJECTION) and lock.of_study("none") == set()
    assert not set(rlhf.REJECTION) & lock.stages().keys() and set(rlhf.REJECTION) < lock.every().keys()
    asked, codes = [], [1, 0]
    monkeypatch.setattr(dvc, "heal", lambda: None)
    monkeypatch.setattr(raw_data, "check", lambda: None)
    monkeypatch.setattr(dvc, "repro_study", lambda path: asked.append(path) or codes.pop(0))
    versions = len(registry.versions(NAME))
    assert run(study.command, "best-of-n") == 1 and len(registry.versions(NAME)) == versions, "it failed"
    run(study.command, "best-of-n")
    assert asked == ["studies/best-of-n/dvc.yaml"] * 2
    sft, rejection = of(root, folder="instruct"), of(root, folder="rejection")
    said = capsys.readouterr().out
    assert f"registered {NAME}/{rejection.version}" in said and f"registered {NAME}-adapter/" in said
    assert (rejection.tags["method"], rejection.tags["base_version"]) == ("rejection", f"{NAME}/{sft.version}")
    assert (rejection.tags["n"], rejection.tags["samples"]) == ("16", "4096")
    assert float(rejection.tags["test.gold_gain"]) == 0.08 and float(rejection.tags["test.loss"]) == 2.03
    assert rejection.tags["judge.gold"] == of(root, folder="ppo").tags["judge.gold"]
    assert rejection.aliases == ("challenger",)
    page = registry.client().get_model_version(NAME, rejection.version).description
    assert "the best of 16: 4,096 samples drawn: merged into its base" in page


def test_it_is_compared_and_in_the_report(studied, root: Path) -> None:
    registry.register_all(stages=lock.of_study("best-of-n"))
    ppo, rejection = of(root, folder="ppo").version, of(root, folder="rejection").version
    found = compare.compare(NAME, [ppo, rejection])
    assert {pair["metric"] for pair in found["paired"]} == {"gold score", "proxy reward", "held-out loss"}
    assert "rejection sampling: really better" in text_of(report.write_report(Path("index.html")))


def test_a_run_of_the_pipeline_asks_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert f"{NAME}:rejection" not in stages_of_names() and f"{NAME}:dpo" in stages_of_names()
