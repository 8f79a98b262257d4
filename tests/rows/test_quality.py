"""The quality report: cycles against a search of all walks, biases and noise that were put in, texts of other sets."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.rows.ngrams import words_of
from ajuste.rows.quality.cycles import Cycles
from ajuste.rows.quality.noise import label_noise
from ajuste.rows.quality.report import Quality, digest
from ajuste.rows.quality.shared import texts_of_sets
from tasks.validate.comparisons import KEPT
from tests.made.instruction_files import WORDS, write_set


def comparison(chosen: str, rejected: str, prompt: str = "ask", n: int = 0, **more) -> dict:
    empty = dict.fromkeys(("ratings", "agreement", "margin", "one_against_rest", "split_half"))
    return {**empty, "row_id": f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}", "source": "s", "location": f"f:{n}",
            "prompt": [{"role": "user", "content": prompt}], "responses": [chosen, rejected], **more}  # fmt: skip


def test_a_cycle_is_found_and_a_chain_is_none():
    cycles = Cycles()
    for n, (better, worse) in enumerate([(1, 2), (2, 3), (3, 1), (3, 4), (1, 4)]):
        cycles.add(7, [better, worse], f"f:{n}")
    cycles.add(8, [3, 1], "g:1")  # the same responses to another prompt
    assert cycles.report() == {"comparisons": 3, "prompts": 1, "first": ["f:0", "f:1", "f:2"]}
    assert Cycles().report() == {"comparisons": 0, "prompts": 0, "first": []}


def test_rankings_make_cycles_too():
    cycles = Cycles()
    cycles.add(1, [1, 2, 3], "f:1")
    cycles.add(1, [3, 4, 1], "f:2")
    cycles.add(1, [1, 9, 8], "f:3")
    assert cycles.report()["first"] == ["f:1", "f:2"]


@pytest.mark.parametrize("seed", range(25))
def test_cycles_are_those_that_a_search_of_all_walks_finds(seed):
    generator = random.Random(seed)
    edges = [(generator.randint(0, 1), *generator.sample(range(6), 2)) for _ in range(generator.randint(1, 12))]
    cycles = Cycles()
    for n, (prompt, better, worse) in enumerate(edges):
        cycles.add(prompt, [better, worse], str(n))

    def reaches(prompt: int, start: int, end: int) -> bool:
        seen, waiting = set(), [start]
        while waiting:
            node = waiting.pop()
            if node == end:
                return True
            if node not in seen:
                seen.add(node)
                waiting += [worse for asked, better, worse in edges if asked == prompt and better == node]
        return False

    expected = [n for n, (prompt, better, worse) in enumerate(edges) if reaches(prompt, worse, better)]
    assert cycles.find().tolist() == expected


def test_length_position_and_agreement_are_counted():
    quality = Quality()
    for n in range(40):
        long, short = "a b c d e f", "a b"
        chosen, rejected = (long, short) if n % 4 else (short, long)
        quality.add("train", comparison(chosen, rejected, f"ask {n}", n, margin=2.0 if n % 4 else 1.0,
                                        agreement=0.75), position=0 if n % 5 else 1)  # fmt: skip
    found = quality.report({}, None, [])
    assert found["length"]["longer_wins"] == 0.75 and found["length"]["low"] > 0.5
    assert found["length"]["chosen_words"] == 5.0 and found["length"]["correlation_with_margin"] == 1.0
    assert found["position"] == {"rows": 40, "best_first": 0.8, "low": pytest.approx(0.652, abs=1e-3),
                                 "high": pytest.approx(0.895, abs=1e-3), "unbiased": 0.5}  # fmt: skip
    assert found["agreement"] == {"pairs": 40, "mean": 0.75} and found["humans"] is None
    assert found["prompts"]["train"] == {"different": 40, "comparisons": 40}
    assert found["margins"]["train"] == {"0": 40, "0.5": 40, "1": 40, "1.5": 30, "2.5": 0}


def test_prompts_of_train_and_test_are_compared_by_their_words():
    quality = Quality()
    quality.add("train", comparison("a", "b", "What's up, doc?"))
    quality.add("test", comparison("a", "b", "what's up  doc"))
    quality.add("test", comparison("a", "b", "something else"))
    assert quality.report({}, None, [])["prompts"]["shared_by_train_and_test"] == 1


def test_texts_that_stand_in_other_sets_are_counted(tmp_path):
    rows = [{"inputs": "Say something long enough to count here.", "targets": "No."},
            {"inputs": "other words that nobody else has written", "targets": "A good film, if you ask me!"}]
    write_set(tmp_path / "chats", {"a.jsonl": "\n".join(map(json.dumps, rows))}, [{"layout": "flan"}])
    quality = Quality()
    quality.add("train", comparison("a good film -- if you ask me", "No."))
    quality.add("test", comparison("A good film... if YOU ask me", "say something long enough to count here"))
    shared = quality.shared(texts_of_sets(tmp_path, ["chats"]))
    assert shared == [{"set": "chats", "source": "a", "train": 1, "validation": 0, "test": 2}]
    assert words_of("A good film -- if you ask me.") == "a good film if you ask me"
    assert digest("A b!") == digest("a  B") != digest("a c")


def noisy(path: Path, rows: int, wrong: set[int]) -> None:
    generator = random.Random(0)
    good, bad, plain = WORDS[:8], WORDS[8:16], WORDS[16:]
    made = []
    for n in range(rows):
        sides = [" ".join([*generator.choices(plain, k=8), *generator.choices(part, k=3)]) for part in (good, bad)]
        chosen, rejected = sides[::-1] if n in wrong else sides
        made.append(comparison(chosen, rejected, f"ask {n}", n, agreement=0.55 if n in wrong else 0.9))
    pq.write_table(pa.Table.from_pylist(made, schema=KEPT), path)


def test_labels_that_were_turned_are_suspected(tmp_path):
    wrong = set(range(0, 400, 20))
    noisy(tmp_path / "train.parquet", 400, wrong)
    found = label_noise(tmp_path / "train.parquet")
    assert found["pairs"] == 400 and found["accuracy"] == pytest.approx(0.95, abs=0.01)
    suspects = {int(row["location"][2:]) for row in found["suspects"]}
    assert suspects <= wrong and len(suspects) == found["suspected"] >= 18
    assert found["agreement"] == {"suspects": 0.55, "others": pytest.approx(0.9, abs=0.002)}
    assert json.dumps(found) == json.dumps(label_noise(tmp_path / "train.parquet"))


def test_a_judge_that_knows_nothing_says_so_and_few_pairs_are_not_judged(tmp_path):
    noisy(tmp_path / "train.parquet", 300, set(np.random.default_rng(0).permutation(300)[:150].tolist()))
    found = label_noise(tmp_path / "train.parquet")
    assert found["low"] < 0.5 < found["high"] + 0.05
    noisy(tmp_path / "train.parquet", 40, set())
    assert label_noise(tmp_path / "train.parquet") is None
