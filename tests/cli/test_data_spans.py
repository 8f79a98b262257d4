"""`ajuste data add` for tagged words and for questions: recognised by their columns, the study pointed at the set."""

import json
from pathlib import Path

import pytest
import yaml

from ajuste.core.errors import DataError, UsageError
from tests.cli.commands import ajuste_data, made, project_without_dvc, written

SENTENCE = {"words": ["Ana", "left"], "tags": ["B-PER", "O"]}
SQUAD = {"question": "Who left?", "context": "Ana left Lyon.", "answers": {"text": ["Ana"], "answer_start": [0]}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the params of both studies."""
    project_without_dvc(tmp_path, "validate: {}\n", monkeypatch)
    for study in ("ner", "qa"):
        Path("studies", study).mkdir(parents=True)
        Path("studies", study, "params.yaml").write_text("set: sources/x   # the folder\nencode: {max_tokens: 64}\n")
    return tmp_path


def test_tagged_words_are_recognised_and_the_study_uses_them(project: Path) -> None:
    output = ajuste_data("add", "people", written("a.jsonl", [SENTENCE] * 3 + [{"words": ["x"], "tags": []}]), "--use")
    assert "data/people/a.jsonl: 4 rows, layout words, recognised" in output and "tags: O 3, B-PER 3" in output
    assert "1 rows cannot be read and will go to quarantine; first: a.jsonl:4: there are 1 words and 0 tags" in output
    assert "studies/ner/params.yaml: set: data/people" in output and "next: ajuste study ner" in output
    params = Path("studies/ner/params.yaml").read_text()
    assert yaml.safe_load(params)["set"] == "data/people" and "# the folder" in params
    found = made("people")
    assert found["kind"] == "words" and found["labels"] == ["O", "B-PER"]
    Path("b.conll").write_text("Lyon B-LOC\nsleeps O\n")
    output = ajuste_data("add", "people", "b.conll")
    assert "layout conll, recognised" in output and "then: ajuste study ner" in output
    assert made("people")["labels"] == ["O", "B-PER", "B-LOC"]
    assert "Ana/B-PER left" in ajuste_data("show", "people") and "B-LOC" in ajuste_data("list")


def test_numbers_of_tags_are_named(project: Path) -> None:
    path = written("a.jsonl", [{"tokens": ["Ana", "left"], "ner_tags": [1, 0]}])
    arguments = ["add", "people", path, "--layout", "words", "--map", "words=tokens", "--map", "tags=ner_tags"]
    with pytest.raises(UsageError, match="`0` is no BIO tag.*--labels 0=O,1=B-PER"):
        ajuste_data(*arguments)
    ajuste_data(*arguments, "--labels", "0=O,1=B-PER")
    assert made("people")["labels"] == ["O", "B-PER"]
    assert made("people")["files"][0]["label_names"] == {"0": "O", "1": "B-PER"}


def test_questions_are_recognised_and_the_study_uses_them(project: Path) -> None:
    flat = {**SQUAD, "answers": ["Ana", "Ana herself"], "answer_start": 0}
    output = ajuste_data("add", "manuals", written("q.jsonl", [SQUAD, flat]), "--use")
    assert "2 rows, layout squad, recognised" in output
    assert "questions with 1 answer 1, questions with 2 answers 1" in output
    assert yaml.safe_load(Path("studies/qa/params.yaml").read_text())["set"] == "data/manuals"
    assert made("manuals")["kind"] == "questions" and "Who left? | Ana" in ajuste_data("show", "manuals")
    assert "squad" in ajuste_data("list")


@pytest.mark.parametrize(
    ("arguments", "row", "error", "words"),
    [
        (["--layout", "words"], SQUAD, DataError, "has not the columns of tagged words, words and tags"),
        (["--layout", "squad"], SENTENCE, DataError, "has not the columns of questions, question, context, answers"),
        (["--layout", "squad", "--map", "text=a"], SQUAD, UsageError, "--map text=a: questions have the columns"),
        (["--layout", "squad", "--labels", "a,b"], SQUAD, UsageError, "--labels names classes or tags"),
        (["--map", "labels=tags"], SENTENCE, UsageError, "--map labels=tags: write words=COLUMN or tags=COLUMN"),
        ([], {**SQUAD, "context": "no"}, DataError, "not one row can be read as questions; first: a.jsonl:1"),
        (["--prompt", "x"], SENTENCE, UsageError, "--prompt belongs to preferences"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(project, arguments, row, error, words) -> None:
    path = written("a.jsonl", [json.loads(json.dumps(row))])
    with pytest.raises(error, match=words):
        ajuste_data("add", "mine", path, *arguments)
    assert not Path("data/mine").exists()
