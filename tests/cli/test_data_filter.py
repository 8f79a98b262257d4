"""`ajuste data scan` and `filter`: what they print, what they leave, and mistakes in one line."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import UsageError
from ajuste.tracking.project import raw_data
from tests.cli.commands import ajuste_data, made, project_without_dvc, written

PARAMS = "validate:\n  instructions:\n    set: instructions   # the folder under data/\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project_without_dvc(tmp_path, PARAMS, monkeypatch)
    rows = [{"prompt": f"Ask {i}", "completion": f"Answer {i}"} for i in range(8)]
    rows[3]["completion"], rows[5]["prompt"] = "Write to ana@example.com", "Who has 4111 1111 1111 1111?"
    ajuste_data("add", "mine", written("a.jsonl", rows))
    return tmp_path


def test_scan_counts_and_writes_nothing(project: Path) -> None:
    before = sorted(project.rglob("*"))
    output = ajuste_data("scan", "mine")
    assert "data/mine: 8 rows, 2 with findings" in output
    assert "card: 1 in 1 rows" in output and "email: 1 in 1 rows" in output and "ana" not in output
    assert sorted(project.rglob("*")) == before
    assert "1 with findings" in ajuste_data("scan", "mine", "--kinds", "card")


def test_filter_makes_a_set_and_keeps_the_reasons(project: Path) -> None:
    old = Path("data/mine/a.jsonl").read_bytes()
    output = ajuste_data("filter", "mine", "--out", "clean", "--use")
    assert "data/clean: 6 of 8 rows of data/mine" in output and "next: ajuste run" in output
    assert Path("data/mine/a.jsonl").read_bytes() == old
    assert len(Path("data/clean/a.jsonl").read_text().splitlines()) == 6
    assert made("clean")["files"][0]["layout"] == "prompt_completion"
    why = Path("artifacts/filtered/clean")
    assert [row["reasons"] for row in pq.read_table(why / "quarantine.parquet").to_pylist()] == [["email"], ["card"]]
    assert json.loads((why / "filter.json").read_text())["rows"] == {"read": 8, "kept": 6, "removed": 2}
    assert yaml.safe_load(Path("params.yaml").read_text())["validate"]["instructions"]["set"] == "clean"
    assert "0 with findings" in ajuste_data("scan", "clean")


def test_phrases_and_copies(project: Path) -> None:
    Path("forbidden.txt").write_text("# our secrets\nanswer 7\n\n")
    judge = [{"prompt": "What is it that they ask 6", "completion": "answer 6 and more of it"}] * 30
    ajuste_data("add", "judge", written("j.jsonl", [{**row, "prompt": f"{row['prompt']} {i}"} for i, row in
                                                    enumerate(judge)]))  # fmt: skip
    output = ajuste_data("scan", "mine", "--phrases", "forbidden.txt", "--against", "judge", "--ngram", "2")
    assert "phrase: 1 in 1 rows" in output and "evaluation: 1 in 1 rows" in output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["scan", "mine", "--kinds", "emails"], "no filter `emails`: there is email, phone"),
        (["scan", "mine", "--regions", "Spain"], "no region `Spain`"),
        (["scan", "mine", "--phrases", "none.txt"], "none.txt is missing"),
        (["scan", "mine", "--kinds", "phrase"], "kind `phrase` needs phrases"),
        (["scan", "mine", "--against", "mine"], "a set is no copy of itself"),
        (["filter", "mine", "--out", "mine"], "data/mine exists: name another set with --out"),
        (["filter", "mine", "--out", "Mine!"], "`Mine!` is no name for a set"),
    ],
)
def test_mistakes_are_one_line(project: Path, args: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ajuste_data(*args)
    assert sorted(path.name for path in Path("data").iterdir()) == ["mine"]


def test_nothing_stays_if_recording_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise UsageError("no")

    monkeypatch.setattr(raw_data, "add", broken)
    with pytest.raises(UsageError, match="no"):
        ajuste_data("filter", "mine")
    assert sorted(path.name for path in Path("data").iterdir()) == ["mine"] and not Path("artifacts").exists()
