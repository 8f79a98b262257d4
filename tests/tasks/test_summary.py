"""The summary: the lecture's table, chosen on validation, same bytes every time; a missing input is named."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.alignment import ledger
from tasks.summary import Decoder, Rlhf, SummaryConfig, summarise
from tests.made import ledgers, tiny_rlhf
from tests.tracking import rlhf

LABELS = ["negative", "positive"]
TEST_ROWS = [("aa", 0), ("bb", 1), ("cc", 1)]
PREDICTED = {"frozen": [0, 0, 1], "full": [0, 1, 1], "lora": [1, 1, 1]}
VALIDATION = {"frozen": 0.70, "full": 0.81, "lora": 0.82}
TRAINABLE = {"frozen": 770, "full": 1_000_000, "lora": 12_000}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def model(folder: Path, strategy: str) -> None:
    write(
        folder / "ajuste.json",
        {
            "strategy": strategy,
            "pooling": "cls",
            "labels": LABELS,
            "parameters": {
                "total": 1_000_770,
                "trainable": TRAINABLE.get(strategy, 5),
                "share": TRAINABLE.get(strategy, 5) / 1_000_770,
            },
            "validation": {"loss": 0.4, "accuracy": VALIDATION.get(strategy), "macro_f1": VALIDATION.get(strategy)},
        },
    )
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    lines = [{"step": 10, "loss": 0.7123456789, "lr": 1e-5}, {"step": 20, "loss": 0.5}, {"step": 20, "eval_loss": 0.6}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def made(tmp_path: Path) -> dict:
    """The folders of a finished run in miniature."""
    write(tmp_path / "validated/validation.json", {"checks": [], "rows": {"test": 3}})
    write(tmp_path / "encoded/encoding.json", {"max_tokens": 8})
    models = {strategy: tmp_path / f"merged/{strategy}" for strategy in PREDICTED}
    for strategy, folder in models.items():
        model(folder, strategy)
        write(
            tmp_path / f"evaluated/{strategy}.json",
            {
                "accuracy": {"value": 2 / 3, "low": 0.1, "high": 0.9},
                "macro_f1": {"value": 0.6, "low": 0.1, "high": 0.9},
                "confusion": [[1, 0], [1, 1]],
                "labels": LABELS,
                "rows": 3,
                "slices": {},
            },
        )
    write(models["lora"] / "proof.json", {"max_logit_difference": 3e-7, "equal_predictions": 1.0})
    model(tmp_path / "adapter", "lora")
    rows = [
        {"row_id": row_id, "label": label, "strategy": strategy, "prediction": predicted[i]}
        for strategy, predicted in PREDICTED.items()
        for i, (row_id, label) in enumerate(TEST_ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "evaluated/predictions.parquet")
    chat = tmp_path / "chat"
    write(chat / "validated/validation.json", {"rows": {"read": 9, "kept": 8}})
    write(chat / "encoded/encoding.json", {"dropped": 0})
    model(chat / "model", "lora")
    card = json.loads((chat / "model/ajuste.json").read_text())
    write(chat / "model/ajuste.json", card | {"method": "lora", "validation": {"loss": 1.2, "perplexity": 3.3}})
    write(chat / "model/proof.json", {"max_logit_difference": 2e-6})
    loss = {"base": {"loss": {"value": 1.6}}, "instruct": {"loss": {"value": 1.4}}}
    write(chat / "evaluated/instruct.json", {"held_out": loss})
    sets = {"boolq": {"task": "choice", "value": 0.6, "low": 0.5, "high": 0.7, "rows": 100}}
    write(chat / "forgetting_base/scores.json", {"sets": sets})
    forgotten = {"boolq": {"value": 0.01, "low": -0.02, "high": 0.04}}
    write(chat / "forgetting_instruct/scores.json", {"sets": sets, "F": forgotten})
    decoder = Decoder(
        validated=chat / "validated",
        encoded=chat / "encoded",
        model=chat / "model",
        evaluated=chat / "evaluated",
        forgetting=(chat / "forgetting_base", chat / "forgetting_instruct"),
    )
    alignment = {name: chat / "alignment" / name for name in ("base", "instruct", "ppo", "dpo")}
    for name, folder in alignment.items():
        ledgers.write_made(folder / ledger.FILE, name, attacks=20 if name == "base" else 40)
    return {
        "alignment": alignment,
        "decoder": decoder,
        "rlhf": make_rlhf(tmp_path / "rlhf"),
        "validated": tmp_path / "validated",
        "encoded": tmp_path / "encoded",
        "models": models,
        "adapters": {"lora": tmp_path / "adapter"},
        "evaluated": tmp_path / "evaluated",
        "out": tmp_path / "metrics",
    }


def make_rlhf(root: Path) -> Rlhf:
    """The small files of RLHF, and weights that are only bytes."""
    write(root / "validated/validation.json", {"set": "ratings", "rows": {"read": 50}})
    write(root / "validated/quality.json", {"humans": [{"margin": 1.5, "one_against_rest": 0.9}]})
    write(root / "encoded/encoding.json", {"set": "ratings", "max_tokens": 96})
    for name in ("reward", "ppo", "dpo"):
        for folder, weights in (("adapters", "adapter_model"), ("merged", "model")):
            model(root / folder / name, name)
            (root / folder / name / "model.safetensors").rename(root / folder / name / f"{weights}.safetensors")
        write(root / "merged" / name / "proof.json", {"max_logit_difference": 1e-6})
    card = json.loads((root / "adapters/reward/ajuste.json").read_text())
    card |= {"set": "ratings", "method": "lora", "normalisation": {"gain": 2}}
    write(root / "adapters/reward/ajuste.json", card)
    card = json.loads((root / "adapters/dpo/ajuste.json").read_text())
    write(root / "adapters/dpo/ajuste.json", card | {"loss": "sigmoid", "beta": 0.1})
    rlhf.evaluate_reward(root / "adapters/reward")
    tiny_rlhf.curves(root / "adapters/ppo")
    rlhf.evaluate_policy(root / "evaluated")
    tiny_rlhf.direct_curves(root / "adapters/dpo")
    rlhf.evaluate_reward(root / "adapters/dpo")
    rlhf.evaluate_policy(root / "evaluated_dpo", method="dpo")
    return Rlhf(
        validated=root / "validated",
        encoded=root / "encoded",
        reward=(root / "adapters/reward", root / "merged/reward"),
        policy=(root / "adapters/ppo", root / "merged/ppo"),
        evaluated=root / "evaluated",
        direct=(root / "adapters/dpo", root / "merged/dpo"),
        direct_evaluated=root / "evaluated_dpo",
    )


def summary(made: dict) -> dict:
    return summarise(SummaryConfig(), **made)


def test_table_has_quality_parameters_and_sizes_and_no_times(made):
    row = summary(made)["strategies"]["lora"]
    assert row["accuracy"]["low"] == 0.1
    assert row["parameters"]["trainable"] == 12_000
    assert row["artefact_bytes"] == sum(p.stat().st_size for p in made["models"]["lora"].iterdir())
    assert row["adapter_bytes"] == sum(p.stat().st_size for p in made["adapters"]["lora"].iterdir())
    text = "".join(path.read_text() for path in made["out"].iterdir())
    assert not any(word in text for word in ("seconds", "peak_memory", str(made["out"].parent)))


def test_the_best_is_chosen_on_validation_and_ties_go_to_fewer_parameters(made):
    assert summary(made)["best_on_validation"] == "lora"  # although `full` is right on every test row
    for strategy in ("full", "lora"):
        folder = made["adapters"].get(strategy, made["models"][strategy])
        card = json.loads((folder / "ajuste.json").read_text())
        card["validation"]["macro_f1"] = 0.9
        write(folder / "ajuste.json", card)
    assert summary(made)["best_on_validation"] == "lora"


def test_confusion_rows_count_up_to_the_matrix(made):
    summary(made)
    rows = list(csv.DictReader((made["out"] / "confusion.csv").open()))
    assert [row["actual"] for row in rows] == ["negative", "positive", "positive"]  # by row id
    for strategy, predicted in PREDICTED.items():
        assert [LABELS.index(row[strategy]) for row in rows] == predicted


def test_curves_are_wide_with_nan_for_no_point_and_rounded(made):
    summary(made)
    rows = list(csv.DictReader((made["out"] / "curves.csv").open()))
    assert [row["step"] for row in rows] == [*map(str, range(1, 7)), "10", "20"]  # six updates of PPO
    assert rows[-2]["lora_train_loss"] == "0.712346" and rows[-2]["lora_validation_loss"] == "nan"
    assert rows[-1]["full_validation_loss"] == "0.6"


def test_a_small_difference_of_the_proof_is_not_rounded_to_zero(made):
    summary(made)
    assert json.loads((made["out"] / "merge.json").read_text())["lora"]["max_logit_difference"] == 3e-7


def test_two_runs_write_the_same_bytes(made):
    summary(made)
    first = {path.name: path.read_bytes() for path in made["out"].iterdir()}
    summary(made)
    assert first == {path.name: path.read_bytes() for path in made["out"].iterdir()}
    assert set(first) == {
        "data.json", "classify.json", "instruct.json", "reward.json", "ppo.json", "dpo.json", "forgetting.json",
        "alignment.json", "merge.json", "curves.csv", "confusion.csv",
    }  # fmt: skip


def test_the_decoder_stands_beside_its_base(made):
    summary(made)
    instruct = json.loads((made["out"] / "instruct.json").read_text())
    assert instruct["held_out"]["instruct"]["loss"]["value"] == 1.4
    assert instruct["method"] == "lora" and instruct["validation"]["perplexity"] == 3.3
    forgetting = json.loads((made["out"] / "forgetting.json").read_text())
    assert forgetting["F"]["boolq"]["value"] == 0.01 and forgetting["base"]["boolq"]["rows"] == 100
    assert json.loads((made["out"] / "merge.json").read_text())["instruct"]["max_logit_difference"] == 2e-6
    assert "instruct_train_loss" in (made["out"] / "curves.csv").read_text()


def test_reward_model_and_ppo_are_summed_up(made):
    summary(made)
    folder = made["out"]
    reward = json.loads((folder / "reward.json").read_text())
    assert reward["accuracy"]["value"] == 0.75 and reward["by_margin"][2]["one_against_rest"] == 0.875
    assert reward["set"] == "ratings" and reward["adapter_bytes"] == sum(
        path.stat().st_size for path in made["rlhf"].reward[0].iterdir())
    ppo = json.loads((folder / "ppo.json").read_text())
    assert ppo["gold"]["difference"]["low"] == 0.05 and ppo["kl"]["value"] == 3.5
    assert ppo["updates"] == 6 and ppo["alarms"] == [] and [row["update"] for row in ppo["radar"]] == [0, 2, 4, 6]
    forgetting = json.loads((folder / "forgetting.json").read_text())
    assert forgetting["F_ppo"]["general"]["value"] == 0.15 and "boolq" in forgetting["ppo"]
    data = json.loads((folder / "data.json").read_text())
    assert data["preferences"]["quality"]["humans"][0]["margin"] == 1.5 and data["preferences"]["rows"]["read"] == 50
    assert {"reward", "ppo"} < json.loads((folder / "merge.json").read_text()).keys()
    rows = list(csv.DictReader((folder / "curves.csv").open()))
    assert {row["step"]: row["ppo_kl"] for row in rows}["3"] == "2.4" and rows[0]["lora_train_loss"] == "nan"
    assert "reward_train_loss" in rows[0] and "ppo_train_loss" not in rows[0]


def test_dpo_is_summed_up_with_its_pairs_and_its_curves(made):
    summary(made)
    dpo = json.loads((made["out"] / "dpo.json").read_text())
    assert dpo["gold"]["difference"]["low"] == 0.05 and dpo["pairs"]["by_margin"][2]["accuracy"]["value"] == 0.85
    assert (dpo["steps"], dpo["alarms"], dpo["loss"], dpo["beta"]) == (6, [], "sigmoid", 0.1)
    forgetting = json.loads((made["out"] / "forgetting.json").read_text())
    assert forgetting["F_dpo"]["general"]["value"] == 0.15 and "boolq" in forgetting["dpo"]
    assert "dpo" in json.loads((made["out"] / "merge.json").read_text())
    rows = {row["step"]: row for row in csv.DictReader((made["out"] / "curves.csv").open())}
    assert rows["2"]["dpo_chosen"] == "-3.1" and rows["2"]["dpo_validation_chosen"] == "nan"
    assert rows["3"]["dpo_validation_rejected"] == "-3.3" and rows["3"]["dpo_margin"] == "0.15"


def test_the_ledgers_are_summed_up_without_their_details_and_units(made):
    summary(made)
    found = json.loads((made["out"] / "alignment.json").read_text())
    assert list(found) == ["base", "dpo", "instruct", "ppo"]
    assert (found["base"]["attack_success.direct"]["value"], found["ppo"]["attack_success.direct"]["value"]) == (
        0.333333, 0.666667)  # fmt: skip
    score = found["ppo"]["attack_success.direct"]
    assert score["judge"] == "rules 1" and score["n"] == 60 and score["corrected"]["value"] == 0.7
    assert "units" not in score and "attack_success.direct.fraud" not in found["ppo"]
    (made["alignment"]["ppo"] / ledger.FILE).unlink()
    with pytest.raises(DataError, match="ppo/alignment.json is missing: `dvc repro alignment_ppo`"):
        summary(made)


@pytest.mark.parametrize(
    "missing",
    [
        "evaluated/full.json",
        "merged/lora/proof.json",
        "adapter/history.jsonl",
        "evaluated/predictions.parquet",
        "validated/validation.json",
        "chat/evaluated/instruct.json",
        "chat/forgetting_base/scores.json",
        "rlhf/adapters/reward/evaluation.json",
        "rlhf/adapters/ppo/radar.json",
        "rlhf/evaluated/scores.json",
        "rlhf/adapters/dpo/evaluation.json",
        "rlhf/evaluated_dpo/dpo.json",
        "rlhf/validated/quality.json",
    ],
)
def test_a_missing_input_is_named(made, missing):
    path = made["out"].parent / missing
    path.unlink()
    with pytest.raises(UsageError, match=str(path)):
        summary(made)


def test_a_broken_json_is_named_with_its_line(made):
    path = made["evaluated"] / "full.json"
    path.write_text('{"accuracy":\n oops}')
    with pytest.raises(UsageError, match="full.json line 2"):
        summary(made)
