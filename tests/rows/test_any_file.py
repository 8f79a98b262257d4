"""Whatever stands in a file: an exit code, one line that names it, no stack trace, and no row is lost without a word.

    rows kept + rows in quarantine = rows written,    or the file is refused as a whole

Hypothesis draws files of every layout and format with odd values (tests/made/odd_files.py): some 100 of them, always
the same, in `make test`, and AJUSTE_FILES others (2,000) in the slow run. There a stand-in that answers alike does the
checks of Great Expectations; 100 more files are checked by itself.

    AJUSTE_FILES=2000 python -m pytest -m slow tests/rows/test_any_file.py
"""

import contextlib
import importlib
import io
import os
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from ajuste.cli import main as cli
from ajuste.core.errors import DataError
from ajuste.rows.split import SPLITS
from tests.made import odd_files
from tests.made.added import ROOT, project
from tests.made.odd_files import Drawn, draw_file
from tests.made.stand_in import stand_in

MANY = int(os.environ.get("AJUSTE_FILES", "2000"))
MARK = re.compile(r"zq\d+q")
ALWAYS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
SECTIONS = {"classification": "reviews", "instructions": "instructions", "preferences": "preferences"}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A project whose stages bear any share of bad rows, so that files are seldom refused as a whole."""
    project(tmp_path, monkeypatch)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["validate"]
    for section in params.values():
        section["max_quarantine_share"] = 1.0
    params["preferences"]["shared_with"] = []
    Path("params.yaml").write_text(yaml.safe_dump({"validate": params}))
    for study in ("ner", "qa"):
        Path("studies", study).mkdir(parents=True)
        text = (ROOT / "studies" / study / "params.yaml").read_text()
        Path("studies", study, "params.yaml").write_text(text.replace("max_quarantine_share: 0.15",
                                                                      "max_quarantine_share: 1.0"))  # fmt: skip
    Path("own.yaml").write_text(odd_files.TEMPLATES)
    return tmp_path


LAYOUTS = sorted(odd_files.ROWS)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=6, derandomize=True, **ALWAYS)
def test_no_row_of_any_file_is_lost(place, layout, data):
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        check(data, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=-(-MANY // len(LAYOUTS)), print_blob=True, **ALWAYS)
def test_no_row_of_any_of_many_files_is_lost(place, layout, data):
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        check(data, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=-(-100 // len(LAYOUTS)), print_blob=True, **ALWAYS)
def test_great_expectations_loses_none_either(place, layout, data):
    check(data, layout)


def check(data, layout: str) -> None:
    for folder in ("drawn", "data/mine", "out", "out.failed"):
        shutil.rmtree(folder, ignore_errors=True)
    Path("drawn").mkdir()
    drawn = draw_file(data, layout, Path("drawn"))
    note(f"{drawn}: {drawn.path.read_bytes()[:3000]!r}")
    code, said, error = added(drawn)
    event(f"exit {code}: {drawn.layout}, {drawn.form}")
    assert code in (0, 1, 2) and "Traceback" not in said + error, error
    assert not [path for path in Path().glob("data.*")], "what was prepared is left behind"
    if code:
        assert error.startswith("error: ") and error.count("\n") == 1 and "did not foresee" not in error, error
        assert drawn.path.name in error or re.search(r"data/mine", error), error
        assert not Path("data/mine").exists()
        return
    assert drawn.whole, said
    kept, lost = validated(drawn, error)
    if kept is not None:
        found = set(MARK.findall(kept + lost))
        assert drawn.marks <= found, f"not one word of these rows is left: {drawn.marks - found}"


def added(drawn: Drawn) -> tuple[int, str, str]:
    """Exit code and output of `ajuste data add`, as the console script ends."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        patch.setattr(sys, "argv", ["ajuste", "data", "add", "mine", str(drawn.path), *drawn.args])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code or 0, out.getvalue(), error.getvalue()


def validated(drawn: Drawn, error: str) -> tuple[str | None, str]:
    """The texts that validation kept, and those in quarantine; every row that was written is in one of them."""
    kind = yaml.safe_load(Path("data/mine/set.yaml").read_text())["kind"]
    stage = importlib.import_module(f"tasks.validate.{SECTIONS.get(kind, kind)}")
    config, validate = stage_of(kind, stage)
    try:
        report = validate(config, None, Path("data/mine"), Path("out"))
    except DataError as wrong:
        assert "\n" not in str(wrong) and "mine" in str(wrong)
        return None, ""
    rows = report["rows"]
    assert rows["read"] == drawn.rows and rows["kept"] + rows["quarantined"] == drawn.rows, rows
    quarantine = pq.read_table("out/quarantine.parquet").to_pylist()
    assert len(quarantine) == rows["quarantined"] and all(row["reasons"] for row in quarantine)
    names = [*SPLITS, "texts"] if kind == "preferences" else SPLITS
    kept = [row for name in names for row in pq.read_table(f"out/{name}.parquet").to_pylist()]
    assert kind == "preferences" or len(kept) == rows["kept"]
    return repr(kept), repr(quarantine)


def stage_of(kind: str, stage):
    name = SECTIONS.get(kind, kind)
    if kind in SECTIONS:
        values = yaml.safe_load(Path("params.yaml").read_text())["validate"][name]
    else:
        values = yaml.safe_load(Path("studies", {"words": "ner", "questions": "qa"}[kind], "params.yaml").read_text())
        values = values["validate"]
    config = getattr(stage, f"{name.capitalize()}Config")(**{**values, "set": "mine"})
    return config, getattr(stage, f"validate_{name}")
