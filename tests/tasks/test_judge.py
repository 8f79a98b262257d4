"""From samples to a mixture: what each step writes, that equal inputs give equal bytes, and when labels are refused."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from ajuste.judging.judges.opened import JudgeConfig, WordsConfig
from ajuste.judging.judges.opinions import Opinion, sigmoid, unable
from ajuste.judging.judges.people import judged_pairs
from ajuste.rows.raters import of_pair, ratings_of
from tasks.encode.preferences import PreferencesConfig, encode_preferences
from tasks.judge.card import CardConfig, judge_card, said
from tasks.judge.mixture import human_ids, mix
from tasks.judge.pairs import PAIRS, PairsConfig, admitted, fate, label_pairs
from tasks.judge.samples import LEFT_OUT, SamplesConfig, draw_samples
from tests.made import judged, tiny_classifiers, tiny_rlhf
from tests.made.folders import contents

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
WORDS = WordsConfig(constitution=str(ROOT / "sources/constitution/constitution.yaml"), language="en")
SAMPLES = SamplesConfig(dtype="float32", prompts=6, new_tokens=3, temperature=1.0, batch_rows=4)
CARD = CardConfig(
    dtype="float32", pairs=24, min_margin=0.5, bootstrap=100, min_share_of_ceiling=0.0, min_swap_consistency=0.7
)
LABEL = PairsConfig(dtype="float32")


@pytest.fixture(scope="module")
def place(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/rated, validated, encoded (prompts), sft, gold."""
    root = tmp_path_factory.mktemp("rlaif")
    judged.validated(judged.ratings_set(root / "data/rated"), root / "validated")
    sft = tiny_rlhf.whole(base, root / "sft", 3)
    judged.prompts(root / "validated", sft, root / "encoded")
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "encoder"), root / "gold")
    return root


def gold(place: Path) -> JudgeConfig:
    return JudgeConfig(kind="gold", folder=str(place / "gold"))


def measured(place: Path, judge: JudgeConfig, out: Path, **changes) -> dict:
    config = CARD.model_copy(update=changes)
    return judge_card(config, COMPUTE, "one", judge, WORDS, place / "validated", place / "data/rated", out)


@pytest.fixture(scope="module")
def samples(place: Path) -> Path:
    draw_samples(SAMPLES, COMPUTE, place / "sft", place / "encoded", place / "validated", place / "samples")
    return place / "samples/samples.parquet"


@pytest.fixture(scope="module")
def labels(place: Path, samples: Path) -> tuple[Path, dict]:
    measured(place, gold(place), place / "card")
    out = place / "pairs"
    return out, label_pairs(LABEL, COMPUTE, "one", gold(place), WORDS, place / "card/card.json", samples, out)


# --- people -----------------------------------------------------------------------------------------------------------


def test_the_pairs_of_people_come_with_their_raters_and_in_an_order_of_their_own(place: Path) -> None:
    ratings = ratings_of(place / "data/rated")
    assert len(ratings) == 240 and ratings["data/rated/texts.jsonl:2"] == [1.5, 2.0, 2.5, 3.0, 3.5]
    pairs = judged_pairs(place / "validated", "validation", 0.5, None, ratings)
    known = {row["row_id"]: row for row in pq.read_table(place / "validated/validation.parquet").to_pylist()}
    assert len(pairs) == len(known) == 30 and [one.pair.row_id for one in pairs] == sorted(known)
    assert 5 < sum(one.better for one in pairs) < 25
    for one in pairs:
        row = known[one.pair.row_id]
        assert one.pair.answers[one.better] == row["responses"][0] and one.margin == row["margin"]
        means = [sum(given) / len(given) for given in one.raters]
        assert means[one.better] == row["ratings"][0] and means[1 - one.better] == row["ratings"][1]
    assert judged_pairs(place / "validated", "validation", 0.5, 7, {})[3] == pairs[3]._replace(raters=None)
    with pytest.raises(DataError, match="no pair with a margin of 9"):
        judged_pairs(place / "validated", "validation", 9.0, None, {})
    with pytest.raises(UsageError, match="validate_preferences"):
        judged_pairs(place, "validation", 0.5, None, {})
    assert of_pair("mine.csv:3", ratings) is None and of_pair("a:1 > b:2", ratings) is None


