"""What a person sees when a stage is over: its result in a few words, read from its outs."""

import json
from pathlib import Path

import pytest

from ajuste.tracking.project import dvc
from flows import _found, _steps
from flows._plan import Asked, look


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


ENTRY = {"outs": [{"path": "out"}, {"path": "out/not-a-folder.json"}]}


def test_each_kind_of_stage_says_what_it_found(out: Path) -> None:
    assert _found.found(ENTRY) == "" and _found.found({}) == ""
    rows = {"read": 33530, "kept": 33407, "exact_duplicates": 98, "near_duplicates": 22}
    (out / "validation.json").write_text(json.dumps({"rows": rows}))
    assert _found.found(ENTRY) == "33,407 of 33,530 rows kept, 98 exact and 22 near duplicates"
    (out / "validation.json").unlink()
    (out / "encoding.json").write_text(json.dumps({"splits": {"train": {"rows": 4000}, "test": {"rows": 888}}}))
    assert _found.found(ENTRY) == "rows: 4,000 train, 888 test"
    (out / "encoding.json").unlink()
    for measured, said in (({"loss": 0.5, "accuracy": 0.75772}, "validation accuracy 0.7577"),
                           ({"loss": 1.5, "perplexity": 4.5}, "validation perplexity 4.5"),
                           ({"gold": 0.4, "gold_gain": 0.0573761, "update": 2}, "validation gold gain 0.05738"),
                           ({}, "")):  # fmt: skip
        (out / "ajuste.json").write_text(json.dumps({"validation": measured}))
        assert _found.found(ENTRY) == said
    (out / "ajuste.json").write_text(json.dumps({"validation": {"accuracy": 0.5}}))
    (out / "proof.json").write_text(json.dumps({"max_logit_difference": 3.4e-6}))
    assert _found.found(ENTRY) == "merged, largest logit difference 3.4e-06"


def test_the_note_of_a_stage_holds_its_cost_and_its_result() -> None:
    state = {"peak_memory_mb": 696.2, "tokens_per_second": 310.0}
    assert _steps._note(state, "validation accuracy 0.7577") == "696 MB, 310 tokens/s; validation accuracy 0.7577"
    assert _steps._note(state, "") == "696 MB, 310 tokens/s"
    assert _steps._note({}, "validation accuracy 0.7577") == ""  # it was not run: the result is none of this run's


def test_a_fresh_checkout_shows_what_was_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    root = Path(__file__).parents[2]
    accuracy = json.loads((root / "metrics/classify.json").read_text())["strategies"]["full"]["accuracy"]["value"]
    monkeypatch.chdir(root)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.setattr(dvc, "status", lambda: {"classify_full": []})
    look(Asked(("evaluate_classify",)))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("  recorded in metrics/, to be made anew here") and f"full {accuracy:.3f} (" in said
    (tmp_path / ".state").mkdir()
    (tmp_path / ".state/classify_full.json").write_text('{"seconds": 60}')
    look(Asked(("evaluate_classify",)))
    assert "recorded in" not in capsys.readouterr().err
    assert _found.recorded(tmp_path) == ""
