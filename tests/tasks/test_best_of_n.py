"""The study's own stages on a tiny decoder: samples, the curve, rows of the best answers, a training on them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.learning.rl import best_of_n
from ajuste.models import classifier, decoder, reward
from ajuste.rows.encoded.conversations import read_conversations
from tasks.best_of_n import DrawConfig, Folders, curve, draw, read_samples, steps
from tasks.evaluate import policy, validation
from tasks.rejection import best_rows, rejection
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.made.folders import contents
from tests.made.tuned import of

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = DrawConfig(dtype="float32", bootstrap=200, prompts=None, max_new_tokens=3, temperature=0.05, batch_rows=8,
                    samples=6)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, Path]:
    """The models and two files of samples."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("bon")
    base = tiny_decoders.tiny_base(root / "base")
    sft = tiny_rlhf.whole(base, root / "sft", 3)
    judge = tiny_rlhf.reward_merged(sft, tiny_rlhf.reward_adapter(sft, root / "reward_adapter"), root / "reward")
    gold = tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "encoder"), root / "gold")
    folders = Folders(sft, judge, gold, tiny_rlhf.prompts(sft, root / "encoded", ("train", "validation", "test")))
    draw(CONFIG, COMPUTE, folders, policy.read_prompts(folders.encoded, "train", None), root / "samples/train.parquet")
    chosen = validation.halves(folders.encoded)[0]
    draw(CONFIG, COMPUTE, folders, chosen, root / "samples/validation.parquet")
    return folders, root / "samples"


def test_the_samples_have_their_judges_own_scores_and_equals_have_equal_ones(made) -> None:
    folders, samples = made
    rows = pq.read_table(samples / "train.parquet").to_pylist()
    prompts = policy.read_prompts(folders.encoded, "train", None)
    assert [row["row_id"] for row in rows] == [row_id for row_id in prompts.row_ids for _ in range(6)]
    model, tokenizer, _ = decoder.load(folders.base)
    judge = classifier.load(folders.gold)
    scorer = reward.load(folders.reward)[0]
    of_prompt = dict(zip(prompts.row_ids, prompts.ids, strict=True))
    seen: dict = {}
    for row in rows:
        whole = [*of_prompt[row["row_id"]], *row["response_ids"]]
        assert row["proxy"] == pytest.approx(reward.score(scorer, [whole]).item(), rel=1e-4, abs=1e-4)
        score = seen.setdefault((row["row_id"], tuple(row["response_ids"])), row["proxy"])
        assert score == row["proxy"]
    assert len(seen) < len(rows), "some response was drawn twice"
    texts = [row["text"] for row in rows]
    assert classifier.predict(*judge, texts)[:, 1].tolist() == pytest.approx([row["gold"] for row in rows], abs=1e-5)


