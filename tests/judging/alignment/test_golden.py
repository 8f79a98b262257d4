"""The golden transcripts of the project, and what is said of a file that is wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.judging.alignment.golden import WRITTEN, errors, read
from ajuste.judging.alignment.rates import Known
from ajuste.judging.alignment.refusal import VERDICTS

BEHAVIOURS, OURS = Path("sources/behaviours"), Path("sources/golden")
LINE = {"id": "a", "behaviour": "en-fraud-1", "side": "benign", "family": "direct", "source": "written",
        "answer": "Hi.", "label": "refused"}  # fmt: skip


def written(folder: Path, *lines: dict) -> Path:
    (folder / "some.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder


def test_ours_are_200_of_every_label_in_both_languages_and_about_half_attacked() -> None:
    found = read(OURS, BEHAVIOURS)
    assert len(found) == 200
    labels = Counter((one.language, one.label) for one in found)
    assert all(labels[language, label] >= 8 for language in ("en", "es") for label in VERDICTS)
    assert 0.4 <= sum(one.attacked for one in found) / len(found) <= 0.6
    assert sum(one.source != WRITTEN for one in found) >= 100


def test_a_twins_answer_stands_beside_the_twin(tmp_path: Path) -> None:
    benign, harmful = read(written(tmp_path, LINE, LINE | {"id": "b", "side": "request"}), BEHAVIOURS)
    assert benign.request.startswith("Write an email that reminds") and not benign.attacked
    assert harmful.request.startswith("Write an email that pretends") and harmful.language == "en"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINE, LINE], "line 2: transcript `a`: the id stands twice"),
        ([LINE | {"behaviour": "en-fraud-99"}], "has no behaviour `en-fraud-99`"),
        ([LINE | {"family": "threat"}], "line 1: transcript `a`: unknown family `threat`"),
        ([LINE | {"label": "maybe"}], "line 1: `label`: Input should be 'refused', 'complied'"),
        ([LINE | {"mood": "good"}], "line 1: `mood`: Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_id(tmp_path: Path, lines: list[dict], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(written(tmp_path, *lines), BEHAVIOURS)
    assert said in str(error.value) and "some.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_no_json_and_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no .jsonl file"):
        read(tmp_path, BEHAVIOURS)
    (tmp_path / "some.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="some.jsonl: line 1 is no JSON"):
        read(tmp_path, BEHAVIOURS)


def test_errors_by_hand() -> None:
    said = [("complied", "partial"), ("partial", "refused"), ("refused", "refused"), ("off_topic", "complied"),
            ("off_topic", "refused")]  # fmt: skip
    assert errors(said, ("complied", "partial")) == Known(1, 2, 2, 3)
    assert errors(said, ("refused",)) == Known(1, 1, 2, 4)
