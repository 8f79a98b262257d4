"""`ajuste data add` for preferences: recognised layouts, what a person sees, mistakes in one line."""

from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from tests.cli.commands import ajuste_data, made, project_without_dvc, written
from tests.made.preference_files import ROWS, rated, triples

PARAMS = "validate:\n  preferences:\n    set: ratings   # the folder under data/\n"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with params; that data.dvc is recorded is what test_data.py tests with a real DVC."""
    return project_without_dvc(tmp_path, PARAMS, monkeypatch)


@pytest.mark.parametrize("layout", ROWS)
def test_a_layout_is_recognised_and_recorded(project, layout):
    path = written("a.jsonl", [ROWS[layout](*triple) for triple in triples(20)])
    output = ajuste_data("add", "mine", path)
    assert f"20 rows, layout {layout}, recognised" in output and "\npairs 20\n" in output
    assert "set in params.yaml: validate.preferences.set: mine" in output
    assert made()["kind"] == "preferences" and made()["files"][0]["layout"] == layout
    assert Path("data/mine/a.jsonl").read_bytes() == Path("a.jsonl").read_bytes()
    shown = ajuste_data("show", "mine")
    prompt, chosen, rejected = triples(1)[0]
    assert f"layout {layout}, from path:a.jsonl" in shown and "mine: preferences" in shown
    assert f"line 1: {prompt[:60]}" in shown and f"{chosen[:60]}" in shown and f"> {rejected[:60]}" in shown
    assert "preferences" in ajuste_data("list")


def test_files_of_different_layouts_make_one_set_and_use_points_params_at_it(project):
    ajuste_data("add", "mine", written("a.jsonl", [ROWS["transcripts"](*triple) for triple in triples(5)]))
    rows = [{"q": "ask", "best": "good", "worst": "bad"}] * 3 + [{"q": "ask", "best": 7, "worst": "bad"}]
    output = ajuste_data("add", "mine", written("b.jsonl", rows), "--layout", "pairs", "--map", "prompt=q", "--map",
                         "chosen=best", "--map", "rejected=worst", "--use")  # fmt: skip
    assert "4 rows, layout pairs; data.dvc" in output
    assert "1 rows cannot be read and will go to quarantine; first: b.jsonl:4: the chosen is of type int" in output
    assert "params.yaml: validate.preferences.set: mine" in output
    assert "set: mine      # the folder under data/" in Path("params.yaml").read_text()
    output = ajuste_data("add", "mine", written("c.jsonl", rated(9)), "--prompt", "Tell a joke.")
    assert "layout ratings, recognised" in output and "rated texts 9" in output and "next: ajuste run" in output
    assert [file["layout"] for file in made()["files"]] == ["transcripts", "pairs", "ratings"]
    assert made()["prompt"] == "Tell a joke."
    shown = ajuste_data("show", "mine")
    assert "prompt `Tell a joke.`" in shown and f"{len(rated(1)[0]['ratings'])} raters, mean " in shown
    ajuste_data("add", "mine", written("d.jsonl", rated(9, seed=1)))  # the set's prompt holds


def test_a_sample_that_leaves_rows_out_is_said(project):
    path = written("a.jsonl", [ROWS["pairs"](*triple) for triple in triples(5)])
    assert "note" not in ajuste_data("add", "mine", path, "--use")
    Path("params.yaml").write_text(PARAMS + "    sample: 0.15\n")
    said = "note: validate.preferences.sample is 0.15: a run takes that share of the rows, 1.0 takes all"
    assert said in ajuste_data("add", "other", path, "--use")
    assert "set: other" in Path("params.yaml").read_text() and "sample: 0.15" in Path("params.yaml").read_text()


def test_columns_of_no_layout_are_told_those_of_preferences_too(project):
    with pytest.raises(DataError, match=r"columns are better, worse; .* of preferences: .*pairs \(prompt, chosen"):
        ajuste_data("add", "mine", written("a.jsonl", [{"better": "a", "worse": "b"}]))


def test_csv_with_rankings(project):
    Path("a.csv").write_text('prompt,responses,ranks\nask,"[""x"", ""y"", ""z""]","[2, 1, 3]"\n')
    assert "rankings of 3 1" in ajuste_data("add", "mine", "a.csv")
    assert "line 2: ask | y > x > z" in ajuste_data("show", "mine")


PAIR = ROWS["pairs"]("ask", "good", "bad")


@pytest.mark.parametrize(
    ("args", "rows", "error", "message"),
    [
        (["mine"], {"text": "x", "ratings": [1, 2]}, UsageError, "rated texts need what they all answer: --prompt"),
        (["mine", "--layout", "pair"], PAIR, UsageError, "--layout pair: layouts of instr.*; of preferences"),
        (["mine", "--layout", "pairs"], {"prompt": "x", "chosen": "y"}, DataError, "no column `rejected`"),
        (["mine", "--layout", "transcripts"], PAIR, DataError, "not one row can be read as transcripts; first: a.js"),
        (["mine", "--map", "worse=z"], PAIR, UsageError, "layout pairs has no `worse`; it has prompt, chosen"),
        (["chats", "--layout", "pairs"], PAIR, UsageError, "kind instructions, not of preferences"),
        (["mine", "--prompt", "Write."], {"text": "x", "label": "y"}, UsageError, "--prompt belongs to preferences"),
        (["rates", "--prompt", "Other."], PAIR, UsageError, "the set's texts answer `Write.`"),
        (["rates"], {"a": 1}, DataError, "no layout of preferences has its columns: a. A layout needs: sharegpt"),
        (["rates", "--layout", "messages"], PAIR, UsageError, "kind preferences, not of instructions"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(project, args, rows, error, message):
    ajuste_data("add", "chats", written("chats.jsonl", [{"inputs": "ask", "targets": "answer"}]))
    ajuste_data("add", "rates", written("rates.jsonl", rated(3)), "--prompt", "Write.")
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    with pytest.raises(error, match=message) as caught:
        ajuste_data("add", args[0], written("a.jsonl", [rows]), *args[1:])
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()} == before


def test_a_text_file_and_a_folder_are_no_preferences(project):
    Path("a.txt").write_text("x")
    Path("texts/pos").mkdir(parents=True)
    with pytest.raises(UsageError, match="a .txt file has no columns: give preferences as CSV"):
        ajuste_data("add", "mine", "a.txt", "--layout", "pairs")
    with pytest.raises(UsageError, match="is a folder: preferences are added file by file"):
        ajuste_data("add", "mine", "texts", "--layout", "pairs")
