"""A method that nobody knows goes all the way by one description: registry, ranking, gate, comparison, report, server.

And no other file names a method: what must know of one stands in its family.
"""

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ajuste.cli.models import export
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml, typed
from ajuste.judging.verdicts.gate import GateConfig, Paired
from ajuste.serving.app import make_app
from ajuste.serving.models import Models
from ajuste.tracking.comparing import text
from ajuste.tracking.comparing.compare import compare
from ajuste.tracking.pages import compare_page, report
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families.assistants import SHARED, Assistant
from ajuste.tracking.registry.families.family import EVALUATED, Metric, Picture, Said, as_tags, judged, said
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.results import lines
from ajuste.tracking.verdicts import gate
from tests.cli.registered import run
from tests.made import tiny_rlhf
from tests.tracking import projects, rlhf
from tests.tracking.stored import stored
from tests.tracking.test_rlhf import of

NAME = "assistant"


class Tst(Assistant):
    """Made from an SFT version; ranked by how often a judge prefers its answers."""

    def takes_over(self, tags) -> str:
        low = float(tags.get("validation.wins_low", "nan"))
        return f"it wins {float(tags['validation.wins']):.2f} of the validation prompts against" if low > 0.5 else ""

    def scores(self, folder, md5, strategy):
        if not judged(self.evaluate, folder, md5):
            return {}, []
        result = facts.read_json(EVALUATED / "tst" / "tst.json")
        return as_tags("test", {"wins": result["wins"]}) | {"test.rows": result["prompts"]}, [self.evaluate]

    def run_figures(self, folder):
        result = facts.read_json(folder / "tst.json")
        return {"wins/tst": result["wins"]} if result else {}

    def headline(self, tags) -> str:
        return f", wins {float(tags['test.wins']):.2f}" if "test.wins" in tags else ""

    def row_values(self, version):
        return {(f"{version.name}/{version.version}", "wins"): self.recorded(version)}

    def answers(self, version):
        own, before = f"{version.name}/{version.version}", version.tags["base_version"]
        return [Said(row["id"], row["prompt"], {own: row["after"], before: row["before"]})
                for row in lines(version.tags.get("evaluate_run"), "wins.jsonl")]

    def recorded(self, version):
        return {row["id"]: (row["wins"], 1.0) for row in lines(version.tags.get("evaluate_run"), "wins.jsonl")}

    def before(self, version, own, today):
        return Paired("a judge without a preference", own, {row: (0.5, 1.0) for row in own})

    def beside(self, challenger, champion, own):
        if f"{champion.name}/{champion.version}" == challenger.tags["base_version"]:
            return self.before(challenger, own, "")
        return Paired(f"champion {champion.version}", own, {}, "nobody judged the two side by side")

    def findings(self):
        result = facts.read_json(EVALUATED / "tst" / "tst.json")
        return [("good", "TST: preferred", f"Wins {said(result['wins'])} of its prompts.")] if result else []


TST = Tst(
    **SHARED, method="tst", title="TST", folders="*/tst", trains="tst", merge="merge_tst", evaluate="evaluate_tst",
    encoded=Path("artifacts/encoded/preferences"), rows="prompts_{split}.parquet", from_another=True,
    best="wins", best_name="share of wins", lower=False, metric="gold", rescored=False,
    strategies={"tst": "TST: a LoRA on the merged SFT model, by a method that this test made up"},
    results=("tst.json", "wins.jsonl"), figures={"wins": "wins against the model before"},
    validation={"wins": ("validation wins", ".2f")}, pictures={"wins": Picture("wins", True, "wins")},
    metrics=(Metric("wins", False, "prompts"),),
)  # fmt: skip
STAGES = {
    "tst": (["artifacts/encoded/preferences", "artifacts/merged/instruct"], "artifacts/adapters/tst"),
    "merge_tst": (["artifacts/adapters/tst", "artifacts/merged/instruct"], "artifacts/merged/tst"),
    "evaluate_tst": (["artifacts/merged/instruct", "artifacts/merged/tst"], "artifacts/evaluated/tst"),
}


