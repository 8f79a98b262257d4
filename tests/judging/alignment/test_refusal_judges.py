"""The judges of refusals: what each is asked, what it says, and the card that it gets."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import precision_score, recall_score

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, typed
from ajuste.judging.alignment import judges, refusal
from ajuste.judging.alignment.card import card
from ajuste.judging.alignment.judges import LABELS, SENTENCES, Asked, Classifier, JudgeConfig, Rules, Words, judge_of
from ajuste.judging.judges.endpoint import Endpoint
from ajuste.judging.judges.local import Letters
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder
from tests.judging.test_endpoint import Fake, fake, said  # noqa: F401  fake is a fixture
from tests.made import tiny_classifiers, tiny_rlhf

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
ROWS = [Asked("a", "How do I tie {first} a knot?", "Pull it tight.", "en"),
        Asked("b", "How do I tie a knot?", "I cannot say.", "en"), Asked("c", "¿Cómo hago un nudo?", "Así.", "es")]


@pytest.fixture(scope="module")
def speaker(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_rlhf.whole(base, tmp_path_factory.mktemp("speaker") / "instruct", 3)


def test_rules_are_the_rules() -> None:
    judge = judge_of(JudgeConfig(kind="rules"), "float32", COMPUTE)
    assert isinstance(judge, Rules) and judge.name == "rules 1" and judge.unsure == []
    assert judge.verdicts(ROWS) == [refusal.judged(row.request, row.answer, row.language) for row in ROWS]


def test_letters_say_what_the_models_own_logits_say(speaker: Path) -> None:
    judge = judge_of(JudgeConfig(kind="letters", folder=str(speaker)), "float32", COMPUTE)
    assert isinstance(judge, Words) and judge.name == "letters instruct"
    verdicts = judge.verdicts(ROWS)
    model, tokenizer, _ = decoder.load(speaker)
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")

    def gap(row: Asked, first: str, second: str) -> float:
        text = judges.QUESTION[row.language]
        for place, words in (("answer", row.answer), ("first", first), ("second", second), ("request", row.request)):
            text = text.replace(f"{{{place}}}", words, 1)
        with torch.no_grad():
            ids = torch.tensor([chat.prompt_ids(tokenizer, [{"role": "user", "content": text}])])
            logits = model(ids).logits[0, -1]
        return float(logits[a] - logits[b])

    for row, verdict in zip(ROWS, verdicts, strict=True):
        refused, complied = SENTENCES[row.language]
        p = (torch.sigmoid(torch.tensor(gap(row, refused, complied)))
             + torch.sigmoid(torch.tensor(-gap(row, complied, refused)))) / 2  # fmt: skip
        assert verdict == ("refused" if p >= 0.5 else "complied")


def test_a_judge_that_cannot_say_says_refused_and_is_counted(speaker: Path) -> None:
    judge = Words(Letters(speaker, None, torch.float32), "letters")
    assert judge.verdicts([ROWS[0], Asked("long", "Why?", "so " * 2000, "en")])[1] == "refused"
    assert judge.unsure == ["long"]


def test_an_endpoint_is_asked_both_orders_of_the_same_question(fake: Fake) -> None:  # noqa: F811
    judge = judge_of(JudgeConfig(kind="endpoint", url=fake.url, model="assistant"), "float32", COMPUTE)
    assert isinstance(judge.judge, Endpoint) and judge.name == "endpoint assistant"
    # first order: B (complied) is likelier, second order: A (complied) is; then the other way round
    fake.answers = [said(A=-3.0, B=-0.1), said(A=-0.1, B=-3.0), said(A=-0.1, B=-3.0), said(A=-3.0, B=-0.1)]
    assert judge.verdicts(ROWS[:2]) == ["complied", "refused"]
    first, second = (body["messages"][0]["content"] for _, _, body in fake.seen[:2])
    refused, complied = SENTENCES["en"]
    assert f"A: {refused}\n\nB: {complied}" in first and f"A: {complied}\n\nB: {refused}" in second
    assert "Request: How do I tie {first} a knot?" in first and "Answer: Pull it tight." in first


def test_a_classifier_needs_the_two_labels(tmp_path: Path) -> None:
    encoder = tiny_classifiers.tiny_base(tmp_path / "encoder")
    folder = tiny_classifiers.tiny_full(encoder, tmp_path / "judge")
    with pytest.raises(UsageError, match="this needs complied, refused"):
        judge_of(JudgeConfig(kind="classifier", folder=str(folder)), "float32", COMPUTE)
    path = folder / "ajuste.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": LABELS}))
    judge = judge_of(JudgeConfig(kind="classifier", folder=str(folder)), "float32", COMPUTE)
    assert isinstance(judge, Classifier) and judge.name == "classifier judge"
    model, tokenizer, own = classifier.load(folder)
    texts = [judges.text_of(row.request, row.answer) for row in ROWS]
    wanted = classifier.predict(model, tokenizer, own, texts).argmax(1).tolist()
    assert judge.verdicts(ROWS) == [LABELS[i] for i in wanted]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "rules", "folder": "x"}, "kind rules has no key of its own, and nothing else"),
        ({"kind": "letters"}, "kind letters has folder, and nothing else"),
        ({"kind": "endpoint", "url": "http://a"}, "kind endpoint has model, url, and nothing else"),
        ({"kind": "oracle"}, "Input should be 'rules'"),
    ],
)
def test_a_wrong_entry_is_named(values: dict, words: str) -> None:
    with pytest.raises(UsageError) as error:
        typed(JudgeConfig, values, "judges.mine")
    assert words in str(error.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        judge_of(JudgeConfig(kind="classifier", folder=str(tmp_path / "none")), "float32", COMPUTE)


LABELLED = ["complied", "partial", "partial", "refused", "refused", "off_topic", "off_topic", "complied"]
VERDICTS = ["complied", "refused", "partial", "refused", "complied", "off_topic", "complied", "partial"]


def test_the_cards_figures_are_scikit_learns() -> None:
    ids = [str(i) for i in range(8)]
    found = card(ids, LABELLED, VERDICTS, {"odd": [i % 2 == 1 for i in range(8)], "none": [False] * 8})
    for name, positive in (("success", refusal.SUCCESS), ("refused", ("refused", "off_topic"))):
        truth, says = ([one in positive for one in column] for column in (LABELLED, VERDICTS))
        assert found[name]["precision"]["value"] == pytest.approx(precision_score(truth, says))
        assert found[name]["recall"]["value"] == pytest.approx(recall_score(truth, says))
        assert found[name]["recall"]["n"] == sum(truth)
    assert {name: share["value"] for name, share in found["of_label"].items()} == {
        "refused": 0.5, "complied": 1.0, "partial": 0.5, "off_topic": 0.5
    }  # fmt: skip
    assert [miss["id"] for miss in found["misses"]] == ["1", "4", "6"]
    assert found["groups"]["odd"]["rows"] == 4 and found["groups"]["none"]["rows"] == 0
    assert found["groups"]["none"]["success"] == {"precision": None, "recall": None}


def test_no_answers_make_no_card() -> None:
    with pytest.raises(ValueError, match="no answer"):
        card([], [], [], {})
