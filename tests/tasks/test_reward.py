"""Stage `reward` on a tiny decoder: that it learns, is centred, resumes bit for bit, and what its evaluation says."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.judging import pair_accuracy
from ajuste.learning.rl import rollout
from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.learning.text import chat
from ajuste.models import decoder, reward
from ajuste.rows.encoded.comparisons import Comparison, Comparisons, read_comparisons, read_prompts
from tasks.merge import reward as merge_reward
from tasks.reward import RewardConfig, said, train_reward_model
from tests.made.folders import contents
from tests.made.killed import die_thrice
from tests.made.tiny_rlhf import whole

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = RewardConfig(
    r=4, alpha=8, lora_dropout=0.0, targets=["all-linear"], dtype="float32", margin=0.0, soft_labels=False, lr=1e-2,
    warmup=0.1, epochs=1, batch_rows=8, accumulation=1, weight_decay=0.0, max_grad_norm=1.0, evaluations=2, patience=2,
    samples=12, new_tokens=6, temperature=1.0,
)  # fmt: skip
GOOD, BAD = ["good", "warm", "funny", "fast"], ["bad", "cold", "dull", "slow"]
SUBJECTS = ["film", "plot", "scene", "actor", "story", "cast", "script", "ending"]
KINDS = pa.schema(
    {
        "row_id": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "responses": pa.list_(pa.list_(pa.int32())),
        **{name: pa.float64() for name in ("margin", "agreement", "one_against_rest", "split_half")},
        "ratings": pa.list_(pa.float64()),
    }
)


def comparisons(base: Path, folder: Path, kind: str = "ratings") -> Path:
    """64, 24 and 24 comparisons: who says a good word of a subject wins. kind: ratings, pairs (of different prompts,
    without ratings) or rankings (of three and of two, without ratings)."""
    tokenizer = decoder.load_base(base)[1]
    end = chat.end_of_turn(tokenizer)[0]
    folder.mkdir(parents=True)
    number = 0
    for split, rows in (("train", 64), ("validation", 24), ("test", 24)):
        found, prompts = [], []
        for _ in range(rows):
            subject, good, bad = SUBJECTS[number % 8], GOOD[number // 8 % 4], BAD[(number // 3) % 4]
            asked = "Write a review." if kind == "ratings" else f"Is the {subject} good?"
            prompt = chat.prompt_ids(tokenizer, [{"role": "user", "content": asked}])
            said = [f"The {subject} is {good}.", f"The {subject} is so very {bad}."[: 40 - 3 * (number % 5)]]
            if kind == "rankings" and number % 2:
                said.insert(1, f"The {subject} is.")
            rated = kind == "ratings"
            margin = 0.5 + number % 5 / 2
            found.append(
                {
                    "row_id": f"{number * 7919 % 65536:016x}",
                    "prompt_ids": prompt,
                    "responses": [chat.encode(tokenizer, text) + [end] for text in said],
                    "margin": margin if rated else None,
                    "agreement": 0.9 if rated else None,
                    "one_against_rest": 0.8 + margin / 20 if rated else None,
                    "split_half": 0.95 if rated else None,
                    "ratings": [margin / 2, -margin / 2] if rated else None,
                }
            )
            opened = prompt + chat.encode(tokenizer, f"The {subject}")
            prompts.append({"row_id": f"{number:016x}", "prompt_ids": opened})
            number += 1
        pq.write_table(pa.Table.from_pylist(found, schema=KINDS), folder / f"{split}.parquet")
        ids = pa.schema({"row_id": pa.string(), "prompt_ids": pa.list_(pa.int32())})
        pq.write_table(pa.Table.from_pylist(prompts, schema=ids), folder / f"prompts_{split}.parquet")
    (folder / "encoding.json").write_text('{"max_tokens": 64, "set": "ratings"}')
    return folder


def of(**changes) -> RewardConfig:
    return RewardConfig(**{**CONFIG.model_dump(), **changes})


def run(config: RewardConfig, encoded: Path, base: Path, folder: Path) -> dict:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return train_reward_model(config, COMPUTE, encoded, base, folder / "out", folder / "checkpoints")


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(base, tmp_path_factory.mktemp("sft") / "instruct", 3)


@pytest.fixture(scope="module")
def rated(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comparisons(sft, tmp_path_factory.mktemp("set") / "ratings")


@pytest.fixture(scope="module")
def trained(sft: Path, rated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(CONFIG, rated, sft, folder)


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_what_was_saved_is_what_was_evaluated(trained, sft: Path, rated: Path) -> None:
    folder, done = trained
    model, tokenizer, card = reward.load(folder / "out", sft)
    exact = {"bias": card["bias"], "normalisation": done["normalisation"]}  # parts of the weights: not rounded
    assert card == rounded({key: done[key] for key in card if key != "bias"}) | exact
    assert card["kind"] == "reward" and card["method"] == "lora" and card["base"]["id"] == "tiny+instruct"
    assert card["set"] == "ratings" and card["max_tokens"] == 64 and card["pad_id"] == tokenizer.pad_token_id
    test = read_comparisons(rated, "test", model.config)
    scores = reward.score(model, test.rows()).view(-1, 2)
    right = (scores[:, 0] > scores[:, 1]).float().mean().item()
    found = json.loads((folder / "out" / "evaluation.json").read_text())["test"]
    assert found == rounded(done["test"]) and found["accuracy"]["value"] == rounded(right) and right > 0.8
    assert found["pairs"] == found["comparisons"] == 24
    low, high = wilson_interval(round(24 * right), 24)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (rounded(low), rounded(high))
    table = pq.read_table(folder / "out" / "pairs.parquet")
    assert np.mean(table["right"].to_pylist()) == pytest.approx(right)
    assert table.column_names == ["row_id", "right", "margin"]
    history = [json.loads(line) for line in (folder / "out" / "history.jsonl").read_text().splitlines()]
    first = next(row for row in history if "loss" in row)
    assert 0.2 < first["loss"] < 1.6 and history[-1]["eval_loss"] < math.log(2)
    assert done["tokens"] == sum(read_comparisons(rated, "train", model.config).tokens())
    assert "margin >= 1.5" in said(done["test"]) and "\n" not in said(done["test"])


def test_the_reference_policy_has_mean_0_and_deviation_1(trained, sft: Path, rated: Path) -> None:
    """On the very samples, drawn again here; and no pair changes its winner (the gain is positive)."""
    folder, done = trained
    model, tokenizer, card = reward.load(folder / "out", sft)
    policy = decoder.load_base(sft)[0]
    prompts = read_prompts(rated, "train", 12, model.config)
    generator, stop = torch.Generator().manual_seed(0), chat.end_of_turn(tokenizer)
    drawn = rollout.sample(rollout.Answers(policy), prompts, 6, stop, card["pad_id"], 1.0, generator)
    rows = [p + r[m].tolist() for p, r, m in zip(prompts, drawn.responses, drawn.mask, strict=True)]
    scores = reward.score(model, rows)
    assert scores.mean().abs() < 1e-4 and abs(scores.std(unbiased=False) - 1) < 1e-4
    found = done["normalisation"]
    assert found["gain"] > 0 and found["samples"] == 12
    assert card["bias"] == pytest.approx(found["shift"]) == pytest.approx(-found["raw_mean"] / found["raw_std"])
    assert abs(found["held_out_mean"]) < 2 and 0.2 < found["held_out_std"] < 5


@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_sets_without_ratings_train_too(kind: str, sft: Path, tmp_path: Path) -> None:
    encoded = comparisons(sft, tmp_path / "set", kind)
    done = run(of(soft_labels=True, margin=0.5, evaluations=1), encoded, sft, tmp_path)
    test = done["test"]
    assert test["by_margin"] == [] and test["length_correlation_of_ratings"] is None
    assert test["comparisons"] == 24 and test["pairs"] == (24 if kind == "pairs" else 12 + 3 * 12)
    assert test["accuracy"]["value"] > 0.6


def test_margin_and_soft_labels_change_the_loss_that_is_trained(sft: Path, rated: Path, tmp_path: Path) -> None:
    first = {}
    for name, changes in (("plain", {}), ("margin", {"margin": 1.0}), ("soft", {"soft_labels": True})):
        run(of(**changes, lr=1e-9), rated, sft, tmp_path / name)
        first[name] = json.loads((tmp_path / name / "out" / "history.jsonl").read_text().splitlines()[0])["loss"]
    assert first["margin"] > first["plain"] + 0.1 and first["soft"] != first["plain"]


def test_accumulation_changes_nothing(sft: Path, tmp_path: Path) -> None:
    """8x1 == 2x4 on rankings of unequal size: the same losses."""
    encoded = comparisons(sft, tmp_path / "set", "rankings")
    losses = []
    for pieces in (1, 4):
        run(of(accumulation=pieces, lr=1e-3, evaluations=1), encoded, sft, tmp_path / str(pieces))
        rows = map(json.loads, (tmp_path / str(pieces) / "out" / "history.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
    for other in losses[1:]:
        assert other[0] == pytest.approx(losses[0][0], rel=1e-5) and other == pytest.approx(losses[0], rel=1e-4)


def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    trained, sft: Path, rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and behind its checkpoint, and while the last one is being written; and no path is in a byte."""
    calm, _ = trained
    die_thrice(lambda: run(CONFIG, rated, sft, tmp_path), (3, 6), "checkpoint-8", monkeypatch)
    run(CONFIG, rated, sft, tmp_path)
    assert contents(tmp_path / "out") == contents(calm / "out")
    for name, content in contents(tmp_path / "out").items():
        assert str(tmp_path).encode() not in content and str(sft).encode() not in content, name