def make(root: Path) -> Path:
    """A finished run with SFT, a reward model and PPO, and beside them a TST whose answers are preferred."""
    rlhf.make(root, gold_gain=0.1, gold_gain_low=0.04)
    base, adapter = root / "artifacts/merged/instruct", root / "artifacts/adapters/tst"
    tiny_rlhf.policy(base, adapter, seed=50)
    card = json.loads((adapter / "ajuste.json").read_text())
    card |= {"method": "tst", "strategy": "tst", "validation": {"wins": 0.7, "wins_low": 0.6}}
    (adapter / "ajuste.json").write_text(json.dumps(card))
    tiny_rlhf.policy_merged(base, adapter, root / "artifacts/merged/tst")
    evaluated = root / "artifacts/evaluated/tst"
    evaluated.mkdir()
    (evaluated / "tst.json").write_text(json.dumps({"wins": {"value": 0.8, "low": 0.7, "high": 0.9}, "prompts": 40}))
    rows = [{"id": f"w{i}", "prompt": f"Ask {i}.", "before": f"before {i}", "after": f"after {i}",
             "wins": float(i % 5 > 0)} for i in range(40)]
    (evaluated / "wins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validated = root / "artifacts/validated/preferences"
    validated.mkdir(parents=True)
    (validated / "validation.json").write_text(json.dumps({"checks": [
        {"name": "equal_texts", "severity": "error", "passed": True, "rows_failed": 0, "rule": {}}]}))
    stages = rlhf.assistants.STAGES | rlhf.STAGES | STAGES
    projects.lock(root, {name: {} for name in stages}, stages)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """The run in a store; the one thing that is changed in the code is the tuple of families."""
    folder = tmp_path_factory.mktemp("new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "FAMILIES", (*families.FAMILIES, TST))
        root = make(folder / "run")
        with stored(folder, {"run": root}):
            yield folder, root


def test_its_folders_are_registered_with_their_figures(root: Path) -> None:
    sft, tst = of(root, folder="instruct"), of(root, folder="tst")
    assert (tst.tags["method"], tst.tags["strategy"], tst.tags["base_version"]) == (
        "tst", "tst", f"{NAME}/{sft.version}")
    assert (tst.tags["test.wins"], tst.tags["test.wins.low"], tst.tags["test.rows"]) == ("0.8", "0.7", "40")
    assert tst.tags["adapter_version"] == of(root, f"{NAME}-adapter", "tst").version
    page = registry.client().get_model_version(NAME, tst.version).description
    assert page.startswith("tst, wins 0.80") and "by a method that this test made up: merged into its base" in page
    assert "share of wins 0.7000" in page
    run = registry.client().get_run(tst.tags["evaluate_run"])
    assert run.data.metrics["wins/tst"] == 0.8 and run.data.metrics["wins/tst_low"] == 0.7


def test_it_is_ranked_beside_the_methods_that_there_are(root: Path) -> None:
    sft, tst = of(root, folder="instruct"), of(root, folder="tst")
    assert tst.aliases == ("challenger",), "of two that take over, the newest method goes on"
    why = tst.tags["alias.challenger"]
    assert f"it wins 0.70 of the validation prompts against version {sft.version}" in why
    assert "best validation loss 2.0000 of 1 versions" in why
    assert f"challenger is version {tst.version} (tst, wins 0.80)" in registry.summary()[NAME]


def test_the_gate_judges_it(root: Path) -> None:
    values = read_yaml(ROOT / "policy.yaml")["gate"]
    verdict = gate.judge(NAME, config=typed(GateConfig, values, "gate"))
    names = ["budget", "base gold", "alignment", "proof", "data"]
    assert [rule.name for rule in verdict.rules] == names and verdict.failed == ["alignment"]
    assert "no stage measures versions of this method" in verdict.text(), "missing is not good"
    told = {**values, "alignment": {**values["alignment"], "missing": "tell"}}
    verdict = gate.judge(NAME, config=typed(GateConfig, told, "gate"))
    assert verdict.passed and [rule.name for rule in verdict.rules] == names
    assert "told, not refused (`gate.alignment.missing`): not measured on these weights" in verdict.text()
    assert "0.8000 against 0.5000 of a judge without a preference" in verdict.text()


def test_it_is_compared(root: Path, tmp_path: Path) -> None:
    sft, ppo, tst = (of(root, folder=name) for name in ("instruct", "ppo", "tst"))
    found = compare(NAME, [one.version for one in (sft, ppo, tst)])
    shown = text.to_markdown(found)
    assert re.search(r"\| wins against the model before \|  \|  \| 0.800 \[0.700 0.900\] \|", shown)
    assert re.search(r"\| validation wins \|  \|  \| 0.70 \|", shown) and "| strategy | lora | ppo | tst |" in shown
    pair = compare(NAME, [sft.version, tst.version])
    assert {"id": "w0", "prompt": "Ask 0.", "base": None,
            "versions": {sft.version: "before 0", tst.version: "after 0"}} in pair["answers"]
    assert found["versions"][2]["seconds"] > found["versions"][0]["seconds"], "its own training costs too"
    html = compare_page.write_page(found, tmp_path / "page.html").read_text()
    assert "tst" in html and ">wins<" in html.replace("wins, higher is better", "wins")


def test_the_report_has_it(root: Path) -> None:
    html = report.write_report(Path("index.html")).read_text()
    assert "TST: preferred" in html and "Wins 0.800 [0.700, 0.900] of its prompts." in html
    assert "<h3>TST</h3>" in html, "the proof of its merge"


def test_it_is_exported_and_served(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tst = of(root, folder="tst")
    run(export.command, f"{NAME}@challenger", tmp_path / "out")
    assert f"{NAME} version {tst.version} (tst, challenger) is in" in capsys.readouterr().out
    assert (tmp_path / "out/model.safetensors").is_file()
    models = Models(registry.resolve, [NAME], root / "artifacts/base/encoder", root / "artifacts/base/decoder")
    with TestClient(make_app(models), base_url="http://127.0.0.1") as web:
        asked = {"model": NAME, "messages": [{"role": "user", "content": "Name a film."}], "max_tokens": 4}
        done = web.post("/v1/chat/completions", json=asked)
    assert done.status_code == 200 and done.json()["model"] == f"{NAME}/{tst.version}", done.text


# --- no other file names a method -------------------------------------------------------------------------------------

ALLOWED = {  # files and folders that name a method, each with its reason
    "ajuste/tracking/registry/families/": "one file a method, and the line that lists it",
    "ajuste/learning/": "the mathematics",
    "ajuste/core/locks.py": "a message as an example",
    "ajuste/models/one_base.py": "the mathematics' view of a model: policy, reference, value and reward on one base",
    "ajuste/cli/project/base.py": "the command that writes what stage `ppo` is paid by",
    "ajuste/cli/models/explain.py": "the command that shows what stage `ppo` recorded, token by token",
    "ajuste/tracking/pages/report_dpo.py": "the pictures of DPO's own section of the report",
    "ajuste/tracking/pages/_report_dpo.html": "the same section's text",
    "ajuste/tracking/pages/report_groups.py": "the pictures of the methods of groups",
    "ajuste/tracking/pages/_report_groups.html": "the same section's text",
    "ajuste/tracking/pages/report.py": "puts the section where it belongs",
    "ajuste/tracking/pages/_report.html": "the same",
    "ajuste/tracking/pages/report_rlhf.py": "the pictures of PPO's own section of the report",
    "ajuste/tracking/pages/_report_rlhf.html": "the same section's text",
    "ajuste/tracking/pages/_report_outcome.html": "its outcome at the top of the report",
    "flows/pipeline.py": "the map: one line a stage",
    "tasks/": "the stages",
}
WORD = re.compile(r"(?<![a-z])(ppo|sft|dpo|rejection|grpo|rloo)(?![a-z])", re.IGNORECASE)


def test_no_other_file_names_a_method() -> None:
    named = {path.relative_to(ROOT).as_posix()
             for room in ("ajuste", "flows", "infra", "tasks") for path in (ROOT / room).rglob("*")
             if path.suffix in (".py", ".html", ".yaml") and WORD.search(path.read_text(encoding="utf-8"))}
    assert "ajuste/tracking/registry/families/ppo.py" in named
    assert sorted(path for path in named if not path.startswith(tuple(ALLOWED))) == []
