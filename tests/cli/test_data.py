"""`ajuste data` in a small project of its own with a real DVC: what a person types, sees, and finds in data/."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from ajuste.cli.data import data
from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.project import dvc, raw_data
from tests.cli.commands import ajuste_data

PARAMS = """\
validate:
  reviews:
    set: reviews   # the folder under data/
encode:
  reviews:
    sources: [old]  # empty: all
    rows: {train: null}
"""
SET = """\
kind: classification
labels: [bad, good]
licence: own
files:
- path: old.csv
  format: csv
  columns: {text: text, label: label}
  label_names: {'0': bad, '1': good}
  source: path:old.csv
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A project with git, DVC and one set in sources/, pulled."""
    folder = tmp_path_factory.mktemp("project") / "template"
    (folder / "sources/reviews").mkdir(parents=True)
    (folder / "sources/reviews/set.yaml").write_text(SET)
    (folder / "sources/reviews/old.csv").write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20)))
    (folder / "params.yaml").write_text(PARAMS)
    for command in (["git", "init", "-q"], [sys.executable, "-P", "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def pulled_template(template, tmp_path_factory) -> Path:
    """The same project after `ajuste data pull`: DVC takes a second, so it is asked once."""
    folder = tmp_path_factory.mktemp("pulled") / "template"
    shutil.copytree(template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ajuste_data("pull")
    return folder


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    """A copy of the project, nothing pulled yet."""
    shutil.copytree(template, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def pulled(pulled_template, tmp_path, monkeypatch) -> Path:
    """A copy of the project with its data/."""
    shutil.copytree(pulled_template, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def state(folder: Path = Path("data")) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def leftovers() -> list[Path]:
    return list(Path().glob("*.tmp"))


def test_pull_rebuilds_then_finds_nothing_to_do_then_uses_the_cache(project):
    assert "rebuilt from sources/reviews/set.yaml" in ajuste_data("pull")
    assert state()["reviews/set.yaml"] == SET.encode()
    recorded = Path("data.dvc").read_bytes()
    assert "nothing to do" in ajuste_data("pull")
    subprocess.run(["rm", "-r", "data"], check=True)
    assert "rebuilt" in ajuste_data("pull")
    assert Path("data.dvc").read_bytes() == recorded and not leftovers()
    subprocess.run(["rm", "-r", "data"], check=True)
    with Path("sources/reviews/old.csv").open("a") as file:
        file.write("another row,1\n")
    assert "restored from DVC's local cache" in ajuste_data("pull")
    assert raw_data.status() == "same"


def test_pull_says_when_what_it_can_build_is_not_what_data_dvc_names(pulled):
    subprocess.run(["rm", "-r", "data", ".dvc/cache"], check=True)
    with Path("sources/reviews/old.csv").open("a") as file:
        file.write("another row,1\n")
    with pytest.raises(DataError, match="but data.dvc names"):
        ajuste_data("pull")
    assert not Path("data").exists() and not leftovers()


def test_pull_fetches_from_a_remote_if_one_is_set(pulled, tmp_path):
    assert dvc.run("remote", "add", "-d", "far", str(tmp_path / "far")).returncode == 0
    assert dvc.run("push", "-q").returncode == 0
    subprocess.run(["rm", "-r", "data", ".dvc/cache"], check=True)
    assert "fetched from the DVC remote" in ajuste_data("pull")
    assert raw_data.status() == "same"


def test_pull_refuses_to_overwrite_a_change(pulled):
    path = Path("data/reviews/old.csv")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"mine,1\n")
    with pytest.raises(DataError, match="pulling would overwrite it"):
        ajuste_data("pull")
    assert path.read_bytes() == content + b"mine,1\n"


def test_add_makes_a_set_of_three_classes_and_use_writes_params(pulled):
    rows = [f'"the text {i}",{["so so", "great", "awful"][i % 3]}' for i in range(300)] + [
        "odd,typo",
        "none,",
        "too,many,fields",
    ]
    Path("tickets.csv").write_text("body,queue\n" + "\n".join(rows) + "\n")
    output = ajuste_data("add", "tickets", "tickets.csv", "--map", "text=body", "--map", "label=queue", "--use")
    assert "303 rows" in output and "classes: awful 100, great 100, so so 100" in output
    assert "2 rows will go to quarantine as unknown_label: (empty) 1, typo 1" in output
    assert "next: ajuste run\n" in output  # no section `gold` here
    assert "tickets.csv:304: the record has 3 fields, the header 2" in output
    made = yaml.safe_load(Path("data/tickets/set.yaml").read_text())
    assert made["labels"] == ["awful", "great", "so so"]
    assert made["files"][0]["columns"] == {"text": "body", "label": "queue"}
    assert Path("data/tickets/tickets.csv").read_bytes() == Path("tickets.csv").read_bytes()
    assert raw_data.status() == "same" and not leftovers()
    params = Path("params.yaml").read_text()
    assert yaml.safe_load(params)["validate"]["reviews"]["set"] == "tickets"
    assert yaml.safe_load(params)["encode"]["reviews"] == {"sources": [], "rows": {"train": None}}
    assert "# the folder under data/" in params and "# empty: all" in params


def test_a_slip_is_no_class_and_a_hundred_small_classes_are(pulled, monkeypatch):
    monkeypatch.setattr(raw_data, "add", lambda: "")
    rows = ["x,red"] * 450 + ["x,green"] * 100 + ["x,grene"] * 4
    Path("slips.csv").write_text("text,label\n" + "\n".join(rows))
    output = ajuste_data("add", "colours", "slips.csv")
    assert "classes: green 100, red 450" in output and "unknown_label: grene 4" in output
    monkeypatch.setattr(raw_data, "check", lambda: None)
    Path("many.csv").write_text("text,label\n" + "\n".join(f"x,{i % 150}" for i in range(600)))
    ajuste_data("add", "intents", "many.csv")
    assert yaml.safe_load(Path("data/intents/set.yaml").read_text())["labels"] == [str(i) for i in range(150)]


def test_add_extends_a_set_and_keeps_its_class_ids(pulled):
    Path("new.jsonl").write_text("".join(json.dumps({"t": f"x {i}", "l": i % 2}) + "\n" for i in range(10)))
    with pytest.raises(UsageError, match="give --labels 0=bad"):
        ajuste_data("add", "reviews", "new.jsonl", "--map", "text=t", "--map", "label=l")
    output = ajuste_data(
        "add", "reviews", "new.jsonl", "--map", "text=t", "--map", "label=l", "--labels", "1=good,0=ugly"
    )
    assert "classes: bad 0, good 5, ugly 5" in output
    assert "set in params.yaml: encode.reviews.sources: ['old', 'new']" in output
    made = yaml.safe_load(Path("data/reviews/set.yaml").read_text())
    assert made["labels"] == ["bad", "good", "ugly"] and [file["path"] for file in made["files"]] == [
        "old.csv",
        "new.jsonl",
    ]
    assert made["files"][1]["label_names"] == {"1": "good", "0": "ugly"}
    assert raw_data.status() == "same"


def test_the_same_file_twice_and_the_same_name_twice(pulled):
    Path("old.csv").write_bytes(Path("data/reviews/old.csv").read_bytes())
    with pytest.raises(UsageError, match="this very file already, as old.csv"):
        ajuste_data("add", "reviews", "old.csv", "--labels", "0=bad,1=good")
    Path("old.csv").write_text("text,label\n" + "".join(f"other {i},{i % 2}\n" for i in range(4)))
    Path("data/reviews/README").write_text("a note")
    raw_data.add()
    ajuste_data("add", "reviews", "old.csv", "--labels", "0=bad,1=good")
    assert Path("data/reviews/README").read_text() == "a note"
    Path("data/reviews/README").unlink()
    raw_data.add()
    assert set(state()) == {"reviews/old.csv", "reviews/old-2.csv", "reviews/set.yaml"}
    ajuste_data("add", "reviews", "old.csv", "--replace")
    assert set(state()) == {"reviews/old.csv", "reviews/set.yaml"}
    assert yaml.safe_load(state()["reviews/set.yaml"])["labels"] == ["0", "1"]
    assert raw_data.status() == "same"


def test_a_folder_of_texts_in_the_layout_of_aclimdb(project):
    for part in ("train", "test"):
        for label in ("pos", "neg", "unsup"):
            folder = Path("aclImdb") / part / label
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f"{i}_7.txt").write_bytes(f"{part} {label} {i} ".encode() + b"caf\xe9")
        (Path("aclImdb") / part / "labeledBow.feat").write_text("0 1:2")
    output = ajuste_data("add", "imdb", "aclImdb")
    assert "12 rows" in output and "classes: neg 6, pos 6" in output
    table = pq.read_table("data/imdb/aclImdb.parquet").to_pylist()
    assert table[0] == {"file": "test/neg/0_7.txt", "label": "neg", "text": b"test neg 0 caf\xe9"}
    assert "line 1: [neg] test neg 0 caf\\xe9" in ajuste_data("show", "imdb")
    with pytest.raises(DataError, match="holds no texts by label"):
        ajuste_data("add", "nothing", "sources")


@pytest.mark.parametrize("format", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_can_be_added(project, monkeypatch, format):
    import pandas as pd

    monkeypatch.setattr(raw_data, "add", lambda: "")  # the other tests record for real
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(30)], "label": [f"c{i % 3}" for i in range(30)]})
    path = Path(f"mine.{format}")
    if format == "json":
        frame.to_json(path, orient="records")
    elif format == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif format == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if format == "csv" else "\t")
    assert "classes: c0 10, c1 10, c2 10" in ajuste_data("add", "mine", str(path))


@pytest.mark.parametrize(
    ("name", "content", "args", "error", "message"),
    [
        ("a.csv", b"body,label\nx,1\n", [], DataError, "no column `text`: its columns are body, label"),
        ("a.csv", b"", [], DataError, "is empty"),
        ("a.csv", bytes(range(256)) * 9, [], DataError, "binary file"),
        ("a.csv", b"text,label\n" + b"x,1\n" * 9, [], DataError, "1 classes"),
        ("a.csv", b"text,label\n" + b"".join(b"x,%d\n" % i for i in range(500)), [], DataError, "0 classes"),
        ("a.docx", b"x", [], UsageError, "no known ending"),
        ("a.csv", b"text,label\nx,1\n", ["--map", "txt=a"], UsageError, "--map txt=a"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(pulled, name, content, args, error, message):
    before, params = state(), Path("params.yaml").read_bytes()
    Path(name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        ajuste_data("add", "mine", name, *args)
    assert "\n" not in str(caught.value)
    assert (state(), Path("params.yaml").read_bytes(), leftovers()) == (before, params, [])


@pytest.mark.parametrize("failure", [DataError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("args", [("reviews",), ("reviews", "--replace"), ("fresh",)])
def test_a_failure_while_recording_puts_data_back(pulled, monkeypatch, failure, args):
    before = state()
    Path("a.csv").write_text("text,label\n" + "".join(f"x {i},{'bad good'.split()[i % 2]}\n" for i in range(8)))

    def fail() -> str:
        raise failure

    monkeypatch.setattr(raw_data, "add", fail)
    result = CliRunner().invoke(data.app, ["add", args[0], "a.csv", *args[1:]])
    assert result.exit_code != 0
    assert state() == before and sorted(path.name for path in Path("data").iterdir()) == ["reviews"]
    assert raw_data.status() == "same" and not leftovers()


def test_list_and_show(project):
    with pytest.raises(DataError, match="has no sets"):
        ajuste_data("list")
    ajuste_data("pull")
    assert "bad, good" in ajuste_data("list")
    shown = ajuste_data("show", "reviews")
    assert "20 rows" in shown and "bad 10, good 10" in shown and "line 2: [0] row 0" in shown
    with pytest.raises(DataError, match="no set `reviws`; sets are reviews"):
        ajuste_data("show", "reviws")


def test_a_set_that_gold_cannot_learn_from_ends_before_it(pulled, monkeypatch):
    monkeypatch.setattr(raw_data, "add", lambda: "")
    monkeypatch.setattr(raw_data, "check", lambda: None)
    params = Path("params.yaml")
    params.write_text(params.read_text() + "gold:\n  source: imdb\n")
    for stem, ends in (("mine", "next: ajuste run set-mine-classifier\n"), ("imdb", "next: ajuste run\n")):
        Path(f"{stem}.csv").write_text("text,label\n" + "\n".join(["x,red"] * 30 + ["y,green"] * 30) + "\n")
        output = ajuste_data("add", f"set-{stem}", f"{stem}.csv", "--use")
        assert output.endswith(ends) and ("RLHF's judge" in output) is (stem == "mine")
