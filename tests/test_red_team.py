"""Study red-team-full: its steps one after the other on tiny models, and what its page says and does not say."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from studies import redteam
from tests.made import tiny_classifiers, tiny_rlhf
from tests.tasks.test_redteam_more import outside_file
from tests.test_studies import drawn_twice

STEPS = ("classifier", "card", "attack", "search", "rewrite", "draw")
classifier, card, attack, search, rewrite, draw = (
    importlib.import_module(f"studies.red-team-full.{name}") for name in STEPS
)


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with the models that the study reads, and its params at the smallest sizes."""
    values = yaml.safe_load((ROOT / redteam.PARAMS).read_text())
    monkeypatch.chdir(tmp_path)
    for name in ("sources/behaviours", "sources/golden"):
        shutil.copytree(ROOT / name, name)
    compute = {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0}
    Path("params.yaml").write_text(yaml.safe_dump({"compute": compute}))
    tiny_rlhf.whole(base, tmp_path / "artifacts/merged/instruct", 3)
    tiny_classifiers.tiny_base(tmp_path / "artifacts/base/encoder")
    source = outside_file(tmp_path / "labelled.csv", 120)
    for step in ("attack", "search", "rewrite", "card"):
        values[step]["dtype"] = "float32"
    values["attack"] |= {"per_category": {"en": 1, "es": 1}, "families": ["direct", "prefix_injection"],
                         "max_new_tokens": 3}  # fmt: skip
    values["search"] |= {"words": 2, "steps": 1, "candidates": 2, "max_new_tokens": 3}
    values["rewrite"] |= {"per_category": {"en": 1}, "tries": 2, "request_tokens": 4, "max_new_tokens": 3}
    values["card"]["outside"] = {"labelled": source}
    values["classifier"] |= {"source": source, "max_tokens": 48, "steps": 5}
    redteam.PARAMS.parent.mkdir(parents=True)
    redteam.PARAMS.write_text(yaml.safe_dump(values, sort_keys=False))
    return tmp_path


@pytest.mark.slow
def test_the_steps_make_a_page_of_counts_without_any_text(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    classifier.main()
    for name in ("rules", "classifier"):
        card.main(name)
    for setting in ("plain", "guarded"):
        attack.main(setting)
    search.main()
    rewrite.main()
    page = drawn_twice(draw, tmp_path, monkeypatch, "red-team.md")
    assert "16 behaviours of\n8 categories" in page and "judged by rules 1" in page
    for family in ("direct", "prefix_injection", "benign twins: over-refusal"):
        assert page.count(f"\n| {family} |") >= 2
    for name in ("rules", "classifier"):
        assert f"| `{name}` | golden |" in page and f"| `{name}` | labelled |" in page
    said = page + (project / "metrics/red-team.json").read_text() + capsys.readouterr().out
    texts = [row[side] for path in Path("sources/behaviours").glob("*.yaml") for row in yaml.safe_load(path.read_text())
             for side in ("request", "benign")]  # fmt: skip
    answers = [json.loads(line)["answer"] for path in redteam.OUT.glob("attack/*/answers.jsonl")
               for line in path.read_text().splitlines()]  # fmt: skip
    assert len(answers) == 2 * 16 * (2 * 3 + 1)
    assert not [text for text in [*texts, *answers] if len(text) > 12 and text in said]


def test_what_is_missing_or_unknown_is_one_line(project: Path) -> None:
    with pytest.raises(UsageError, match="no judge `oracle`: judges are rules, letters, classifier"):
        card.main("oracle")
    with pytest.raises(UsageError, match="no setting `loud`: settings are plain, guarded"):
        attack.main("loud")
    with pytest.raises(UsageError, match="scores.json is missing or no JSON: run `ajuste study red-team-full`"):
        draw.main()
    shutil.rmtree("artifacts/merged")
    with pytest.raises(UsageError):
        search.main()


def test_the_params_of_the_project_are_whole() -> None:
    from ajuste.core.params import typed
    from tasks.redteam.card import CardConfig
    from tasks.redteam.classifier import ClassifierConfig
    from tasks.redteam.rewrite import RewriteConfig
    from tasks.redteam.search import SearchConfig

    study = redteam.Study()
    folders = {"behaviours": str(study.behaviours), "golden": str(study.golden)}
    assert study.config(attack.RedTeamConfig, "attack", system=False, **folders).samples == 2
    assert study.config(CardConfig, "card", **folders).outside
    for config, step in ((ClassifierConfig, "classifier"), (RewriteConfig, "rewrite"), (SearchConfig, "search")):
        assert study.config(config, step)
    for name in study.params["judges"]:
        assert typed(redteam.JudgeConfig, study.params["judges"][name], name)