def test_the_curve_is_the_module_s_on_these_samples_and_stays_under_the_bound(made, tmp_path: Path) -> None:
    folders, samples = made
    found = curve(samples / "train.parquet", 200, 0)
    known = read_samples(samples / "train.parquet")
    assert (found["prompts"], found["samples"]) == known["proxy"].shape == (6, 6)
    assert [point["n"] for point in found["points"]] == [1, 2, 4, 6] == steps(6) and steps(8) == [1, 2, 4, 8]
    first, *_, last = found["points"]
    assert first["proxy"]["value"] == pytest.approx(known["proxy"].mean()) and first["proxy_gain"]["value"] == 0
    assert last["proxy"]["value"] == pytest.approx(known["proxy"].max(1).mean())
    for point in found["points"]:
        n = point["n"]
        gold = best_of_n.best_of_n(known["proxy"], known["gold"], n) - known["gold"].mean(1)
        assert point["gold_gain"]["value"] == pytest.approx(gold.mean())
        assert 0 <= point["kl"]["low"] <= point["kl"]["value"] <= point["kl_bound"] == best_of_n.kl_bound(n)
    assert last["kl"]["value"] < last["kl_bound"], "equals take KL away"
    draw(CONFIG, COMPUTE, folders, policy.read_prompts(folders.encoded, "train", None), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (samples / "train.parquet").read_bytes()


def test_the_rows_are_the_best_answers_as_instructions(made, tmp_path: Path) -> None:
    folders, samples = made
    files = {split: samples / f"{split}.parquet" for split in ("train", "validation")}
    said = best_rows(files, 4, folders.encoded, tmp_path / "rows")
    assert said == json.loads((tmp_path / "rows/encoding.json").read_text())
    assert said["splits"]["train"]["samples"] == 24 and said["splits"]["validation"]["rows"] == 3
    known, prompts = read_samples(files["train"]), policy.read_prompts(folders.encoded, "train", None)
    for i, (ids, labels) in enumerate(read_conversations(tmp_path / "rows", "train")):
        best = int(np.argmax(known["proxy"][i][:4]))
        assert ids.tolist() == prompts.ids[i] + known["response_ids"][i][best]
        assert labels.tolist() == [-100] * len(prompts.ids[i]) + known["response_ids"][i][best]
    with pytest.raises(UsageError, match=r"n 7: .*train.parquet has 6 samples a prompt"):
        best_rows(files, 7, folders.encoded, tmp_path / "no")
    with pytest.raises(UsageError, match="no.parquet is missing: run stage `sample`"):
        best_rows({"train": tmp_path / "no.parquet"}, 2, folders.encoded, tmp_path / "no")
    other = tiny_rlhf.prompts(folders.base, tmp_path / "other", ("validation",))
    (other / "prompts_validation.parquet").rename(other / "prompts_train.parquet")
    with pytest.raises(DataError, match="has no prompt tr0000"):
        best_rows({"train": files["train"]}, 2, other, tmp_path / "no")


def test_a_training_on_them_raises_what_they_were_chosen_by(made, tmp_path: Path) -> None:
    """On the training prompts themselves; and the card says method, budget and gold on the other validation prompts."""
    folders, samples = made
    rows = tmp_path / "rows"
    best_rows({split: samples / f"{split}.parquet" for split in ("train", "validation")}, 6, folders.encoded, rows)
    config = of("lora", epochs=6, lr=1e-2, patience=9, batch_rows=3)

    def train(folder: Path) -> dict:
        (folder / "checkpoints").mkdir(parents=True)
        return rejection(config, CONFIG, COMPUTE, rows, folders.base, folders.gold, folders.encoded, folder / "out",
                         folder / "checkpoints")  # fmt: skip

    card = train(tmp_path / "one")
    assert json.loads((tmp_path / "one/out/ajuste.json").read_text()) == rounded(card)
    assert (card["method"], card["strategy"], card["n"], card["samples"]) == ("rejection", "rejection", 6, 54)
    assert card["validation"].keys() == {"gold", "gold_gain", "gold_gain_low", "gold_gain_high", "kl", "loss",
                                         "perplexity"}  # fmt: skip
    assert card["validation"]["kl"] > 0
    whole = decoder.load(tmp_path / "one/out", folders.base)[0].merge_and_unload()
    decoder.save_whole(whole, decoder.load(folders.base)[1], tmp_path / "merged", card)
    after = folders._replace(base=tmp_path / "merged")
    prompts = policy.read_prompts(folders.encoded, "train", None)
    draw(CONFIG, COMPUTE, after, prompts, tmp_path / "after.parquet")
    before, later = (read_samples(path)["proxy"].mean() for path in (samples / "train.parquet",
                                                                     tmp_path / "after.parquet"))  # fmt: skip
    assert later > before
    train(tmp_path / "two")
    assert contents(tmp_path / "one/out") == contents(tmp_path / "two/out")
    with pytest.raises(UsageError, match="rejection.method is `full`"):
        rejection(of("full"), CONFIG, COMPUTE, rows, folders.base, folders.gold, folders.encoded, tmp_path, tmp_path)


# --- what ranks methods: tasks/evaluate/validation.py -----------------------------------------------------------------


def test_a_policy_is_judged_twice_on_the_validation_prompts_that_chose_nothing(made, tmp_path: Path) -> None:
    folders, _ = made
    after = tiny_rlhf.whole(folders.base, tmp_path / "after", 4)
    second = tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(tmp_path / "encoder", 7), tmp_path / "second")
    by = validation.judges(folders.gold, second)
    assert by == (folders.gold, second)

    def judge(policy_folder: Path, out: Path) -> tuple[dict, list[dict]]:
        report = validation.judge_policy(CONFIG, COMPUTE, folders.base, policy_folder, by, folders.encoded, out, "dpo")
        assert json.loads((out / "ranking.json").read_text()) == rounded(report)
        return report, [json.loads(line) for line in (out / "ranking.jsonl").read_text().splitlines()]

    report, lines = judge(after, tmp_path / "one")
    every = policy.read_prompts(folders.encoded, "validation", None).row_ids
    chose, judges = (half.row_ids for half in validation.halves(folders.encoded))
    assert [line["id"] for line in lines] == judges == every[3:] and chose == every[:3]
    for name in ("gold", "second"):
        gains = [line[f"{name}_dpo"] - line[f"{name}_sft"] for line in lines]
        gap = report[name]["difference"]
        assert gap["value"] == pytest.approx(np.mean(gains), abs=1e-5) and gap["low"] < gap["value"] < gap["high"]
    assert [line["gold_dpo"] for line in lines] != [line["second_dpo"] for line in lines]
    assert report["kl"]["value"] == pytest.approx(np.mean([line["kl"] for line in lines]), rel=1e-5)
    assert (report["temperature"], report["max_new_tokens"], report["prompts"]) == (0.05, 3, 3)

    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    report, _ = judge(folders.base, tmp_path / "itself")
    assert report["gold"]["difference"] == nothing == report["second"]["difference"] == report["kl"]


def test_a_second_judge_that_knows_no_positive_is_none(made, tmp_path: Path) -> None:
    folders, _ = made
    (tmp_path / "ajuste.json").write_text(json.dumps({"labels": ["billing", "shipping"]}))
    assert validation.judges(folders.gold, tmp_path).second is None
    with pytest.raises(UsageError, match="is no model folder"):
        validation.judges(folders.gold, tmp_path / "no")


def test_one_validation_prompt_does_both(made, tmp_path: Path) -> None:
    folders, _ = made
    pq.write_table(pq.read_table(folders.encoded / "prompts_validation.parquet").slice(0, 1),
                   tmp_path / "prompts_validation.parquet")  # fmt: skip
    chose, judges = validation.halves(tmp_path)
    assert chose.row_ids == judges.row_ids and len(chose.row_ids) == 1
