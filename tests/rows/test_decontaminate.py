"""n-gram decontamination against brute force over lists of words, and which rows of a set judge a model."""

import json
import random
import re

import pytest
import yaml

from ajuste.core.errors import DataError
from ajuste.rows.decontaminate import ngrams_of
from ajuste.rows.ngrams import Ngrams
from ajuste.rows.split import split_of, split_text, text_digest
from tests.made.instruction_files import WORDS, write_set


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", split_text(text))


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


@pytest.mark.parametrize("n", [2, 3, 8])
def test_against_brute_force(n):
    generator = random.Random(n)
    marks = [" ", "  ", ", ", "! ", "\n", "_", " — ", "'s "]

    def text(vocabulary: int) -> str:
        chosen = generator.choices([*WORDS, "Ñandú", "ﬁne", "x", "3"][:vocabulary], k=generator.randint(0, 40))
        return "".join(word.upper() * (generator.random() < 0.1) or word + generator.choice(marks) for word in chosen)

    vocabulary = {2: 79, 3: 40, 8: 3}[n]
    rows = [[text(vocabulary) for _ in range(generator.randint(1, 3))] for _ in range(60)]
    ngrams = Ngrams(n)
    for i, texts in enumerate(rows[:20]):
        ngrams.add(texts, str(i))
    ngrams.sort()
    judged = [set().union(*(grams(text, n) for text in texts)) for texts in rows[:20]]
    hits = 0
    for texts in rows[20:]:
        mine = set().union(*(grams(text, n) for text in texts))
        expected = next((str(i) for i, other in enumerate(judged) if mine & other), None)
        assert ngrams.find(texts) == expected
        hits += expected is not None
    assert 0 < hits < 40


def test_an_ngram_stays_inside_its_text_and_short_texts_have_none():
    ngrams = Ngrams(3)
    ngrams.add(["a b", "c d e"], "one")
    ngrams.sort()
    assert ngrams.find(["b c d"]) is None and ngrams.find(["a b"]) is None and ngrams.find([""]) is None
    assert ngrams.find(["x", "zz C,d: E."]) == "one"
    empty = Ngrams(3)
    empty.sort()
    assert empty.find(["a b c d"]) is None


def test_a_long_text_is_hashed_like_its_parts():
    generator = random.Random(0)
    long = " ".join(generator.choices(WORDS, k=5000))
    ngrams = Ngrams(4)
    ngrams.add([long], "long")
    ngrams.sort()
    parts = long.split()
    assert all(ngrams.find([" ".join(parts[i : i + 4])]) == "long" for i in range(0, 4996, 97))


def test_every_text_of_a_control_set_judges(tmp_path):
    rows = [{"question": "what is it", "options": ["one two three four", {"deep": "five six seven eight"}], "n": 3}]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    write_set(tmp_path / "control", {"a.jsonl": content}, [{"layout": "piqa", "name": "x"}], "control")
    ngrams = ngrams_of(tmp_path, "control", 4)
    assert ngrams.find(["so five six seven eight it is"]) == ngrams.find(["one two three four"])
    assert ngrams.find(["one two three four"]) == "data/control/a.jsonl:1" and ngrams.find(["what is it one"]) is None


def test_of_other_sets_the_rows_of_validation_and_test_judge(tmp_path):
    texts = [" ".join(random.Random(i).choices(WORDS, k=9)) for i in range(200)]
    lines = "".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in texts)
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled/a.jsonl").write_text(lines)
    columns = {"text": "text", "label": "label"}
    file = {"path": "a.jsonl", "format": "jsonl", "columns": columns, "source": "path:a.jsonl"}
    (tmp_path / "labelled/set.yaml").write_text(
        yaml.safe_dump({"kind": "classification", "labels": ["a", "b"], "licence": "own", "files": [file]})
    )
    chats = "".join(json.dumps({"inputs": text, "targets": f"the answer {text[::-1]}"}) + "\n" for text in texts)
    write_set(tmp_path / "chats", {"b.jsonl": chats}, [{"layout": "flan"}])
    pairs = "".join(json.dumps({"prompt": text, "chosen": f"good {i} it was", "rejected": f"bad {i} it was"}) + "\n"
                    for i, text in enumerate(texts))  # fmt: skip
    write_set(tmp_path / "pairs", {"c.jsonl": pairs}, [{"layout": "pairs"}], "preferences")
    for name in ("labelled", "chats", "pairs"):
        ngrams = ngrams_of(tmp_path, name, 8)
        judging = [split_of(text_digest(split_text(text))) > 0 for text in texts]
        assert [ngrams.find([text]) is not None for text in texts] == judging and 20 < sum(judging) < 60
    response = f"the answer {texts[judging.index(True)][::-1]}"
    assert ngrams_of(tmp_path, "chats", 8).find([response]) is not None


def test_a_set_that_is_not_there_is_named(tmp_path):
    write_set(tmp_path / "control", {"a.jsonl": "{}\n"}, [{"layout": "text", "name": "x"}], "control")
    with pytest.raises(DataError, match="there is no set `contrl`; sets are control"):
        ngrams_of(tmp_path, "contrl", 8)
