"""The gold scorer: which rows train it, what it leaves out, what it saves, and how its accuracy is counted."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.models.classifier import load, logits_of, predict
from ajuste.models.folder import load_tokenizer
from tasks.gold import Decontaminated, GoldConfig, gold, sentences
from tests.made.tiny_classifiers import tiny_base
from tests.made.tiny_rows import BAD, GOOD, PLAIN

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = GoldConfig(
    source="imdb", rows=80, validation_rows=20, test_rows=10, ratings_rows=40, sentences=3, max_tokens=32, l2=0.01,
    steps=50, patience=10, ngram=5, near_duplicate_jaccard=0.8,
)  # fmt: skip
COPIED = "the warm scene of this end"  # six words that stand in a text of `ratings` and in a review
REPEATED = "this film is not very funny at the end of it"


def sentence(rng: random.Random, label: int) -> str:
    words = rng.choices(PLAIN, k=rng.randint(4, 9))
    words.insert(rng.randrange(len(words)), rng.choice(GOOD if label else BAD))
    return " ".join(words) + "."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "encoder")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sets(tmp_path_factory.mktemp("sets") / "validated")


def write_sets(root: Path) -> tuple[Path, Path]:
    """validated/reviews and validated/preferences."""
    rng = random.Random(0)
    (root / "reviews").mkdir(parents=True)
    (root / "preferences").mkdir()
    for number, (split, count) in enumerate((("train", 120), ("validation", 40), ("test", 40))):
        rows = []
        for i in range(count):
            label = rng.randrange(2)
            text = " ".join(sentence(rng, label) for _ in range(rng.randint(1, 6)))
            if split == "train" and i == 3:
                text += f" And {COPIED}!"
            if split == "train" and i == 5:
                text += f"\n{REPEATED}"
            rows.append({"row_id": f"{number:02d}{i:014d}", "text": text, "label": label,
                         "source": "imdb" if i % 10 else "rotten_tomatoes", "location": f"{split}:{i}"})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows[::-1]), root / "reviews" / f"{split}.parquet")
    (root / "reviews" / "labels.json").write_text('["negative", "positive"]')
    texts = [
        {"row_id": f"{i:016d}", "text": sentence(rng, i % 2), "rating": (3.0 if i % 2 else -3.0) if i % 5 else 0.2,
         "raters": 20, "split": ("train", "validation", "test")[i % 3]}
        for i in range(60)
    ]  # fmt: skip
    texts[7]["text"], texts[8]["text"] = f"it was {COPIED} and the plot", REPEATED + "."
    pq.write_table(pa.Table.from_pylist(texts), root / "preferences" / "texts.parquet")
    return root / "reviews", root / "preferences"


@pytest.fixture(scope="module")
def made(base: Path, sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("gold") / "gold"
    return out, gold(CONFIG, COMPUTE, *sets, base, out)


def texts_of(sets: tuple[Path, Path]) -> list[dict]:
    return pq.read_table(sets[1] / "texts.parquet").to_pylist()


@pytest.mark.parametrize("number, expected", [
    (1, ["First of all of them."]),
    (2, ["First of all of them.", "The last one is here"]),
    (3, ["First of all of them.", "Was this the third one?", "The last one is here"]),
    (9, ["First of all of them.", "Here is the second one!", "Was this the third one?", "The last one is here"]),
])  # fmt: skip
def test_the_first_sentence_and_the_last_ones(number: int, expected: list[str]) -> None:
    text = "First of all of them. Short one.\n\nHere is the second one! Was this the third one?  The last one is here"
    assert sentences(text, number) == expected


def test_a_text_without_a_whole_sentence_is_taken_whole() -> None:
    assert sentences("Avoid it! Really.", 3) == ["Avoid it! Really."]


def test_reviews_that_share_words_or_sentences_with_ratings_are_left_out(made, sets) -> None:
    _, report = made
    found = report["decontamination"]
    assert (found["texts"], found["ngram"], found["jaccard"]) == (60, 5, 0.8)
    # the copied words: by n-gram; the repeated sentence has five words in a row in common too
    assert found["train"] == {"rows": 82, "shared_ngram": 2, "near_duplicate": 0, "kept": 80}
    assert found["validation"]["kept"] == 20 and report["trained_on"]["rows"] == 80


def test_near_duplicates_are_found_where_no_ngram_is_shared() -> None:
    config = CONFIG.model_copy(update={"ngram": 50})
    rows = [
        {"text": f"The plot goes on number {i}. {REPEATED if i in (2, 6) else 'It ends like that.'}", "label": i % 2}
        for i in range(8)
    ]
    rows[6]["text"] = rows[6]["text"].replace("funny", "funnny")
    clean = Decontaminated(config, ["a text that is alone", REPEATED.upper() + "!", "another text for itself"])
    kept = clean.take(iter(rows), 8, "train")
    assert [row["text"] for row in kept] == [row["text"] for i, row in enumerate(rows) if i not in (2, 6)]
    assert clean.report["train"] == {"rows": 8, "shared_ngram": 0, "near_duplicate": 2, "kept": 6}


def test_reviews_that_only_repeat_each_other_stay() -> None:
    rows = [{"text": "It is the same thing again.", "label": i % 2} for i in range(4)]
    assert len(Decontaminated(CONFIG, ["a text that is alone"]).take(iter(rows), 4, "train")) == 4


def test_what_is_saved_is_the_untouched_encoder_with_a_head_that_learned(made, base: Path, sets) -> None:
    out, report = made
    _, _, card = load(out)
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert card["strategy"] == "gold" and card["base"]["id"] == "tiny"
    assert card["parameters"]["trainable"] == 2 * 32 + 2
    assert report["ratings"]["all"]["value"] > 0.6 and report["imdb"]["test"]["value"] > 0.6
    assert card["validation"]["accuracy"] > 0.8
    assert json.loads((out / "evaluation.json").read_text()) == rounded(report)
    assert card["accuracy_on_ratings"] == rounded(report["ratings"]["test"])


def test_a_review_has_the_mean_log_odds_of_its_sentences(made, base: Path, sets) -> None:
    """The first step's validation loss and accuracy, from the saved folder's logits of single sentences."""
    out, _ = made
    model, tokenizer, card = load(out)
    table = pq.read_table(sets[0] / "validation.parquet").sort_by("row_id").to_pylist()
    imdb = iter(row for row in table if row["source"] == "imdb")
    rows = Decontaminated(CONFIG, [row["text"] for row in texts_of(sets)]).take(imdb, 20, "validation")
    losses, hits = [], []
    for row in rows:
        ids = tokenizer(sentences(row["text"], 3), truncation=True, max_length=32)["input_ids"]
        logits = logits_of(model, ids).double().mean(dim=0)
        losses.append(-torch.log_softmax(logits, dim=0)[row["label"]].item())
        hits.append(int(logits.argmax()) == row["label"])
    assert card["validation"]["loss"] == pytest.approx(np.mean(losses), abs=2e-4)
    assert card["validation"]["accuracy"] == pytest.approx(np.mean(hits), rel=1e-5)


def test_accuracy_counts_clear_texts_alone(made, sets) -> None:
    out, report = made
    loaded = load(out)
    clear = [row for row in texts_of(sets) if abs(row["rating"]) > 0.5]
    right = {row["row_id"]: bool(predict(*loaded, [row["text"]])[0, 1] > 0.5) == (row["rating"] > 0) for row in clear}
    test = [right[row["row_id"]] for row in clear if row["split"] == "test"]
    some = [right[row["row_id"]] for row in clear[:40]]
    for name, hits in (("test", test), ("all", some)):
        low, high = wilson_interval(sum(hits), len(hits))
        assert report["ratings"][name] == {"value": np.mean(hits), "low": low, "high": high, "rows": len(hits)}
    assert 0.5 < report["ratings"]["all"]["value"] < 1, "a perfect score: this test could not find a wrong count"
    assert report["imdb"]["test"]["rows"] == 10


def test_the_same_bytes_twice(made, base: Path, sets, tmp_path: Path) -> None:
    out, _ = made
    gold(CONFIG, COMPUTE, *sets, base, tmp_path / "gold")
    for path in sorted(out.iterdir()):
        assert path.read_bytes() == (tmp_path / "gold" / path.name).read_bytes(), path.name
        assert str(base).encode() not in path.read_bytes()


def test_without_ratings_there_is_no_accuracy_on_them(base: Path, sets, tmp_path: Path) -> None:
    empty = pq.read_table(sets[1] / "texts.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "texts.parquet")
    report = gold(CONFIG, COMPUTE, sets[0], tmp_path, base, tmp_path / "gold")
    assert report["ratings"] == {"test": None, "all": None}
    assert load(tmp_path / "gold")[2]["accuracy_on_ratings"] is None
    assert report["decontamination"]["train"]["shared_ngram"] == 0


def test_what_is_wrong_is_one_line(base: Path, sets, tmp_path: Path) -> None:
    reviews, preferences = sets
    with pytest.raises(DataError, match=r"no row of source `imbd` \(gold.source\): it has imdb, rotten_tomatoes"):
        gold(CONFIG.model_copy(update={"source": "imbd"}), COMPUTE, reviews, preferences, base, tmp_path)
    with pytest.raises(UsageError, match="texts.parquet is missing"):
        gold(CONFIG, COMPUTE, reviews, tmp_path, base, tmp_path)
    same = [{**row, "row_id": str(i), "rating": 1.0, "split": "train"} for i, row in enumerate(
        pq.read_table(reviews / "train.parquet", columns=["text"]).to_pylist())]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(same), tmp_path / "texts.parquet")
    with pytest.raises(DataError, match="0 train rows of source `imdb` are left of 108"):
        gold(CONFIG, COMPUTE, reviews, tmp_path, base, tmp_path)


def test_load_tokenizer_keeps_the_bases_words(made, base: Path) -> None:
    assert load_tokenizer(made[0]).get_vocab() == load_tokenizer(base).get_vocab()
