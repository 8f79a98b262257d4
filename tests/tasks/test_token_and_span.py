"""Named entities and extractive question answering: scores and alignment by hand, both learnt by `classify`."""

import random
from pathlib import Path

import pytest
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.judging import answers as judging_answers
from ajuste.judging import spans as judging_spans
from ajuste.judging import words as judging_words
from ajuste.judging.spans import SPAN
from ajuste.judging.words import TOKEN
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.models.classifier import load, load_adapter
from ajuste.models.folder import load_tokenizer
from ajuste.rows.encoded.labelled import read_rows
from ajuste.rows.encoded.questions import encode_questions
from ajuste.rows.encoded.words import encode_words
from studies.ner.evaluate import measure_words
from studies.qa.evaluate import measure_questions
from tasks.classify.full import FullConfig
from tasks.classify.lora import LoraConfig
from tasks.evaluate.classify import ClassifyConfig, evaluate_classify
from tests.made.tiny_classifiers import tiny_base, tiny_full
from tests.made.tiny_rows import write_set
from tests.made.trained import classify

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
TRAINING = {
    "class_weights": "none",
    "pooling": "cls",
    "lr": 5e-3,
    "warmup": 0.1,
    "epochs": 8,
    "batch_rows": 8,
    "accumulation": 1,
    "weight_decay": 0.0,
    "dropout": 0.0,
    "max_grad_norm": 1.0,
    "evaluations": 1,
    "patience": 8,
}
LORA = {"r": 8, "alpha": 16, "lora_dropout": 0.0, "targets": ["all-linear"]}
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "encoder")


def placed(rows: list[dict]) -> list[dict]:
    """The rows, each with its place."""
    return [{**row, "location": f"rows.jsonl:{number}"} for number, row in enumerate(rows, 1)]


# --- named entities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags,expected",
    [
        (["O", "B-PER", "I-PER", "O"], {("PER", 1, 2)}),
        (["B-PER", "B-PER"], {("PER", 0, 0), ("PER", 1, 1)}),
        (["B-PER", "I-LOC", "I-LOC"], {("PER", 0, 0), ("LOC", 1, 2)}),  # conlleval: a type without B- opens one
        (["I-PER", "O", "I-PER"], {("PER", 0, 0), ("PER", 2, 2)}),
        (["O", "O"], set()),
    ],
)
def test_entities_of_bio_tags(tags: list[str], expected: set) -> None:
    assert judging_words.entities(tags) == expected


def test_entity_f1_by_hand() -> None:
    """True: PER 0-1, LOC 3. Found: PER 0-1, PER 3 (wrong type), LOC 5 (too many): 1 of 2 true, 1 of 3 found: 0.4."""
    true = [1, 2, 0, 3, 0, 0]
    found = [1, 2, 0, 1, 0, 3]
    counts = judging_words.entity_counts(TAGS, true, found)
    assert counts == (1, 2, 3)
    assert judging_words.f1_of_counts(counts) == pytest.approx(0.4)
    assert judging_words.f1_of_counts((0, 0, 0)) == 0.0


