"""Files that people brought and that once crashed, were cut or were read as something else: cases/<number>-<what>.

What is right for each stands here: what `data add` refuses, in one line, or how many rows are kept, as the stage that
validates them says (it runs inside `data add`), and why the others are not.
"""

import os
import sys
from pathlib import Path

import pytest

from ajuste.cli import main as cli
from ajuste.cli.models import predict
from ajuste.core.errors import UsageError
from tests.made.added import add, project
from tests.made.stand_in import stand_in

CASES = Path(__file__).parent / "cases"
REFUSED = [  # file, arguments, what the line says
    ("01-kto/kto.jsonl", "", r"unpaired preferences \(KTO\)"),
    ("04-tools-final/tools.jsonl", "", "not one row can be read as messages; first: .*:1: column `tools` changes"),
    ("10-float-nan-label/labels.parquet", "--labels 2=neg,3=pos", "finds no row: the values of the label column are 1"),
    ("15-sharegpt-roles/share-bing.jsonl", "", "50 of 200 rows are bad.* turns: user bing.*not known, .*`bing` 50"),
    ("17-json-shapes/columns.json", "", 'holds columns, not rows: write it with orient="records"'),
    ("17-json-shapes/pretty.jsonl", "", "an object stands over several lines: write one object a line"),
    ("17-json-shapes/wrapped.json", "", "is one object, with a list under `data`: save that list alone"),
    ("18-cr-only/mac.csv", "", "line ends of CR alone"),
    ("19-no-header/noheader.csv", "", "line 1 looks like a row: put a line of column names"),
    ("20-delimiters/semi.csv", "", "joined by `;`: save the file with commas"),
    ("20-delimiters/tab.csv", "", r"joined by tabs: give it the ending \.tsv"),
    ("21-rare-class/tickets-rare.jsonl", "", "urgent 24 of 600: a rare class.* Keep it: .* merge it: .* leave its"),
]
KEPT = [  # file, arguments, rows kept and read, why the others are not, classes
    ("02-alpaca-history/multi.jsonl", "", (200, 200), None, None),
    ("06-parquet-timestamp/chats.parquet", "", (199, 200), "unreadable_row 1", None),
    ("07-parquet-images/chats.parquet", "", (199, 200), "unreadable_row 1", None),
    ("08-pref-timestamp/prefs.parquet", "", (199, 200), "order_contradicted 1", None),
    ("09-tsv-quotes/unquoted.tsv", "", (200, 200), None, "neg 100, pos 100"),
    ("10-float-nan-label/labels.parquet", "", (175, 200), "unknown_label 25", "0 75, 1 100"),
    ("10-float-nan-label/labels.parquet", "--labels 0=neg,1=pos", (175, 200), "unknown_label 25", "neg 75, pos 100"),
    ("11-jsonl-nan-label/labels.jsonl", "", (175, 200), "unknown_label 25", "0 75, 1 100"),
    ("15-sharegpt-roles/share.jsonl", "", (200, 200), None, None),
    ("17-json-shapes/array.jsonl", "", (200, 200), None, "neg 100, pos 100"),
    ("17-json-shapes/array-oneline.jsonl", "", (200, 200), None, "neg 100, pos 100"),
    ("17-json-shapes/lines.json", "", (200, 200), None, "neg 100, pos 100"),
    ("20-delimiters/sep.csv", "", (200, 200), None, "neg 100, pos 100"),
    ("21-rare-class/tickets.jsonl", "", (400, 400), None, "billing 200, other 180, urgent 20"),
    ("21-rare-class/tickets5.jsonl", "", (600, 600), None, "billing 286, other 285, urgent 29"),
    ("21-rare-class/tickets-rare.jsonl", "--labels billing,other,urgent", (600, 600), None, "urgent 24"),
    ("25-invisible-text/zw.jsonl", "", (360, 400), "empty_text 40", "neg 200, pos 200"),
    ("28-cjk/zh.jsonl", "", (200, 200), None, "neg 100, pos 100"),
    ("46-damaged/instr-latin1.jsonl", "", (190, 200), "encoding_damage 10", None),
    ("46-damaged/instr-one.jsonl", "", (199, 200), "encoding_damage 1", None),
    ("46-damaged/instr-surrogate.jsonl", "", (190, 200), "encoding_damage 10", None),
    ("46-damaged/label-surrogate.jsonl", "", (195, 200), "encoding_damage 5, unknown_label 5", "neg 100, pos 95"),
    ("46-damaged/msgs-one.jsonl", "", (199, 200), "encoding_damage 1", None),
    ("46-damaged/pref-surrogate.jsonl", "", (190, 200), "encoding_damage 10", None),
    ("46-damaged/text-surrogate.jsonl", "", (190, 200), "encoding_damage 10", "neg 100, pos 100"),
]


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


