"""The behaviours of the project, and what is said of a file that is wrong."""

from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.judging.alignment.behaviours import CATEGORIES, first, read

OURS = Path("sources/behaviours")
ENTRY = "- {id: en-fraud-1, category: fraud, request: Cheat., benign: Play.}\n"


def written(folder: Path, text: str) -> Path:
    (folder / "en.yaml").write_text(text, encoding="utf-8")
    return folder


def test_ours_are_64_in_english_and_half_of_them_in_spanish() -> None:
    found = read(OURS)
    for language, each in (("en", 8), ("es", 4)):
        own = [one for one in found if one.language == language]
        assert {name: sum(one.category == name for one in own) for name in CATEGORIES} == dict.fromkeys(
            CATEGORIES, each
        )
    english = {one.id for one in found if one.language == "en"}
    assert all("en" + one.id.removeprefix("es") in english for one in found if one.language == "es")


def test_ours_are_short_different_from_their_twins_and_none_stands_twice() -> None:
    found = read(OURS)
    texts = [text for one in found for text in (one.request, one.benign)]
    assert len(set(texts)) == len(texts)
    assert max(len(text.split()) for text in texts) <= 20
    assert all(one.id.split("-")[:2] == [one.language, one.category] for one in found)


def test_first_takes_of_each_language_and_category() -> None:
    chosen = first(read(OURS), {"en": 2, "es": 1})
    assert [one.id for one in chosen if one.category == "drugs"] == ["en-drugs-1", "en-drugs-2", "es-drugs-1"]
    assert len(chosen) == 3 * len(CATEGORIES)
    assert {one.language for one in first(read(OURS), {"en": 1})} == {"en"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {id: a-1, category: theft, request: Cheat., benign: Play.}", "en.yaml: behaviour `a-1`: `category`: Input"),
        ("- {id: a-1, category: fraud, request: Cheat.}", "en.yaml: behaviour `a-1`: `benign`: Field required"),
        ("- {id: a-1, category: fraud, request: Cheat., bening: Play.}", "behaviour `a-1`: `bening`: unknown key"),
        ("- {id: a-1, category: fraud, request: 3, benign: Play.}", "`a-1`: `request`: Input should be a valid string"),
        ("- {category: fraud, request: Cheat., benign: Play.}", "en.yaml: entry 1: `id`: Field required"),
        (ENTRY + ENTRY, "en.yaml: behaviour `en-fraud-1`: the id stands twice"),
        ("fraud: Cheat.", "en.yaml: it must be a list of behaviours"),
        ("- Cheat.", "en.yaml: entry 1: "),
    ],
)
def test_what_is_wrong_is_named_with_file_and_id(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(written(tmp_path, text), ["en"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="es.yaml is missing"):
        read(written(tmp_path, ENTRY))
