"""tasks/evaluate/policy.py: each figure against its definition, paired, the same noise for both, clear refusals."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.learning.rl.rollout import Answers, sample
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder, reward
from tasks.evaluate.policy import Folders, Ledger, evaluate_policy, read_prompts
from tasks.evaluate.ppo import PpoConfig
from tasks.forgetting.scores import ForgettingConfig, forgetting
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.tasks.test_forgetting import BOOLQ, PIQA, TEXTS, write_control

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = PpoConfig(dtype="float32", bootstrap=200, prompts=None, max_new_tokens=6, temperature=0.8, batch_rows=4)
CONTROL = ForgettingConfig(dtype="float32", bootstrap=200, text_rows=None, choice_rows=None, max_tokens=64,
                           batch_tokens=500)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folders, ledger, out, report) of one evaluation."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("ppo")
    base = tiny_decoders.tiny_base(root / "base")
    sft = tiny_rlhf.whole(base, root / "sft", 3)
    adapter = tiny_rlhf.policy(sft, root / "adapter")
    ppo = tiny_rlhf.policy_merged(sft, adapter, root / "ppo")
    judge = tiny_rlhf.reward_merged(sft, tiny_rlhf.reward_adapter(sft, root / "reward_adapter"), root / "reward")
    gold = tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "encoder"), root / "gold")
    card = json.loads((gold / "ajuste.json").read_text())
    accuracy = {"value": 0.75, "low": 0.7, "high": 0.8, "rows": 90}
    (gold / "ajuste.json").write_text(json.dumps(card | {"accuracy_on_ratings": accuracy}))
    encoded = tiny_rlhf.prompts(base, root / "encoded")
    control = write_control(root / "control", [{"text": text} for text in TEXTS], BOOLQ, PIQA)
    forgetting(CONTROL, COMPUTE, base, base, control, root / "before")
    folders = Folders(sft, ppo, judge, gold, encoded)
    ledger = Ledger(CONTROL, base, control, root / "before")
    report = evaluate_policy(CONFIG, COMPUTE, folders, ledger, root / "out", "ppo")
    return folders, ledger, root / "out", report


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_every_figure_is_its_definition(made):
    folders, _, out, report = made
    said = {key: value for key, value in report.items() if key not in ("F", "tokens")}
    assert json.loads((out / "ppo.json").read_text()) == rounded(said)
    lines = lines_of(out)
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines) and report["prompts"] == len(lines)
    for name in ("proxy", "gold"):
        sft, ppo = (np.array([line[f"{name}_{model}"] for line in lines]) for model in ("sft", "ppo"))
        assert report[name]["ppo"]["value"] == pytest.approx(ppo.mean(), abs=1e-5)
        assert report[name]["difference"]["value"] == pytest.approx((ppo - sft).mean(), abs=1e-5)
        gap = report[name]["difference"]
        assert gap["low"] <= gap["value"] <= gap["high"] and gap["low"] < gap["high"]
    kl = np.mean([line["kl"] for line in lines])
    assert report["kl"]["value"] == pytest.approx(kl, rel=1e-5) and report["kl"]["low"] > 0
    assert report["length"]["sft"]["value"] == pytest.approx(np.mean([line["tokens_sft"] for line in lines]))
    assert report["gold"]["accuracy_on_ratings"]["rows"] == 90
    tokens = sum(line["tokens_sft"] + line["tokens_ppo"] for line in lines)
    assert report["tokens"] > tokens
    assert report["distinct2"]["ratio"] == pytest.approx(report["distinct2"]["ppo"] / report["distinct2"]["sft"])


def test_the_scores_are_the_judges_own_words(made):
    folders, _, out, _ = made
    table = pq.read_table(folders.encoded / "prompts_test.parquet").sort_by("row_id").to_pylist()
    lines = lines_of(out)
    judge, judge_tokenizer, card = classifier.load(folders.gold)
    texts = [line["ppo"] for line in lines]
    expected = classifier.predict(judge, judge_tokenizer, card, texts)[:, 1]
    assert [line["gold_ppo"] for line in lines] == pytest.approx(expected.tolist(), abs=1e-6)
    model, tokenizer, _ = decoder.load(folders.after)
    scorer = reward.load(folders.reward)[0]
    stop = chat.end_of_turn(tokenizer)
    generator = torch.Generator().manual_seed(COMPUTE.seed)
    responses = []
    for start in range(0, len(table), CONFIG.batch_rows):
        some = [row["prompt_ids"] for row in table[start : start + CONFIG.batch_rows]]
        drawn = sample(Answers(model), some, CONFIG.max_new_tokens, stop, 0, CONFIG.temperature, generator)
        responses += [row[kept].tolist() for row, kept in zip(drawn.responses, drawn.mask, strict=True)]
    for row, response, line in zip(table, responses, lines, strict=True):
        assert line["ppo"] == row["prefill"] + chat.response_text(tokenizer, response)
        r = reward.score(scorer, [row["prompt_ids"] + response]).item()
        assert line["proxy_ppo"] == pytest.approx(r, rel=1e-5, abs=1e-5)


def test_a_model_beside_itself_differs_in_nothing(made, tmp_path):
    folders, ledger, _, _ = made
    report = evaluate_policy(CONFIG, COMPUTE, replace(folders, after=folders.before), ledger, tmp_path, "ppo")
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert report["proxy"]["difference"] == nothing == report["gold"]["difference"]
    assert report["kl"] == nothing and report["equal"] == 1.0 and report["distinct2"]["ratio"] == 1.0


def test_forgetting_is_that_of_its_own_stage(made, tmp_path):
    folders, ledger, out, report = made
    expected = forgetting(CONTROL, COMPUTE, folders.after, ledger.base, ledger.control, tmp_path, ledger.before)
    assert report["F"] == expected["F"]
    assert (out / "scores.json").read_bytes() == (tmp_path / "scores.json").read_bytes()
    assert pq.read_table(out / "rows.parquet").equals(pq.read_table(tmp_path / "rows.parquet"))


def test_two_runs_write_the_same_bytes(made, tmp_path):
    folders, ledger, out, _ = made
    evaluate_policy(CONFIG, COMPUTE, folders, ledger, tmp_path, "ppo")
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {f.name: f.read_bytes() for f in tmp_path.iterdir()}


def test_responses_of_one_token_are_no_reason_to_stop(made, tmp_path):
    folders, ledger, _, _ = made
    report = evaluate_policy(CONFIG.model_copy(update={"max_new_tokens": 1}), COMPUTE, folders, ledger, tmp_path, "ppo")
    assert report["distinct2"] == {"sft": None, "ppo": None, "ratio": None}
    assert "NaN" not in (tmp_path / "ppo.json").read_text()


def test_what_is_missing_is_named(made, tmp_path):
    folders, ledger, _, _ = made
    for name, message in (("after", "no model folder"), ("reward", "no model folder"), ("gold", "no model folder"),
                          ("encoded", "prompts_test.parquet is missing: run stage `encode_preferences`")):
        with pytest.raises(UsageError, match=message):
            missing = replace(folders, **{name: tmp_path / "no"})
            evaluate_policy(CONFIG, COMPUTE, missing, ledger, tmp_path / "out", "ppo")
    with pytest.raises(UsageError, match="holds no reward model"):
        evaluate_policy(CONFIG, COMPUTE, replace(folders, reward=folders.before), ledger, tmp_path / "out", "ppo")
    other = tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(tmp_path / "e"), tmp_path / "gold")
    card = json.loads((other / "ajuste.json").read_text())
    (other / "ajuste.json").write_text(json.dumps(card | {"labels": ["bad", "good"]}))
    with pytest.raises(UsageError, match=r"has labels bad, good: a gold score is P\(positive\)"):
        evaluate_policy(CONFIG, COMPUTE, replace(folders, gold=other), ledger, tmp_path / "out", "ppo")


def test_no_prompt_left_is_said(tmp_path):
    empty = pa.table({"row_id": pa.array([], pa.string()), "prompt_ids": pa.array([], pa.list_(pa.int32())),
                      "prefill": pa.array([], pa.string()), "prefill_tokens": pa.array([], pa.int32())})
    pq.write_table(empty, tmp_path / "prompts_test.parquet")
    with pytest.raises(DataError, match="no test row of the preferences is left"):
        read_prompts(tmp_path, "test", None)
