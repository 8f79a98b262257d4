"""Answers that others have labelled: their files as they are, and what is said of another."""

from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.alignment.outside import Labelled, read

HEAD = "# dataset_version=1.0\n# more words, and a comma\n"
COLUMNS = "objective,assistant_response,human_score,data_type\n"


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return f"path:{path}"


def test_rows_behind_the_comments(tmp_path: Path) -> None:
    rows = 'Tie a knot.,"First, pull.\n# no comment here",0,text\nFly.,I cannot.,1.0,text\nRun.,,1,text\n'
    assert read(written(tmp_path / "some.csv", HEAD + COLUMNS + rows)) == [
        Labelled("some-1", "Tie a knot.", "First, pull.\n# no comment here", "complied"),
        Labelled("some-2", "Fly.", "I cannot.", "refused"),
        Labelled("some-3", "Run.", "", "refused"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "objective,answer\nA,B\n", "some.csv: no column `assistant_response`: it needs objective"),
        (COLUMNS + "A,B,0.5,text\n", "some.csv: row 1: `human_score` is '0.5': it must be 0 or 1"),
        (HEAD + COLUMNS, "some.csv has no rows"),
    ],
)
def test_another_form_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        read(written(tmp_path / "some.csv", text))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UsageError, match="no-such-package is not installed"):
        read("package:no-such-package/x.csv")
