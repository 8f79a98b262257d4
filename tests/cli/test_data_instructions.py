"""`ajuste data add` for instructions: recognised layouts, what a person sees, mistakes in one line."""

import shutil
from pathlib import Path

import pytest
import yaml

from ajuste.core.errors import DataError, UsageError
from tests.cli.commands import ajuste_data, made, project_without_dvc, written
from tests.made.instruction_files import ROWS, pairs

PARAMS = """\
validate:
  reviews:
    set: reviews
  instructions:
    set: instructions   # the folder under data/
encode:
  instructions:
    weights: {wiki: 0, a: 2}
"""
TEMPLATES = Path(__file__).parents[2] / "sources/templates"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with params and templates; that data.dvc is recorded is what test_data.py tests with a real DVC."""
    project_without_dvc(tmp_path, PARAMS, monkeypatch)
    shutil.copytree(TEMPLATES, "sources/templates")
    return tmp_path


@pytest.mark.parametrize("layout", ROWS)
def test_a_layout_is_recognised_and_recorded(project, layout):
    path = written("a.jsonl", [ROWS[layout](*pair) for pair in pairs(20)])
    output = ajuste_data("add", "mine", path)
    assert f"20 rows, layout {layout}, recognised" in output
    assert "categories: " + ("open_qa 20" if layout == "dolly" else "(none) 20") in output
    assert made()["kind"] == "instructions" and made()["files"][0]["layout"] == layout
    assert Path("data/mine/a.jsonl").read_bytes() == Path("a.jsonl").read_bytes()
    shown = ajuste_data("show", "mine")
    assert f"layout {layout}" in shown and f"user: {pairs(1)[0][0]}"[:60] in shown and "assistant: " in shown


def test_files_of_different_layouts_make_one_set_and_use_points_params_at_it(project):
    ajuste_data("add", "mine", written("a.jsonl", [ROWS["dolly"]("ask", "answer")] * 3))
    ajuste_data("add", "mine", written("b.jsonl", [ROWS["sharegpt"]("ask", "answer")] * 3))
    Path("c.txt").write_text("<instruction>a</instruction>\n<response>b</response>\n")
    assert "layout tagged, recognised" in ajuste_data("add", "mine", "c.txt")
    Path("d.txt").write_text("General text.\n\nMore of it.\n")
    output = ajuste_data("add", "mine", "d.txt", "--use")
    assert "2 rows, layout text, recognised" in output and "params.yaml: validate.instructions.set: mine" in output
    assert [file["layout"] for file in made()["files"]] == ["dolly", "sharegpt", "tagged", "text"]
    assert "params.yaml: encode.instructions.weights: {'a': 2}" in output  # a weight of no source stops the encoding
    params = Path("params.yaml").read_text()
    assert yaml.safe_load(params)["encode"]["instructions"]["weights"] == {"a": 2}
    assert yaml.safe_load(params)["validate"]["instructions"]["set"] == "mine" and "# the folder under data/" in params
    assert "next: ajuste run" in ajuste_data("add", "mine", written("e.jsonl", [ROWS["flan"]("ask", "answer")]))
    listed = ajuste_data("list")
    assert "instructions" in listed and "dolly, sharegpt" in listed


def test_columns_are_mapped_and_broken_rows_are_announced(project):
    rows = [{"q": "ask", "a": "answer", "topic": "x"}] * 5 + [{"q": 1, "a": "answer", "topic": "y"}]
    output = ajuste_data("add", "mine", written("a.jsonl", rows), "--map", "prompt=q", "--map", "completion=a",
                         "--map", "category=topic")  # fmt: skip
    assert "layout prompt_completion" in output and "categories: x 5" in output
    assert "1 rows cannot be read and will go to quarantine; first: a.jsonl:6: the prompt is of type int" in output
    assert made()["files"][0]["columns"] == {"prompt": "q", "completion": "a", "category": "topic"}


def test_labelled_rows_become_instructions_by_templates(project):
    Path("reviews.csv").write_text("text,label\n" + "".join(f"review {i},{i % 2}\n" for i in range(10)))
    output = ajuste_data("add", "mine", "reviews.csv", "--templates", "sentiment", "--labels", "0=negative,1=positive")
    assert "layout templates" in output and "categories: sentiment 10" in output
    offered = yaml.safe_load((TEMPLATES / "sentiment.yaml").read_text())
    assert made()["files"][0]["templates"] == offered["templates"]
    assert "assistant: negative" in ajuste_data("show", "mine")
    Path("own.yaml").write_text("templates:\n- {prompt: 'Say {text}', response: '{text}!'}\n")
    ajuste_data("add", "other", "reviews.csv", "--format", "templates", "--templates", "own.yaml")
    assert "user: Say review 0 | assistant: review 0!" in ajuste_data("show", "other")


def test_a_labelled_file_is_classification_as_before(project):
    Path("a.csv").write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20)))
    assert "classes: a 10, b 10" in ajuste_data("add", "mine", "a.csv")
    assert made()["kind"] == "classification"
    rows = [{"prompt": f"row {i}", "completion": "x", "label": "ab"[i % 2]} for i in range(20)]
    output = ajuste_data("add", "other", written("b.jsonl", rows), "--map", "text=prompt", "--map", "label=label")
    assert "classes: a 10, b 10" in output


CONTROL = "kind: control\nlicence: own\nfiles:\n- {path: c.jsonl, format: jsonl, layout: text, name: c, source: x}\n"
CHAT = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}


@pytest.mark.parametrize(
    ("args", "rows", "error", "message"),
    [
        (["mine"], {"ask": "x", "reply": "y"}, DataError, "its columns are ask, reply.*dolly .instruction, resp"),
        (["chats"], {"ask": "x", "reply": "y"}, DataError, "no layout of instructions has its columns: ask, reply"),
        (["mine"], {"text": "x"}, DataError, "no column `label`.*--layout names one"),
        (["mine", "--format", "alpca"], CHAT, UsageError, "layouts of instructions are messages, sharegpt"),
        (["mine", "--format", "alpaca"], CHAT, DataError, "no column `instruction`, which layout alpaca needs"),
        (["mine", "--format", "templates"], CHAT, UsageError, "needs --templates NAME"),
        (["mine", "--templates", "sentimental"], CHAT, UsageError, "sources/templates has arithmetic, multiple_choice"),
        (["mine", "--templates", "sentiment"], CHAT, DataError, "no column `text`"),
        (["mine", "--templates", "broken.yaml"], CHAT, DataError, "broken.yaml: write `category: NAME`"),
        (["mine", "--map", "prompt=ask"], CHAT, UsageError, "layout messages has no `prompt`; it has messages"),
        (["mine", "--labels", "a=b", "--format", "messages"], CHAT, UsageError, "--labels names the values of"),
        (["mine", "--map", "category=topic"], CHAT, DataError, "no column `topic`"),
        (["mine"], {"messages": "no list"}, DataError, "not one row can be read as messages; first: a.jsonl:1"),
        (["control"], CHAT, UsageError, "data/control judges models"),
        (["classes", "--format", "messages"], CHAT, UsageError, "of kind classification, not of instructions"),
        (["chats", "--map", "messages"], CHAT, UsageError, "--map messages: write text=COLUMN"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_changes_nothing(project, args, rows, error, message):
    Path("labelled.csv").write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20)))
    ajuste_data("add", "classes", "labelled.csv")
    ajuste_data("add", "chats", written("chats.jsonl", [CHAT]))
    Path("data/control").mkdir()
    Path("data/control/set.yaml").write_text(CONTROL)
    Path("broken.yaml").write_text("templates: [{prompt: x}]")
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    with pytest.raises(error, match=message) as caught:
        ajuste_data("add", args[0], written("a.jsonl", [rows]), *args[1:])
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert not list(Path().glob("*.tmp"))


def test_a_text_file_has_no_labels_and_a_folder_no_instructions(project):
    Path("a.txt").write_text("Some text.")
    Path("texts/a").mkdir(parents=True)
    Path("labelled.csv").write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20)))
    ajuste_data("add", "classes", "labelled.csv")
    with pytest.raises(UsageError, match="a .txt file has no labels"):
        ajuste_data("add", "classes", "a.txt")
    with pytest.raises(UsageError, match="is a folder: instructions are added file by file"):
        ajuste_data("add", "mine", "texts", "--format", "messages")
    with pytest.raises(UsageError, match="a .txt file has no columns, so its layout is text or tagged"):
        ajuste_data("add", "mine", "a.txt", "--format", "alpaca")


def test_control_sets_are_listed_and_shown(project):
    Path("data/control").mkdir(parents=True)
    Path("data/control/set.yaml").write_text(CONTROL)
    written("data/control/c.jsonl", [{"text": "a judge"}] * 4)
    assert "control" in ajuste_data("list")
    shown = ajuste_data("show", "control")
    assert "4 rows, jsonl, control set c (text)" in shown and "a judge" in shown
