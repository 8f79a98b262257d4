"""GRPO in the registry, from a study's own dvc.lock: found, ranked beside PPO, gated, reported."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ajuste.cli.main import app
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml, typed
from ajuste.judging.verdicts.gate import GateConfig
from ajuste.tracking.pages import report, report_groups
from ajuste.tracking.project import dvc, lock, raw_data
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families.grpo import GRPO
from ajuste.tracking.registry.families.rloo import RLOO
from ajuste.tracking.registry.version import Version
from ajuste.tracking.verdicts import gate
from tests.made import tiny_rlhf
from tests.tracking import rlhf
from tests.tracking.rlhf import ADAPTERS, MERGED
from tests.tracking.stored import stored
from tests.tracking.test_report import parsed, place  # noqa: F401
from tests.tracking.test_report_instruct import text_of
from tests.tracking.test_rlhf import of
from tests.tracking.test_runs import history_of, run_of

NAME = "assistant"
STAGES = {
    "grpo": (["artifacts/encoded/preferences", f"{MERGED}/gold", f"{MERGED}/instruct"], f"{ADAPTERS}/grpo"),
    "merge_grpo": ([f"{ADAPTERS}/grpo", f"{MERGED}/instruct"], f"{MERGED}/grpo"),
    "evaluate_grpo": (["artifacts/evaluated/forgetting_base", f"{MERGED}/gold", f"{MERGED}/grpo", f"{MERGED}/instruct",
                       f"{MERGED}/reward"], "artifacts/evaluated/grpo"),
    "assistant_grpo": (["artifacts/encoded/instructions", "artifacts/evaluated/instruct", f"{MERGED}/grpo"],
                       "artifacts/evaluated/assistant_grpo"),
}


def curves(folder: Path, flat: float, norm: float = 0.5) -> None:
    rows = [{"step": step, "loss": 0.0, "policy_loss": 0.0, "flat_groups": flat, "grad_norm": norm, "entropy": 2.0}
            for step in (1, 2, 3)]  # fmt: skip
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(root: Path) -> Path:
    """A run with SFT and PPO, and beside it, in the lock of a study, a GRPO whose gold gain is larger, at less KL."""
    rlhf.make(root, gold_gain=0.1, gold_gain_low=0.04)
    base, adapter = root / MERGED / "instruct", root / ADAPTERS / "grpo"
    tiny_rlhf.policy(base, adapter, seed=60, gold_gain=0.2, gold_gain_low=0.1)
    card = json.loads((adapter / "ajuste.json").read_text()) | {"method": "grpo", "strategy": "grpo"}
    card["validation"]["kl"] /= 2  # the gains overlap, so the nearer one goes on
    (adapter / "ajuste.json").write_text(json.dumps(card))
    curves(adapter, flat=0.25)
    tiny_rlhf.policy_merged(base, adapter, root / MERGED / "grpo")
    rlhf.evaluate_policy(root / "artifacts/evaluated/grpo", 60, method="grpo")
    rlhf.still_assistant(root / "artifacts/evaluated", 0.03, "grpo")
    rlhf.lock(root, STAGES)
    whole = yaml.safe_load((root / "dvc.lock").read_text())
    study = {name: whole["stages"].pop(name) for name in STAGES}
    (root / "dvc.lock").write_text(yaml.safe_dump(whole))
    (root / "studies/grpo").mkdir(parents=True)
    (root / "studies/grpo/dvc.lock").write_text(yaml.safe_dump({"stages": study}))
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("grpo")
    root = make(folder / "run")
    with stored(folder, {"run": root}):
        yield folder, root


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project where study grpo has run, without its models."""
    entries = {name: {"cmd": f"python -m studies.grpo.{name}", "outs": [{"path": out, "md5": name}]}
               for name, (_, out) in STAGES.items()}  # fmt: skip
    entries["draw"] = {"cmd": "x", "outs": [{"path": "docs/measured/x.md", "md5": "0"}]}
    for folder in ("studies/grpo", "artifacts/adapters/grpo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "studies/grpo/dvc.lock").write_text(yaml.safe_dump({"stages": entries}))
    (tmp_path / "studies/grpo/dvc.yaml").write_text("stages: {}\n")
    rlhf.evaluate_policy(tmp_path / "artifacts/evaluated/grpo", 60, method="grpo")
    monkeypatch.chdir(tmp_path)


def test_a_studys_stages_count_where_the_registry_looks_and_nowhere_else(bare: None) -> None:
    assert lock.of_study("grpo") == set(STAGES) == lock.every().keys() and lock.stages() == {}
    assert lock.of_study("none") == set() and lock.entry("grpo")["cmd"] == "python -m studies.grpo.grpo"
    lock.every()["grpo"]["cmd"] = "changed"
    assert lock.every()["grpo"]["cmd"] != "changed", "what is parsed once is given as a copy"


@pytest.mark.slow  # a store, three policies and their registration
def test_it_is_registered_with_its_figures_and_ranked_beside_ppo(root: Path) -> None:
    sft, ppo, grpo = (of(root, folder=name) for name in ("instruct", "ppo", "grpo"))
    assert (grpo.tags["method"], grpo.tags["base_version"]) == ("grpo", f"{NAME}/{sft.version}")
    assert float(grpo.tags["test.gold_gain"]) == 0.08 and float(grpo.tags["test.loss"]) == 2.03
    assert grpo.aliases == ("challenger",) and ppo.aliases == ()
    page = registry.client().get_model_version(NAME, grpo.version).description
    assert page.startswith("grpo, gold +0.080") and "each against the group's mean" in page
    (run, *_) = run_of("grpo")
    assert history_of(run.info.run_id, "curve/flat_groups")[0] == (1, 0.25)
    verdict = gate.judge(NAME, config=typed(GateConfig, read_yaml(ROOT / "policy.yaml")["gate"], "gate"))
    assert "base gold" in [rule.name for rule in verdict.rules]
    assert GRPO.beside(grpo, ppo, GRPO.recorded(grpo)).others.keys() == GRPO.recorded(grpo).keys()


def test_a_study_that_has_run_is_registered_at_once(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list = []
    version = Version(NAME, "7", None, None, {}, "")

    def registered(stages: set[str]) -> list[Version]:
        asked.append(stages)
        return [version]

    monkeypatch.setattr(raw_data, "check", lambda: None)
    monkeypatch.setattr(dvc, "heal", lambda: None)
    monkeypatch.setattr(registry, "register_all", registered)
    for code, said in ((0, "registered assistant/7: `ajuste gate assistant` judges a challenger\n"), (3, "")):
        monkeypatch.setattr(dvc, "repro_study", lambda path, code=code: code)
        result = CliRunner().invoke(app, ["study", "grpo"])
        assert (result.exit_code, result.output) == (code, said)
    assert asked == [set(STAGES)]


def test_the_report_says_whether_the_groups_taught_anything(bare: None) -> None:
    """A loss of 0 is no verdict."""
    folder = Path("artifacts/adapters/grpo")
    expected = {
        (0.25, 0.5): ("good", "25% of the groups without variance, gradient norm 0.5. A loss about 0 is no fault"),
        (0.75, 0.5): ("warn", "75% of the groups without variance, gradient norm 0.5: most samples taught nothing."),
        (1.0, 0.0): ("bad", "Nothing was learnt: 100% of the groups without variance"),
    }
    for (flat, norm), (state, said) in expected.items():
        curves(folder, flat, norm)
        found = {asked: (verdict, words) for verdict, asked, words in GRPO.findings()}
        assert found["GRPO: groups teach"][0] == state and found["GRPO: groups teach"][1].startswith(said)
    assert found["GRPO: learnt what it was paid for"][0] == "good" and "GRPO: really better" in found
    assert RLOO.findings() == []


def test_the_report_draws_what_says_whether_the_groups_teach(place: Path) -> None:  # noqa: F811
    folder = place / "artifacts/adapters/rloo"
    folder.mkdir(parents=True)
    rlhf.evaluate_policy(place / "artifacts/evaluated/rloo", 60, method="rloo")
    curves(folder, 0.25)
    (folder / "ajuste.json").write_text(json.dumps({"parameters": {"trainable": 12, "total": 1200, "share": 0.01}}))
    (folder / "alarms.json").write_text(json.dumps([{"said": "update 3: the entropy is <0.1>"}]))
    said = text_of(report.write_report(Path("index.html")))
    for fact in ("3 updates. 12 of 1,200 parameters were trained (1.00%), without a value model", "entropy is <0.1>",
                 "+0.080 +0.050 to +0.110", "3.50 3.10 to 3.90", "RLOO: groups teach",
                 "The loss is not among them"):
        assert fact in said, fact
    drawn = Path("index.html").read_text()
    for title in ("groups without variance, share: 0.25 at 1", "gradient norm: 0.5 at 3", "nats a token: 2 at 1"):
        assert title in drawn, title
    assert '<h2 id="grpo">' not in drawn and parsed(Path("index.html"))
    assert report_groups.curves([]) == []