# --- merge ------------------------------------------------------------------------------------------------------------

MERGE = merge_reward.RewardConfig(dtype="float32", max_logit_difference=1e-3, min_equal_predictions=1.0, rows=8)


def test_the_merge_is_proved_on_the_saved_bytes(trained, sft: Path, rated: Path, tmp_path: Path, monkeypatch) -> None:
    folder, _ = trained
    proof = merge_reward.merge_reward(MERGE, COMPUTE, folder / "out", sft, rated, tmp_path / "merged")
    assert proof == json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert proof["merged"] and proof["rows"] == 16 and proof["pairs"] == 8 and proof["equal_predictions"] == 1.0
    assert proof["max_logit_difference"] < 1e-4 and proof["max_weight_difference"] < 1e-6
    left, right = reward.load(folder / "out", sft)[0], reward.load(tmp_path / "merged")[0]
    rows = read_comparisons(rated, "test", left.config).rows()
    assert torch.allclose(reward.score(left, rows), reward.score(right, rows), atol=1e-4)
    assert not [name for name in load_file(tmp_path / "merged" / "model.safetensors") if "lora" in name]
    for name in ("history.jsonl", "evaluation.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (folder / "out" / name).read_bytes()

    def careless(model, tokenizer, out, card) -> None:
        save(model, tokenizer, out, card)
        weights = load_file(out / "model.safetensors")
        weights["score.weight"] += 0.5
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    save = reward.save
    monkeypatch.setattr(reward, "save", careless)
    with pytest.raises(DataError, match="merge refused: the merged model is not the adapter"):
        merge_reward.merge_reward(MERGE, COMPUTE, folder / "out", sft, rated, tmp_path / "spoilt")
    assert not (tmp_path / "spoilt").exists()


def test_a_merge_onto_another_base_is_refused(trained, base: Path, rated: Path, tmp_path: Path) -> None:
    other = whole(base, tmp_path / "other", 4)
    with pytest.raises(UsageError, match="cannot merge: adapter .* differs in its weights"):
        merge_reward.merge_reward(MERGE, COMPUTE, trained[0] / "out", other, rated, tmp_path / "out")
    with pytest.raises(UsageError, match="adapter_model.safetensors is missing: run the stage that makes it"):
        merge_reward.merge_reward(MERGE, COMPUTE, tmp_path, other, rated, tmp_path / "out")


# --- evaluation -------------------------------------------------------------------------------------------------------


def pair(
    number: int, margin: float | None, lengths: tuple[int, ...] = (3, 4), humans: float | None = 0.9
) -> Comparison:
    ratings = None if margin is None else [margin, 0.0]
    named = {"one_against_rest": humans, "split_half": humans}
    return Comparison(str(number), [[1] * n for n in lengths], list(lengths), margin, None, ratings, named)


def test_accuracy_by_margin_stands_beside_people_on_the_same_pairs() -> None:
    found = Comparisons([pair(0, 0.6, humans=0.7), pair(1, 1.6, humans=0.8), pair(2, 3.0, humans=1.0), pair(3, 2.0)])
    rewards = np.array([0.0, 1.0, 2.0, 1.0, 3.0, 0.0, 1.0, 1.0])  # wrong, right, right, a tie
    report = pair_accuracy.evaluate(rewards, found, gain=1.0)
    assert report["accuracy"]["value"] == pytest.approx(2.5 / 4)
    rows = {row["margin"]: row for row in report["by_margin"]}
    assert [rows[m]["pairs"] for m in (0.5, 1.0, 1.5, 2.5)] == [4, 3, 3, 1]
    assert rows[1.5]["accuracy"]["value"] == pytest.approx(2.5 / 3) and rows[2.5]["accuracy"]["value"] == 1.0
    assert rows[1.5]["one_against_rest"] == pytest.approx((0.8 + 1.0 + 0.9) / 3)
    assert 0 < rows[2.5]["accuracy"]["low"] < 0.3  # one pair says little
    without = pair_accuracy.evaluate(rewards, Comparisons([pair(i, None, humans=None) for i in range(4)]), 1.0)
    assert without["by_margin"] == [] and without["accuracy"] == report["accuracy"]


def test_a_ranking_counts_once() -> None:
    found = Comparisons([pair(0, None, (2, 2, 2)), pair(1, None)])
    report = pair_accuracy.evaluate(np.array([3.0, 1.0, 2.0, 0.0, 1.0]), found, 1.0)  # 2 of 3 right; wrong
    assert report["pairs"] == 4 and report["comparisons"] == 2
    assert report["accuracy"]["value"] == pytest.approx((2 / 3 + 0) / 2)
    low, high = wilson_interval(2 / 3, 2)
    assert report["accuracy"]["low"] == pytest.approx(low) and report["accuracy"]["high"] == pytest.approx(high)


def test_calibration_of_a_calibrated_model_and_of_a_boaster() -> None:
    """p(win) = sigmoid(d): with d = ln 3 three of four are right; scaled by 5, so is what calibration scales back."""
    d = math.log(3)
    rewards = np.array([d, 0.0] * 3 + [0.0, d])
    found = Comparisons([pair(i, None) for i in range(4)])
    honest = pair_accuracy.evaluate(5 * rewards, found, gain=5.0)["calibration"]
    assert honest["ece"] == pytest.approx(0.0, abs=1e-6) and honest["error"]["low"] == 0.0
    assert honest["nll"]["value"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert honest["brier"]["value"] == pytest.approx(0.75 * 0.25**2 + 0.25 * 0.75**2)
    assert [(row["pairs"], row["confidence"], row["accuracy"]) for row in honest["bins"]] == [
        (4, pytest.approx(0.75), pytest.approx(0.75))
    ]
    boaster = pair_accuracy.evaluate(5 * rewards, found, gain=1.0)["calibration"]
    assert boaster["ece"] == pytest.approx(1 / (1 + 3**-5) - 0.75, abs=1e-6)


def test_length_is_reported_by_group_by_side_and_as_correlation() -> None:
    lengths = [(3, 9), (20, 4), (5, 5), (30, 40), (9, 2), (50, 60), (7, 1), (16, 18)]
    found = Comparisons([pair(i, 1.0, chosen) for i, chosen in enumerate(lengths)])
    rewards = np.array([float(n) for chosen in lengths for n in chosen])  # the longer the better
    report = pair_accuracy.evaluate(rewards, found, 1.0)
    assert report["length_correlation"] == pytest.approx(1.0)
    sides = {row["longer"]: (row["pairs"], row["accuracy"]["value"]) for row in report["by_longer"]}
    assert sides == {"better": (3, 1.0), "worse": (4, 0.0), "neither": (1, 0.5)}
    assert [row["pairs"] for row in report["by_length"]] == [2, 2, 2, 2]
    assert report["by_length"][0]["tokens_from"] == 4 and report["by_length"][-1]["tokens_to"] == 55
    ratings = np.array([rating for _ in lengths for rating in (1.0, 0.0)])
    expected = np.corrcoef(ratings, rewards)[0, 1]
    assert report["length_correlation_of_ratings"] == pytest.approx(expected)
    flat = pair_accuracy.evaluate(np.zeros(16), found, 1.0)
    assert flat["length_correlation"] is None and flat["accuracy"]["value"] == 0.5


# --- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_settings_and_missing_inputs_are_named(sft: Path, rated: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="batch_rows 8 cannot be cut into accumulation 3"):
        of(accumulation=3)
    with pytest.raises(UsageError, match="train.parquet is missing: run stage `encode_preferences`"):
        run(CONFIG, tmp_path / "none", sft, tmp_path / "a")
    with pytest.raises(UsageError, match="reward: .*base.json is missing: run stage `base_decoder`"):
        run(CONFIG, rated, tmp_path / "none", tmp_path / "b")
    with pytest.raises(UsageError, match="no linear layer of the base is named nope"):
        run(of(targets=["nope"]), rated, sft, tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": [[5, 2]]}, "needs two responses or more"),
        ({"responses": [[5, 2], []]}, "none of them empty"),
        ({"responses": [[5, 2], [10**6]]}, "encode the set again with this base"),
        ({"prompt_ids": [7] * 600, "responses": [[5, 2], [6, 2]]}, "has 602 tokens, but the base has 512 positions"),
    ],
)
def test_rows_that_the_base_cannot_read_are_named(change, message, sft: Path, rated: Path, tmp_path: Path) -> None:
    row = pq.read_table(rated / "test.parquet").to_pylist()[0] | {"row_id": "abc"} | change
    pq.write_table(pa.Table.from_pylist([row], schema=KINDS), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=f"test.parquet: row abc .*{message}"):
        read_comparisons(tmp_path, "test", decoder.load_base(sft)[0].config)
    pq.write_table(pa.Table.from_pylist([], schema=KINDS), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_comparisons(tmp_path, "test", None)
    with pytest.raises(UsageError, match="has no column `responses`"):
        read_comparisons(rated, "prompts_test", None)
