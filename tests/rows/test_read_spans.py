"""Tagged words and questions as files hold them: every form that is read, and what is wrong with a row."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import DataError
from ajuste.rows.read.questions import read_questions
from ajuste.rows.read.words import read_words
from ajuste.rows.sets import questions, words
from ajuste.rows.sets.questions import QuestionFile
from ajuste.rows.sets.words import WordFile

WORDS, TAGS = ["Ana", "Vega", "left", "Lyon"], ["B-PER", "I-PER", "O", "B-LOC"]
SQUAD = {"question": "Who left?", "context": "Ana left Lyon.", "answers": {"text": ["Ana"], "answer_start": [0]}}


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def word_file(name: str, form: str, **more) -> WordFile:
    return WordFile(path=name, format=form, source=f"path:{name}", **more)


def test_words_are_the_same_from_json_parquet_and_conll(tmp_path: Path) -> None:
    row = {"tokens": WORDS, "ner_tags": [1, 2, 0, 3]}
    named = {"columns": {"words": "tokens", "tags": "ner_tags"},
             "label_names": {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC"}}  # fmt: skip
    lines(tmp_path / "a.jsonl", [row, row])
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    sentence = "".join(f"{word} X {tag}\n" for word, tag in zip(WORDS, TAGS, strict=True))
    (tmp_path / "a.conll").write_text(f"-DOCSTART- -X- O\n\n{sentence}\n{sentence}")
    for file in (word_file("a.jsonl", "jsonl", **named), word_file("a.parquet", "parquet", **named),
                 word_file("a.conll", "conll")):  # fmt: skip
        (batch,) = read_words(tmp_path / file.path, file, 10)
        assert [(row.words, row.tags, row.problem) for row in batch] == [(WORDS, TAGS, None)] * 2
        assert [row.line for row in batch] == ([3, 8] if file.format == "conll" else [1, 2])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "there are 2 words and 1 tags"),
        ({"words": "a b", "tags": ["O"]}, "`words` is no list of texts"),
        ({"words": ["a", None], "tags": ["O", "O"]}, "`words` is no list of texts"),
        ({"words": [" "], "tags": ["O"]}, "a word is empty"),
        ({"words": ["a"], "tags": None}, "`tags` is no list of texts"),
    ],
)
def test_a_sentence_that_cannot_be_read_keeps_its_place(row: dict, problem: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"words": ["a"], "tags": ["O"]}, row])
    (good, bad), = read_words(path, word_file("a.jsonl", "jsonl"), 10)
    assert good.problem is None and bad.line == 2 and bad.problem == problem and json.loads(bad.raw) == row


def test_a_conll_line_without_a_tag_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ana B-PER\nleft\n\nLyon B-LOC\n")
    (bad, good), = read_words(tmp_path / "a.conll", word_file("a.conll", "conll"), 10)
    assert bad.problem == "line 2 has no tag after its word" and good.words == ["Lyon"] and good.line == 4


def test_answers_stand_beside_or_inside(tmp_path: Path) -> None:
    flat = {**SQUAD, "answers": ["Ana", "Ana Vega"], "answer_start": 0}
    path = lines(tmp_path / "q.jsonl", [SQUAD, flat])
    (batch,) = read_questions(path, QuestionFile(path="q.jsonl", format="jsonl", source="path:q.jsonl"), 10)
    assert [(row.answers, row.answer_start, row.problem) for row in batch] == [
        (["Ana"], 0, None), (["Ana", "Ana Vega"], 0, None)]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answers": {"text": ["Ana"], "answer_start": [4]}}, "the context has no `Ana` at character 4"),
        ({"answers": {"text": [], "answer_start": []}}, "the answers are no list of texts, or an empty one"),
        ({"answers": ["Ana"]}, "the answer_start is no character of the context"),
        ({"answers": ["Ana"], "answer_start": -14}, "the answer_start is no character of the context"),
        ({"question": " "}, "the question is empty"),
        ({"context": 3}, "the context is of type int, not text"),
    ],
)
def test_a_question_that_cannot_be_read_says_why(change: dict, problem: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", [{**SQUAD, **change}])
    ((row,),) = read_questions(path, QuestionFile(path="q.jsonl", format="jsonl", source="path:q.jsonl"), 10)
    assert row.problem.startswith(problem) and not row.answers


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"words": ["a"]}])
    with pytest.raises(DataError, match="has no column `tags`"):
        list(read_words(tmp_path / "a.jsonl", word_file("a.jsonl", "jsonl"), 10))


def test_what_is_wrong_with_set_yaml_is_one_line(tmp_path: Path) -> None:
    values = {"kind": "words", "labels": ["O", "PER"], "licence": "own",
              "files": [{"path": "a.jsonl", "format": "jsonl", "source": "path:a.jsonl"}]}  # fmt: skip
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(DataError, match="labels are BIO tags, O and B-TYPE and I-TYPE: `PER` is none"):
        words.read_set(tmp_path)
    with pytest.raises(DataError, match="a set of kind words, and questions is needed here"):
        questions.read_set(tmp_path)
