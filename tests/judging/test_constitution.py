"""The constitution: what it holds, what is wrong with one, what a judge is asked by it, which principle is drawn."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.judging.judges import constitution

FILE = ROOT / "sources/constitution/constitution.yaml"
WORDS = {"compare": "Says the truth.", "critique": "Where is it false?", "revise": "Write it again."}
FRAME = {"compare": "{principle} | {prompt} | {first} | {second}"}
GOOD = {"frames": {"en": FRAME, "es": FRAME}, "principles": {"honest": {"en": WORDS, "es": WORDS}}}


def written(folder: Path, values: object) -> Path:
    path = folder / "constitution.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return path


def changed(key: str, value: object) -> dict:
    """GOOD with one dotted key set; None takes it away."""
    found = json.loads(json.dumps(GOOD))
    inner = found
    *above, last = key.split(".")
    for part in above:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return found


def test_the_projects_constitution_has_the_three_of_the_lecture_in_two_languages() -> None:
    known = constitution.read(FILE)
    assert {"helpful", "honest", "harmless"} < set(known.principles)
    texts = [getattr(known.principle(language, name), what)
             for name in known.principles for language in ("en", "es") for what in WORDS]  # fmt: skip
    assert len(set(texts)) == len(texts), "a text stands twice"
    prompts = constitution.read_prompts(ROOT / "sources/constitution/prompts.yaml")
    assert Counter(prompt.language for prompt in prompts).keys() == {"en", "es"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("principles.honest.fr", WORDS, r"constitution.yaml: `principles.honest.fr`: unknown key"),
        ("principles.honest.en.judge", "x", r"`principles.honest.en.judge`: unknown key"),
        ("principle", {}, r"`principle`: unknown key"),
        ("principles.honest.es", None, r"`principles.honest.es`: Field required"),
        ("principles.honest.es.revise", " ", r"`principles.honest.es.revise`: String should have at least 1"),
        ("principles", {}, r"`principles`: Dictionary should have at least 1 item"),
        ("frames.es.compare", "{principle} {prompt} {first}", r"`frames.es.compare`: .* must have \{second\} once"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(key: str, value: object, said: str, tmp_path: Path) -> None:
    constitution.read(written(tmp_path, GOOD))
    with pytest.raises(UsageError, match=said):
        constitution.read(written(tmp_path, changed(key, value)))


def test_a_question_holds_each_text_once_and_braces_inside_them_stay(tmp_path: Path) -> None:
    known = constitution.read(written(tmp_path, GOOD))
    asked = known.question("en", "honest", "Explain {first}.", ("{second}", "{prompt} and {x}"))
    assert asked == "Says the truth. | Explain {first}. | {second} | {prompt} and {x}"
    with pytest.raises(UsageError, match="has no principle `kind`: it has honest"):
        known.question("es", "kind", "", ("", ""))


def test_a_row_keeps_its_principle_and_each_is_drawn_about_as_often() -> None:
    names = ["helpful", "honest", "harmless"]
    drawn = [constitution.drawn(names, f"{i:016x}", 0) for i in range(3000)]
    assert drawn == [constitution.drawn(names, f"{i:016x}", 0) for i in range(3000)]
    assert drawn != [constitution.drawn(names, f"{i:016x}", 1) for i in range(3000)]
    assert all(900 < count < 1100 for count in Counter(drawn).values())  # 1000 +- 4 deviations
    with pytest.raises(ValueError, match="no principle"):
        constitution.drawn([], "0", 0)


def test_prompts_have_ids_of_their_own(tmp_path: Path) -> None:
    one = {"id": "a", "language": "en", "prompt": "Hello?"}
    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump([one, one]))
    with pytest.raises(UsageError, match="prompts.yaml: .*`a` stands twice"):
        constitution.read_prompts(path)
    path.write_text(yaml.safe_dump([one | {"language": "fr"}]))
    with pytest.raises(UsageError, match="`prompts.0.language`: Input should be 'en' or 'es'"):
        constitution.read_prompts(path)