def test_a_words_label_stands_on_its_first_piece(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    sentence = {"words": ["the", "xyz", "film"], "tags": ["O", "B-PER", "I-PER"]}
    row = encode_words(tokenizer, placed([sentence]), TAGS, 32).to_pylist()[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "the", "x", "##y", "##z", "film", "[SEP]"]
    assert row["labels"] == [IGNORED, 0, 1, IGNORED, IGNORED, 2, IGNORED] and row["length"] == 7
    cut = encode_words(tokenizer, placed([sentence]), TAGS, 5).to_pylist()[0]
    assert cut["labels"] == [IGNORED, 0, 1, IGNORED, IGNORED] and cut["length"] == 7


def test_bad_token_rows_are_named(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    with pytest.raises(DataError, match="rows.jsonl:2: `words` and `tags` must be lists of one length"):
        encode_words(tokenizer, placed([{"words": ["a"], "tags": ["O"]}, {"words": ["a"], "tags": []}]), TAGS, 32)
    with pytest.raises(DataError, match="rows.jsonl:1: tag 'B-ORG' is not one of O, B-PER"):
        encode_words(tokenizer, placed([{"words": ["a"], "tags": ["B-ORG"]}]), TAGS, 32)


def token_rows(rows: int, seed: int) -> list[dict]:
    """`actor good` is a person, `scene bad` a place, all else nothing."""
    rng = random.Random(seed)
    made = []
    for _ in range(rows):
        words, tags = [], []
        for _ in range(rng.randint(2, 4)):
            kind = rng.randrange(3)
            words += [["actor", "good"], ["scene", "bad"], ["the", "plot"]][kind]
            tags += [["B-PER", "I-PER"], ["B-LOC", "I-LOC"], ["O", "O"]][kind]
        made.append({"words": words, "tags": tags})
    return made


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_classify_learns_entities(lora: bool, base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    encoded = write_set(
        tmp_path / "encoded",
        {
            split: encode_words(tokenizer, placed(token_rows(rows, i)), TAGS, 32)
            for i, (split, rows) in enumerate({"train": 80, "validation": 20, "test": 20}.items())
        },
        TAGS,
    )
    (tmp_path / "checkpoints").mkdir()
    config = LoraConfig(**{**TRAINING, "lr": 2e-2}, **LORA) if lora else FullConfig(**TRAINING)
    card = classify(config, encoded, base, None, tmp_path / "out", tmp_path / "checkpoints", TOKEN)
    assert card["task"] == "token" and card["validation"]["entity_f1"] > 0.9
    if lora:
        model, _, _ = load_adapter(base, tmp_path / "out")
        rows = read_rows(encoded, "validation", "token")
        assert judging_words.evaluate(TAGS, model.eval(), rows, 4) == pytest.approx(
            card["validation"]
        )
        return
    report = evaluate_classify(
        ClassifyConfig(bootstrap=100, batch_rows=8), COMPUTE, {"full": tmp_path / "out"}, encoded, tmp_path / "test",
        "token", measure_words,
    )
    assert report["full"]["entity_f1"]["value"] > 0.9
    assert (
        report["full"]["entity_f1"]["low"]
        <= report["full"]["entity_f1"]["value"]
        <= report["full"]["entity_f1"]["high"]
    )
    assert sum(map(sum, report["full"]["confusion"])) == sum(len(row["words"]) for row in token_rows(20, 2))


# --- question answering ----------------------------------------------------------------------------------------------


def test_squad_scores_by_hand() -> None:
    assert judging_answers.normalise("The Cat, a dog!") == ["cat", "dog"]
    assert judging_answers.exact_match("the cat.", ["dog", "Cat"]) == 1.0
    assert judging_answers.exact_match("cat dog", ["cat"]) == 0.0
    # found 2 words, true 3, 2 in common: 2 * 2 / 5
    assert judging_answers.word_f1("black cat", ["a big black cat", "dog"]) == pytest.approx(0.8)
    assert judging_answers.word_f1("", ["the"]) == 1.0 and judging_answers.word_f1("dog", ["cat"]) == 0.0


def test_best_span_against_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        start, end = torch.randn(40, generator=generator), torch.randn(40, generator=generator)
        inside = torch.arange(40) >= 5
        pairs = [(s, e) for s in range(5, 40) for e in range(s, min(s + judging_spans.MAX_ANSWER, 40))]
        assert judging_spans.best_span(start, end, inside) == max(pairs, key=lambda p: (start[p[0]] + end[p[1]]).item())


def test_the_answers_tokens_are_found_and_a_cut_answer_is_left_out(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    rows = [{"question": "the plot", "context": "a xyz film is good", "answers": ["xyz film"], "answer_start": 2}]
    row = encode_questions(tokenizer, placed(rows), [], 32).to_pylist()[0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens[row["start"] : row["end"] + 1] == ["x", "##y", "##z", "film"]
    spans = list(zip(row["offsets"][::2], row["offsets"][1::2], strict=True))
    assert rows[0]["context"][spans[row["start"]][0] : spans[row["end"]][1]] == "xyz film"
    assert spans[0] == (-1, -1) and spans[1] == (-1, -1)
    cut = encode_questions(tokenizer, placed(rows), [], 7).to_pylist()[0]
    assert (cut["start"], cut["end"]) == (IGNORED, IGNORED)


def test_bad_questions_are_named(base: Path) -> None:
    good = {"question": "q", "context": "a film", "answers": ["film"], "answer_start": 2}
    with pytest.raises(DataError, match="rows.jsonl:1: `context` is missing or empty"):
        encode_questions(load_tokenizer(base), placed([{**good, "context": ""}]), [], 32)
    with pytest.raises(DataError, match="rows.jsonl:2: the context has no 'film' at character 0"):
        encode_questions(load_tokenizer(base), placed([good, {**good, "answer_start": 0}]), [], 32)


def question_rows(rows: int, seed: int) -> list[dict]:
    """The answer is the word after `actor`."""
    rng = random.Random(seed)
    made = []
    for _ in range(rows):
        words = rng.choices(["the", "plot", "is", "scene", "it"], k=rng.randint(3, 8))
        answer = rng.choice(["good", "bad", "dull", "warm"])
        place = rng.randrange(len(words))
        words[place:place] = ["actor", answer]
        context = " ".join(words)
        made.append(
            {
                "question": "the actor",
                "context": context,
                "answers": [answer],
                "answer_start": context.index(f"actor {answer}") + 6,
            }
        )
    return made


def test_classify_learns_to_answer(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    encoded = write_set(
        tmp_path / "encoded",
        {
            split: encode_questions(tokenizer, placed(question_rows(rows, i)), [], 32)
            for i, (split, rows) in enumerate({"train": 100, "validation": 20, "test": 20}.items())
        },
        [],
    )
    (tmp_path / "checkpoints").mkdir()
    config = FullConfig(**TRAINING)
    card = classify(config, encoded, base, None, tmp_path / "out", tmp_path / "checkpoints", SPAN)
    assert card["validation"]["exact_match"] > 0.9 and card["validation"]["f1"] > 0.9
    model, _, _ = load(tmp_path / "out")
    rows = read_rows(encoded, "test", "span")
    assert (
        judging_spans.answers_of(judging_spans.predict_rows(model, rows, 4), rows)[:3]
        == [r["answers"][0] for r in question_rows(20, 2)][:3]
    )
    report = evaluate_classify(
        ClassifyConfig(bootstrap=100, batch_rows=8), COMPUTE, {"full": tmp_path / "out"}, encoded, tmp_path / "test",
        "span", measure_questions,
    )
    assert report["full"]["exact_match"]["value"] > 0.9 and "length" in report["full"]["slices"]


def test_a_model_of_another_task_is_not_measured(base: Path, tmp_path: Path) -> None:
    folder = tiny_full(base, tmp_path / "model", labels=TAGS)
    encoded = write_set(tmp_path / "encoded", {}, TAGS)
    with pytest.raises(UsageError, match="was trained for task sequence, and token is measured here"):
        config = ClassifyConfig(bootstrap=100, batch_rows=8)
        evaluate_classify(config, COMPUTE, {"full": folder}, encoded, tmp_path / "out", "token", measure_words)