# --- samples ----------------------------------------------------------------------------------------------------------


def test_two_different_answers_a_prompt_the_same_in_every_run(place: Path, samples: Path, tmp_path: Path) -> None:
    rows = pq.read_table(samples).to_pylist()
    counts = json.loads((samples.parent / "samples.json").read_text())
    assert counts["pairs"] == len(rows) == 6 - sum(counts[why] for why in LEFT_OUT) and len(rows) > 2
    for row in rows:
        assert row["answers"][0] != row["answers"][1] and row["prompt"] == judged.PROMPT
        assert all(text.startswith(row["prefill"]) for text in row["answers"])
    draw_samples(SAMPLES, COMPUTE, place / "sft", place / "encoded", place / "validated", tmp_path)
    assert contents(tmp_path) == contents(samples.parent)
    other = COMPUTE.model_copy(update={"seed": 1})
    draw_samples(SAMPLES, other, place / "sft", place / "encoded", place / "validated", tmp_path / "other")
    assert pq.read_table(tmp_path / "other/samples.parquet").to_pylist() != rows


def test_answers_that_are_all_alike_are_no_pairs(place: Path, tmp_path: Path) -> None:
    cold = SAMPLES.model_copy(update={"temperature": 1e-4})
    with pytest.raises(DataError, match="none of 6 prompts got two answers to compare: 3 same, 0 empty, 3 damaged"):
        draw_samples(cold, COMPUTE, place / "sft", place / "encoded", place / "validated", tmp_path)


# --- cards and refusal ------------------------------------------------------------------------------------------------


