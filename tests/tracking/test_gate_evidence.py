"""What each family is compared with: evaluations are stand-ins, the rest is the gate's own."""

import json
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.tracking.registry.families import policies, sft
from ajuste.tracking.registry.families.ppo import PPO
from ajuste.tracking.registry.families.reward import REWARD
from ajuste.tracking.registry.families.sft import SFT
from ajuste.tracking.registry.version import Version
from ajuste.tracking.verdicts import evidence as gathering

PAIR = {"te1": (1.0, 1.0), "te2": (0.5, 1.0)}


def version(number: str, method: str, name: str = "assistant", **tags: str) -> Version:
    return Version(name, number, None, None, {"method": method, "test_rows": "today", "evaluate_run": number, **tags},
                   "run")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict]]:
    """answers.jsonl by run."""
    found: dict[str, list[dict]] = {}
    monkeypatch.setattr(policies, "lines", lambda run, name: found.get(run, []))
    return found


def test_ppo_is_compared_by_gold_on_the_same_prompts(lines: dict) -> None:
    lines["2"] = [{"id": f"p{i}", "gold_ppo": 0.7, "gold_sft": 0.5} for i in range(3)]
    lines["4"] = [{"id": f"p{i}", "gold_ppo": 0.6, "gold_sft": 0.5} for i in range(3)]
    tuned = version("2", "ppo", base_version="assistant/1", **{"judge.gold": "md5"})
    own = PPO.recorded(tuned)
    base = PPO.before(tuned, own, "today")
    assert {value for value, _ in base.others.values()} == {0.5}
    assert {value for value, _ in base.own.values()} == {0.7} and "assistant/1" in base.other
    against = PPO.beside(tuned, version("1", "sft"), own)
    assert against.others == base.others, "the champion is the version that it was made from"
    against = PPO.beside(tuned, version("4", "ppo", **{"judge.gold": "md5"}), own)
    assert {value for value, _ in against.others.values()} == {0.6}
    for champion, said in ((version("3", "sft"), "no gold score"),
                           (version("4", "ppo", **{"judge.gold": "other"}), "another gold scorer")):
        assert said in PPO.beside(tuned, champion, own).problem


def test_sft_beside_its_base_and_champions_that_do_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [{"row_id": "te1", "tokens": 10, "base": 24.0, "instruct": 20.0}]
    monkeypatch.setattr(sft, "table", lambda run, name: table)
    challenger = version("3", "sft", tokenizer_sha256="a", template_sha256="b", base_sha256="c")
    own, problem = gathering._results(challenger, SFT, "today")
    assert not problem and own == {"te1": (20.0, 10.0)}
    assert gathering._base(challenger, SFT, own, "today").others == {"te1": (24.0, 10.0)}
    same = version("1", "sft", tokenizer_sha256="a", template_sha256="b")
    assert gathering._champion(challenger, same, SFT, own, "today").others == own
    for champion, said in ((version("1", "sft", tokenizer_sha256="x", template_sha256="b"), "another tokenizer"),
                           (version("1", "sft", tokenizer_sha256="a", template_sha256="x"), "another chat template"),
                           (version("1", "ppo", tokenizer_sha256="a", template_sha256="b"), "made with PPO")):
        assert said in gathering._champion(challenger, champion, SFT, own, "today").problem


def test_a_base_that_is_not_here_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    challenger = version("3", "sft", base_sha256="c" * 64)
    challenger.tags["test_rows"] = "another day"
    gathering.BASE.mkdir(parents=True)
    (gathering.BASE / "base.json").write_text(json.dumps({"sha256": "d" * 64}))
    assert "is not the one in artifacts/base/decoder" in gathering._base(challenger, SFT, PAIR, "today").problem
    (gathering.BASE / "base.json").write_text(json.dumps({"sha256": "c" * 64}))
    monkeypatch.setattr(gathering, "scored", lambda family, folder, sha256, today: {"te1": (3.0, 1.0)})
    assert gathering._base(challenger, SFT, PAIR, "today").others == {"te1": (3.0, 1.0)}


def test_a_reward_model_is_held_against_a_coin() -> None:
    base = gathering._base(version("1", "reward", "ratings-reward"), REWARD, PAIR, "today")
    assert base.others == {"te1": (0.5, 1.0), "te2": (0.5, 1.0)} and base.own == PAIR


def test_forgetting_proof_and_unknown_methods() -> None:
    tags = {"forgetting.c4": "-0.1", "forgetting.c4.low": "-0.2", "forgetting.c4.high": "0.05", "forgetting.piqa": "0"}
    assert gathering._forgetting(version("1", "ppo", **tags), PPO) == {"c4": 0.05, "piqa": None}
    assert gathering._forgetting(version("1", "reward"), REWARD) is None
    proof = {"proof.max_logit_difference": "1e-6", "proof.tolerance": "0.0001"}
    assert gathering._proof(version("1", "sft", **proof)) == {"difference": 1e-6, "tolerance": 1e-4}
    assert gathering._proof(version("1", "sft", adapter_version="1")) == {"difference": None, "tolerance": None}
    assert gathering._proof(version("1", "sft", adapter_version="1", **{"proof.merged": "false"})) is None
    assert gathering._proof(version("1", "classify")) is None
    with pytest.raises(UsageError, match="says no method"):
        gathering.family_of(version("1", "sorcery"))


def test_what_a_ppo_version_must_keep_beside_the_one_before_and_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [{"row_id": f"te{i}", "tokens": 10, "sft": 20.0, "ppo": 20.5} for i in range(3)]
    found = {
        "answers.jsonl": [{"id": "a", "kept_sft": True, "kept_ppo": False}],
        "references.jsonl": [{"row_id": "te0", "rougeL_sft": 0.4, "rougeL_ppo": 0.3}],
    }
    monkeypatch.setattr(policies, "table", lambda run, name: losses if run else [])
    monkeypatch.setattr(policies, "lines", lambda run, name: found[name] if run else [])
    tuned = version("2", "ppo", base_version="assistant/1", **{"run.assistant_ppo": "run"})
    kept = {one.figure: one.pair for one in PPO.kept(tuned, None, {})}
    assert list(kept) == ["loss", "rules", "rouge"] and "assistant/1" in kept["loss"].other
    assert kept["loss"].own["te0"] == (20.5, 10.0) and kept["loss"].others["te0"] == (20.0, 10.0)
    assert (kept["rules"].own, kept["rules"].others) == ({"a": (0.0, 1.0)}, {"a": (1.0, 1.0)})
    assert kept["rouge"].own == {"te0": (0.3, 1.0)}
    assert len(PPO.kept(tuned, version("1", "sft"), {"loss": kept["loss"].others})) == 3, "it is the one before"
    others = {"loss": kept["loss"].others, "rules": {"another": (1.0, 1.0)}}
    beside = PPO.kept(tuned, version("3", "sft"), others)[3:]
    assert [(one.against, one.figure) for one in beside] == [("champion ", "loss")], "on the same rows alone"
    assert PPO.kept(version("2", "ppo", base_version="assistant/1"), None, {}) == [], "an old version has none"
