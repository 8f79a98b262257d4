"""What stands around the loop (tasks/rl/policy.py), beside stand-ins: what each part is told, refuses, writes and says.

The same on real folders, slower: tests/tasks/test_ppo.py and test_grpo.py.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.models.one_base import OneBase, Settings
from tasks.rl import policy
from tasks.rl.policy import Made, read_prompts
from tasks.rl.scores import practice
from tests.made.tiny_ppo import config, tiny_one

torch.set_num_threads(1)
COMPUTE = Compute(dtype="float32", device="cpu", threads=2, seed=17)
SETTINGS = Settings(r=4, alpha=8.0, value="none")


class Calls(list):
    """Stand-ins that note how they were called and give what they were told to."""

    def of(self, name: str, gives: object = None) -> Any:
        return lambda *args, **more: self.append((name, *args, *([more] if more else []))) or gives


def made(score: str = "reward", settings: Settings = SETTINGS, **keys: object) -> Made:
    section = config(**{"temperature": 0.7, "max_new_tokens": 5, "micro_rows": 3, "updates": 2, **keys})
    return Made(section, SimpleNamespace(name="grpo"), settings, score, "bfloat16", 3)


def refused(call: Any, kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# --- the training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "ptx"), [("reward", 0.0), ("rules", 0.5)])
def test_who_is_told_what(score: str, ptx: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, it = Calls(), made(score, ptx=ptx)
    one = SimpleNamespace(save_policy=calls.of("save"))
    held_out = {"row_id": ["a", "b", "c"], "prompt_ids": [[1], [2], [3]], "prefill": ["x", "y", "z"]}
    asked = policy._Asked([[7]], held_out, "score", "judge")
    done = SimpleNamespace(kept=2, tokens=33, seconds={"learn": 1.0}, alarms=["alarm"], history=["row"])
    looks = iter((("before", []), ({"update": 2, "kl": 1.5}, [])))

    class Radar(tuple):
        def __new__(cls, *args: object) -> "Radar":
            calls.append(("radar", *args))
            return super().__new__(cls, args)

        def look(self, *args: object) -> tuple:
            calls.append(("look", self[2], *args))
            return next(looks)

    for name, gives in (("seed_everything", None), ("_models", (one, "identity")), ("_gold", "gold"),
                        ("load_tokenizer", "tokenizer"), ("_asked", asked), ("ptx_loss", "extra"), ("_write", None),
                        ("_parameters", "counted"), ("read_card", {"max_tokens": 64})):  # fmt: skip
        monkeypatch.setattr(policy, name, calls.of(name, gives))
    monkeypatch.setattr(policy, "Radar", Radar)
    monkeypatch.setattr(policy.chat, "end_of_turn", calls.of("end_of_turn", [2]))
    monkeypatch.setattr(policy.loop, "train", calls.of("train", done))
    monkeypatch.setattr(policy.world, "first_goes_on", calls.of("first_goes_on"))
    found = policy.train_policy(it, COMPUTE, Path("art"), Path("out"), Path("check"))
    card = {"kind": "decoder", "method": "grpo", "strategy": "grpo", "base": "identity", "parameters": "counted",
            "validation": {"update": 2, "kl": 1.5}, "max_tokens": 64, "dtype": "bfloat16", "mergeable": True,
            "quantisation": None}  # fmt: skip
    assert found == {**card, "tokens": 33, "seconds": {"learn": 1.0}, "alarms": ["alarm"], "history": ["row"]}
    by_name = {name: [call[1:] for call in calls if call[0] == name] for name, *_ in calls}
    base = Path("art/merged/instruct")
    assert calls[0] == ("seed_everything", 17, 2)
    assert by_name["_models"] == [(it, base, Path("art/adapters/reward"), COMPUTE)]
    assert by_name.get("_gold", []) == ([(Path("art/merged/gold"),)] if score == "reward" else [])
    assert by_name["load_tokenizer"] == by_name["read_card"] == [(base,)] and by_name["_parameters"] == [(one,)]
    gold = "gold" if score == "reward" else None
    assert by_name["_asked"] == [(it, one, "tokenizer", Path("art/encoded/preferences"), gold)]
    told = ("tokenizer", "judge", 5, 0.7, 3, 17)
    assert by_name["radar"] == [(one, "score", ["a", "b"], [[1], [2]], ["x", "y"], *told),
                                (one, "score", ["c"], [[3]], ["z"], *told)]  # fmt: skip
    assert by_name["look"] == [(["c"], 0, None), (["c"], 2, "before")]
    extra = [(one, Path("art/encoded/instructions"), 17)] if ptx else []
    assert by_name.get("ptx_loss", []) == extra and by_name["end_of_turn"] == [("tokenizer",)]
    (trained,) = by_name["train"]
    assert trained[:-2] == (one, it.algorithm, [[7]], "score", it.config, 17, Path("check"), [2])
    assert trained[-2].__self__[2] == ["a", "b"] and trained[-2].__name__ == "look"
    assert trained[-1] == ("extra" if ptx else None)
    assert by_name["save"] == [("tokenizer", Path("out"), card)]
    assert by_name["_write"] == [(done, one, Path("out"), Path("check"))] and "first_goes_on" in by_name


@pytest.mark.parametrize("name", ["_models", "_gold"])
def test_what_a_model_or_a_judge_refuses_is_said_of_the_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*args: object) -> None:
        raise ValueError("does not fit")

    for part in ("_models", "_gold"):
        monkeypatch.setattr(policy, part, raises if part == name else lambda *args: (None, None))
    monkeypatch.setattr(policy, "seed_everything", lambda *args: None)
    assert refused(lambda: policy.train_policy(made(), COMPUTE, *[Path("x")] * 3)) == "grpo: does not fit"


def models(monkeypatch: pytest.MonkeyPatch, it: Made, sha256: str = "same") -> tuple[object, Calls]:
    calls = Calls()
    one = SimpleNamespace(to=calls.of("to", "moved"))
    monkeypatch.setattr(policy.decoder, "is_adapter", calls.of("is_adapter", False))
    monkeypatch.setattr(policy.decoder, "identity_of", calls.of("identity_of", {"sha256": "same"}))
    monkeypatch.setattr(policy, "read_card", calls.of("read_card", {"base": {"sha256": sha256}}))
    monkeypatch.setattr(policy.OneBase, "build", calls.of("build", one))
    return policy._models(it, Path("base"), Path("reward"), COMPUTE), calls


@pytest.mark.parametrize(("score", "start", "rewarded"), [("reward", "zero", True), ("rules", "zero", False),
                                                          ("rules", "reward", True)])  # fmt: skip
def test_a_reward_model_is_read_where_it_is_needed(
    score: str, start: str, rewarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = made(score, SETTINGS._replace(value_start=start))
    found, calls = models(monkeypatch, it)
    reward = Path("reward") if rewarded else None
    assert found == ("moved", {"sha256": "same"})
    assert calls[:2] == [("is_adapter", Path("base")), ("identity_of", Path("base"))]
    assert calls[2:-2] == ([("read_card", Path("reward"))] if rewarded else [])
    assert calls[-2:] == [("build", Path("base"), reward, it.settings, torch.bfloat16), ("to", "cpu")]


def test_models_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(lambda: models(monkeypatch, made(), "other"), ValueError)
    assert said == "reward was trained on another base than base: run stage `reward` again"
    models(monkeypatch, made("rules"), "other")  # then nobody reads it
    monkeypatch.setattr(policy.decoder, "is_adapter", lambda folder: True)
    monkeypatch.setattr(policy.methods, "MERGEABLE", {"rslora", "lora"})
    said = refused(lambda: policy._models(made(), Path("base"), Path("reward"), COMPUTE))
    assert said == ("base holds an adapter, and GRPO needs a whole model: set `instruct.method` to one that can be "
                    "merged (lora, rslora) or to full")  # fmt: skip


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "score"), [("reward", "its own"), ("model:there", "a model's"),
                                            ("a.py:f", "a function's")])  # fmt: skip
def test_prompts_of_the_preferences_and_who_pays_for_them(
    key: str, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64), device="here")
    one = SimpleNamespace(model=model, scores="its own")
    monkeypatch.setattr(policy, "read_prompts", calls.of("read", {"prompt_ids": [[1]], "more": [2]}))
    monkeypatch.setattr(policy, "by_model", calls.of("model", "a model's"))
    monkeypatch.setattr(policy.scores, "own", calls.of("own", "a function's"))
    found = policy._asked(made(key), one, "tokenizer", Path("encoded"), "gold")
    assert found == ([[1]], {"prompt_ids": [[1]], "more": [2]}, score, "gold")
    assert calls[:2] == [("read", Path("encoded"), "train", 59, {"method": "grpo"}),
                         ("read", Path("encoded"), "validation", 59, 6, "grpo")]  # fmt: skip
    paid = {"reward": [], "model:there": [("model", key, "tokenizer", torch.bfloat16, "here")],
            "a.py:f": [("own", key, "tokenizer")]}  # fmt: skip
    assert calls[2:] == paid[key]


def test_prompts_of_rules_are_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, rows = Calls(), {split: [SimpleNamespace(id=f"{split}{i}", prompt=f"{split} {i}") for i in range(8)]
                            for split in ("train", "validation")}  # fmt: skip
    monkeypatch.setattr(practice, "read", lambda folder, split: calls.append(folder) or rows[split])
    monkeypatch.setattr(policy.chat, "prompt_ids", lambda tokenizer, messages: (tokenizer, messages))
    monkeypatch.setattr(policy.scores, "by_rules", calls.of("rules", "score"))
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64))
    found = policy._asked(made("rules"), SimpleNamespace(model=model), "tokenizer", Path("encoded"), "gold")
    ids = {split: [("tokenizer", [{"role": "user", "content": row.prompt}]) for row in some]
           for split, some in rows.items()}  # fmt: skip
    assert found.prompts == ids["train"] and found.score == "score" and found.gold is None
    assert found.held_out == {"row_id": [f"validation{i}" for i in range(6)], "prompt_ids": ids["validation"][:6],
                              "prefill": [""] * 6}  # fmt: skip
    both = (rows["train"] + rows["validation"], ids["train"] + ids["validation"], "tokenizer")
    assert calls == [Path("sources/rules")] * 2 + [("rules", *both)]


def test_prompts_are_read_by_row_and_by_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(lambda: read_prompts(Path("in"), "test", 4)) == (
        "in/prompts_test.parquet is missing: run stage `encode_preferences`")
    rows = [{"row_id": name, "prompt_ids": ids, "prefill": name.upper(), "source": "tiny"}
            for name, ids in (("d", [1, 2, 3]), ("a", [5]), ("c", []), ("b", [6, 7]), ("e", [8, 9]))]  # fmt: skip
    Path("in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), "in/prompts_test.parquet")
    for room, number, names in ((3, None, "abde"), (2, None, "abe"), (2, 2, "ab"), (1, 3, "a")):
        found = read_prompts(Path("in"), "test", room, number)
        ids = {row["row_id"]: row["prompt_ids"] for row in rows}
        assert found == {"row_id": list(names), "prompt_ids": [ids[name] for name in names],
                         "prefill": list(names.upper())}  # fmt: skip
    for method, more in (("ppo", ()), ("rloo", (None, "rloo"))):
        said = refused(lambda more=more: read_prompts(Path("in"), "test", 0, *more), DataError)
        assert said == (
            "in/prompts_test.parquet: none of its 5 prompts is left, each has to fit 0 tokens beside a response: add "
            f"shorter prompts to the set, or make `{method}.max_new_tokens` smaller"
        )


@pytest.mark.parametrize(("rows", "first", "second"), [("abcd", "ab", "cd"), ("abc", "ab", "c"), ("a", "a", "a")])
def test_one_half_chooses_and_the_other_judges(rows: str, first: str, second: str) -> None:
    def of(names: str) -> dict[str, list]:
        return {"row_id": list(names), "prefill": [name.upper() for name in names]}

    assert policy.halves(of(rows)) == (of(first), of(second))


@pytest.mark.parametrize(("labels", "column"), [(["positive", "negative", "neutral"], 0), (["bad", "fair", "good"], 2)])
def test_gold_is_the_chance_of_positive_or_of_the_last_label(
    labels: list[str], column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, table = Calls(), torch.arange(6.0).view(2, 3)
    monkeypatch.setattr(policy.classifier, "load", calls.of("load", ("model", "tokenizer", {"labels": labels})))
    monkeypatch.setattr(policy.classifier, "predict", calls.of("predict", table))
    assert policy._gold(Path("gold"))(["x", "y"]).tolist() == table[:, column].tolist()
    assert calls == [("load", Path("gold")), ("predict", "model", "tokenizer", {"labels": labels}, ["x", "y"])]


def test_the_extra_loss_is_that_of_the_rows_at_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows, so positions 2 to 4 go over the end of a pass; the expected loss is a row at a time."""
    rows = [([5, 6, 7], [-100, -100, 7]), ([8, 9, 10, 11], [-100, 9, 10, 11]), ([12, 13], [-100, 13])]
    calls, one = Calls(), tiny_one(value="none")
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_B.policy" in name:
                parameter.normal_(std=0.3)
    monkeypatch.setattr(policy, "read_conversations", calls.of("read", rows))
    loss = policy.ptx_loss(one, Path("encoded"), 17)
    assert calls == [("read", Path("encoded"), "train")]
    for positions in (range(2), range(2, 5)):
        chosen = [int(np.random.default_rng([17, p // 3]).permutation(3)[p % 3]) for p in positions]
        total, items = torch.zeros(()), 0
        with one.using("policy"):
            for ids, labels in (rows[i] for i in chosen):
                log_p = F.log_softmax(one.model(torch.tensor([ids])).logits[0], -1)
                places = [t for t in range(1, len(ids)) if labels[t] != -100]
                total = total - sum(log_p[t - 1, ids[t]] for t in places)
                items += len(places)
        found, counted = loss(positions)
        assert found.item() == pytest.approx(total.item(), rel=1e-5) and counted == items
        assert found.requires_grad


# --- what is written and said -----------------------------------------------------------------------------------------


def test_what_stands_beside_the_policy(tmp_path: Path) -> None:
    state = {"policy.layer.A": torch.ones(2), "value_head.weight": torch.zeros(1, 3), "policy_2": torch.ones(1)}
    radar = [{"update": 0, "rows": {}, "kl": 0.0}, {"update": 2, "rows": {}, "kl": 1.23456789}]
    done = SimpleNamespace(radar=radar, kept=2, alarms=[{"update": 1}], samples=[{"id": "a"}, {"id": "b"}],
                           history=[{"step": 1, "kl": 0.123456789}])  # fmt: skip
    out, checkpoints = tmp_path / "out", tmp_path / "check"
    out.mkdir()
    policy._write(done, SimpleNamespace(trainable_state=lambda: state), out, checkpoints)
    assert load_file(out / "value.safetensors").keys() == {"value_head.weight", "policy_2"}
    assert json.loads((out / "radar.json").read_text()) == [{"update": 0, "kl": 0.0, "kept": False},
                                                            {"update": 2, "kl": 1.23457, "kept": True}]  # fmt: skip
    assert json.loads((out / "alarms.json").read_text()) == [{"update": 1}]
    assert (out / "samples.jsonl").read_text() == '{"id": "a"}\n{"id": "b"}\n'
    assert (out / "history.jsonl").read_text() == '{"step": 1, "kl": 0.123457}\n' and not (out / "flight").exists()
    (checkpoints / "flight").mkdir(parents=True)
    (checkpoints / "flight/update-0001.json").write_text("{}")
    (out / "value.safetensors").unlink()
    alone = SimpleNamespace(trainable_state=lambda: {"policy.layer.A": torch.ones(2)})
    for _ in range(2):  # what is there already is written over
        policy._write(done, alone, out, checkpoints)
    assert (out / "flight/update-0001.json").read_text() == "{}" and not (out / "value.safetensors").exists()


def test_parameters_are_those_of_base_and_policy() -> None:
    one = tiny_one(value="adapter")
    base = sum(p.numel() for name, p in one.model.named_parameters() if ".lora_" not in name)
    policys = sum(p.numel() for name, p in one.model.named_parameters() if "lora_" in name and ".policy." in name)
    assert isinstance(one, OneBase) and policys > 100
    assert policy._parameters(one) == {"total": base + policys, "trainable": policys,
                                       "share": policys / (base + policys)}  # fmt: skip


def gains(name: str, value: float) -> dict:
    return {name: {"value": value}, f"{name}_gain": {"value": value / 2, "low": value / 4, "high": value}}


def test_the_kept_update_is_told_flat_and_in_a_line() -> None:
    row = {"update": 4, "kl": 1.256, "length": 9.0, **gains("gold", 0.5), **gains("proxy", 2.0)}
    found = policy._validation(row)
    assert list(found.items()) == [
        ("update", 4), ("kl", 1.256), ("proxy", 2.0), ("proxy_gain", 1.0), ("proxy_gain_low", 0.5),
        ("proxy_gain_high", 2.0), ("gold", 0.5), ("gold_gain", 0.25), ("gold_gain_low", 0.125), ("gold_gain_high", 0.5),
    ]  # fmt: skip
    done = {"validation": found, "history": [1, 2, 3], "alarms": [1]}
    assert policy.said(done) == (
        "3 updates, kept 4: on validation prompts proxy +1.000 [+0.500, +2.000], gold +0.250 [+0.125, +0.500], "
        "KL 1.26 nats a response, 1 alarms")  # fmt: skip
    alone = policy._validation({"update": 1, "kl": 0.0, **gains("proxy", -2.0)})
    assert policy.said({"validation": alone, "history": [], "alarms": []}) == (
        "0 updates, kept 1: on validation prompts proxy -1.000 [-0.500, -2.000], KL 0.00 nats a response, 0 alarms")