def added(capsys, monkeypatch, *args: str) -> tuple[int, str, str]:
    """Exit code and output of `ajuste data add mine ...`, as the console script ends."""
    monkeypatch.setattr(sys, "argv", ["ajuste", "data", "add", "mine", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


def test_every_file_has_its_case():
    named = {name for name, *_ in (*REFUSED, *KEPT)} | {f"38-predict/{name}" for name in PREDICTED}
    files = {path.relative_to(CASES).as_posix() for path in CASES.rglob("*") if path.is_file()}
    assert named == files


@pytest.mark.parametrize("name, args, words", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name, args, words, capsys, monkeypatch):
    code, _, error = added(capsys, monkeypatch, str(CASES / name), *args.split())
    assert code in (1, 2) and error.count("\n") == 1 and len(error) < 700
    assert pytest.RaisesExc(Exception, match=words).matches(Exception(error)), error
    assert Path(name).name in error and not Path("data/mine").exists()


@pytest.mark.parametrize("name, args, rows, left, classes", KEPT)
def test_what_can_be_used_is_kept_and_the_rest_is_said(name, args, rows, left, classes, capsys, monkeypatch):
    code, said, error = added(capsys, monkeypatch, str(CASES / name), *args.split())
    assert code == 0 and not error, error
    assert f"validation keeps {rows[0]} of {rows[1]} rows: train " in said
    assert [line for line in said.splitlines() if line.startswith("quarantine: ")] == [f"quarantine: {left}"] * bool(
        left), said  # fmt: skip
    assert classes is None or classes in said


def test_the_turns_before_a_question_are_kept():
    found = add(CASES / "02-alpaca-history/multi.jsonl")
    assert all(len(row["messages"]) > 2 for row in found.kept if "Case" in row["messages"][0]["content"])
    assert {len(row["messages"]) for row in found.kept} - {2}


def test_a_base_that_does_not_know_the_language_is_told(tiny_encoder, capsys, monkeypatch):
    Path("artifacts/base").mkdir(parents=True)
    Path("artifacts/base/encoder").symlink_to(tiny_encoder)
    code, _, error = added(capsys, monkeypatch, str(CASES / "28-cjk/zh.jsonl"))
    assert code == 0 and "% of the tokens are unknown to the base" in error and "base.encoder.source" in error
    params = Path("params.yaml").read_text().replace("unknown_share: 0.02", "unknown_share: 1.0")
    Path("params.yaml").write_text(params)
    assert not added(capsys, monkeypatch, str(CASES / "28-cjk/zh.jsonl"), "--replace")[2]


PREDICTED = {  # file -> text, or what is said of a row in its place
    "array.jsonl": ["a b", "c d"],
    "commas.csv": ["!3 fields, the header 2", "plain"],
    "in.csv": ["first row fine", "!is empty", "two\nlines", "caf", "last", "!no valid UTF-8", "nul \x00 inside",
               "!a quote that is never closed", "after"],
    "in.parquet": ["a", "b"],
    "short.csv": ["!1 fields, the header 3", "hello", "!5 fields, the header 3"],
    "unclosed.csv": ["first fine", "two\nlines", "!a quote that is never closed", "after that", "and again"],
    "semi.csv": None,
}  # fmt: skip


@pytest.mark.parametrize("name", PREDICTED)
def test_predict_answers_every_row_it_can_read_and_names_the_others(name):
    if PREDICTED[name] is None:
        with pytest.raises(UsageError, match="has no column `text`: it has id;text"):
            list(predict.read(CASES / "38-predict" / name, "text"))
        return
    found = list(predict.read(CASES / "38-predict" / name, "text"))
    for (_, text, error), expected in zip(found, PREDICTED[name], strict=True):
        assert (expected[1:] in str(error)) if expected[0] == "!" else (text, error) == (expected, None)


def test_odd_names_of_files(capsys, monkeypatch):
    body = (CASES / "09-tsv-quotes/unquoted.tsv").read_bytes()
    for name, words in (("a\nb.tsv", r"a\nb.tsv: a name with '\n'"), ("caf\udce9.tsv", "is not UTF-8")):
        Path(os.fsdecode(os.fsencode(name))).write_bytes(body)
        code, _, error = added(capsys, monkeypatch, name)
        assert code == 2 and error.count("\n") == 1 and words in error
    Path("link.tsv").symlink_to(CASES / "09-tsv-quotes/unquoted.tsv")
    assert added(capsys, monkeypatch, "link.tsv")[0] == 0 and not Path("data/mine/link.tsv").is_symlink()