def test_a_card_holds_what_every_verdict_says(place: Path, tmp_path: Path) -> None:
    judge = JudgeConfig(kind="letters", folder=str(place / "sft"), principles=["warm", "honest"])
    found = measured(place, judge, tmp_path / "one")
    verdicts = pq.read_table(tmp_path / "one/verdicts.parquet").to_pylist()
    right = [(row["first"] + row["second"] > 1) == (row["better"] == 0) for row in verdicts]
    assert found["agreement"]["value"] == pytest.approx(sum(right) / 24) and found["pairs"] == 24
    assert {row["principle"] for row in verdicts} == {"warm", "honest"} and found["cost"]["calls"] == 48
    assert 0.5 < found["one_against_rest"]["value"] <= 1 and found["alpha"]["people"] > 0.5
    assert found["judge"] == "one" and "REFUSED" in said(found) or not found["refused"]
    measured(place, judge, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_without_the_library_a_card_says_so_before_any_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    with pytest.raises(UsageError, match=r"need the library `krippendorff`: pip install 'ajuste\[judges\]'"):
        measured(place, JudgeConfig(kind="gold", folder="nowhere"), tmp_path / "out")


def test_a_refused_judge_labels_nothing_and_says_why(place: Path, samples: Path, tmp_path: Path) -> None:
    card = measured(place, gold(place), tmp_path / "card", min_share_of_ceiling=1.0)
    assert card["swap_consistency"]["value"] == 1.0 and len(card["refused"]) == 1
    with pytest.raises(DataError, match="judge `one` may not label training data: it agrees with people on 0"):
        label_pairs(LABEL, COMPUTE, "one", gold(place), WORDS, tmp_path / "card/card.json", samples, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="is missing or no judge card"):
        admitted(tmp_path / "card/none.json")


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_have_the_layout_of_preferences_with_both_orders(labels, samples: Path, place: Path) -> None:
    out, report = labels
    rows = pq.read_table(out / "pairs.parquet", schema=PAIRS).to_pylist()
    drawn = {row["row_id"]: row for row in pq.read_table(samples).to_pylist()}
    assert report["kept"] == len(rows) > 2 and report["asked"] == len(drawn)
    for row in rows:
        answers = drawn[row["location"].removeprefix("samples:")]["answers"]
        assert sorted(row["responses"]) == sorted(answers) and row["margin"] is None
        assert row["agreement"] == pytest.approx((row["p_first"] + row["p_second"]) / 2) and row["agreement"] > 0.5
    lines = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [line["chosen"][0]["content"] for line in lines] == [row["responses"][0] for row in rows]


def test_a_pair_is_kept_only_where_both_orders_say_the_same() -> None:
    strong, weak = sigmoid(2.0), sigmoid(-1.0)
    assert [fate(one) for one in (Opinion(strong, strong), Opinion(strong, weak), Opinion(0.5, 0.5), unable("x"))] == [
        "kept", "inconsistent", "ties", "no_opinion",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_set_of_labels_is_taken_by_validate_preferences(labels, tmp_path: Path) -> None:
    from tasks.validate.preferences import PreferencesConfig as ValidateConfig
    from tasks.validate.preferences import validate_preferences

    config = ValidateConfig(
        set="pairs", sample=1.0, max_chars=2000, prompt_share=0.5, near_duplicate_jaccard=0.99, shared_with=[],
        max_quarantine_share=0.5, batch_rows=64,
    )  # fmt: skip
    validate_preferences(config, COMPUTE, labels[0], tmp_path / "out")
    found = [row for split in ("train", "validation", "test")
             for row in pq.read_table(tmp_path / f"out/{split}.parquet").to_pylist()]  # fmt: skip
    rows = pq.read_table(labels[0] / "pairs.parquet").to_pylist()
    assert sorted(row["responses"] for row in found) == sorted(row["responses"] for row in rows)
    assert sorted(row["agreement"] for row in found) == pytest.approx(sorted(row["agreement"] for row in rows))
    assert {row["source"] for row in found} == {"ai:one"}


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_a_mixture_is_a_validated_set_that_encode_takes(place: Path, labels, tmp_path: Path) -> None:
    ids = human_ids(place / "validated", 3.5, None)
    human = pq.read_table(place / "validated/train.parquet").to_pylist()
    assert sorted(ids) == sorted(row["row_id"] for row in human if row["margin"] >= 3.5) and len(ids) > 8
    assert human_ids(place / "validated", 3.5, 4) == ids[:4] == sorted(ids)[:4]
    ai = labels[0] / "pairs.parquet"
    mixed = tmp_path / "mixed"
    assert mix(place / "validated", ids, ai, 0.5, 4, mixed) == {"human": 2, "ai": 2}
    rows = pq.read_table(mixed / "train.parquet").to_pylist()
    assert [row["row_id"] for row in rows] == sorted(row["row_id"] for row in rows)
    assert [row["source"] for row in rows].count("ai:one") == 2
    assert (mixed / "test.parquet").read_bytes() == (place / "validated/test.parquet").read_bytes()
    mix(place / "validated", ids[::-1], ai, 0.5, 4, tmp_path / "again")
    assert contents(mixed) == contents(tmp_path / "again")
    every = {"train": None, "validation": None, "test": None}
    config = PreferencesConfig(
        max_tokens=128, max_prompt_tokens=64, min_margin=dict.fromkeys(every, 3.5), rows=every, prompts=every,
        batch_rows=64,
    )  # fmt: skip
    report = encode_preferences(config, COMPUTE, mixed, place / "sft", tmp_path / "encoded")
    assert report["splits"]["train"]["rows"] == 4, "a judge's pairs have no margin and are taken"
    encoded = pq.read_table(tmp_path / "encoded/train.parquet", columns=["row_id", "source"]).to_pylist()
    assert sorted(row["row_id"] for row in encoded) == [row["row_id"] for row in rows]


def test_share_0_needs_no_judge_and_too_few_labels_are_said(place: Path, labels, tmp_path: Path) -> None:
    ids = human_ids(place / "validated", 0.5, None)
    assert mix(place / "validated", ids, None, 0.0, 9, tmp_path / "human") == {"human": 9, "ai": 0}
    with pytest.raises(DataError, match="takes 20 of the judge's, and there are .: draw more samples, or lower `rows`"):
        mix(place / "validated", ids, labels[0] / "pairs.parquet", 1.0, 20, tmp_path / "many")
    with pytest.raises(UsageError, match="let the judge label the samples first"):
        mix(place / "validated", ids, tmp_path / "none.parquet", 1.0, 2, tmp_path / "no")
