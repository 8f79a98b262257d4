"""The rules of the gate: what passes, what fails, what it says, and what nothing is known of."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml, typed
from ajuste.judging.verdicts.gate import Evidence, GateConfig, Kept, Paired, can_promote, rules

HARMONIC = sum(1 / k for k in range(1, 366))
VALUES = read_yaml(ROOT / "policy.yaml")["gate"]


def config(**changed) -> GateConfig:
    return typed(GateConfig, {**VALUES, **changed}, "gate")


def pair(gain: float, rows: int = 200, other: str = "champion 1") -> Paired:
    """Half of the rows right for the other, and `gain` more for the challenger."""
    right = rows // 2
    return Paired(other, {i: (float(i < right + gain * rows), 1.0) for i in range(rows)},
                  {i: (float(i < right), 1.0) for i in range(rows)})


def evidence(**changed) -> Evidence:
    usual = {"metric": "accuracy", "base": pair(0.2, other="the most frequent label"), "champion": pair(0.1),
             "forgetting": None, "proof": {"difference": 1e-6, "tolerance": 1e-4}, "checks": {"empty_text": True}}
    return Evidence(**{**usual, **changed})


def failed(found: Evidence, **changed) -> list[str]:
    return [rule.name for rule in rules(config(**changed), found) if not rule.passed]


def test_a_better_challenger_passes_every_rule_and_each_has_its_numbers() -> None:
    made = rules(config(), evidence())
    assert [rule.name for rule in made] == ["budget", "base accuracy", "champion accuracy", "proof", "data"]
    assert all(rule.passed for rule in made)
    beside = made[2]
    assert 0 < beside.value < 0.1 and beside.limit == 0.0
    assert "0.6000 against 0.5000 of champion 1, gain +0.1000" in beside.sentence and "200 rows" in beside.sentence


def test_no_better_than_the_champion_or_the_base_is_refused() -> None:
    assert failed(evidence(champion=pair(0.0))) == ["champion accuracy"]
    assert failed(evidence(champion=pair(-0.1))) == ["champion accuracy"]
    assert failed(evidence(champion=pair(0.01, 100))) == ["champion accuracy"], "one row more is chance"
    assert failed(evidence(base=pair(0.0))) == ["base accuracy"]
    assert failed(evidence(champion=None)) == [], "without a champion the base alone decides"


def test_a_least_gain_and_a_limit() -> None:
    accuracy = {**VALUES["accuracy"], "over_champion": 0.2, "limit": 0.75}
    assert failed(evidence(), accuracy=accuracy) == ["champion accuracy", "limit accuracy"]
    assert failed(evidence(champion=pair(0.0)), accuracy={**VALUES["accuracy"], "over_champion": -1.0}) == []


def test_a_lower_loss_is_better_and_tokens_weigh() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 99, 100)
    own = {i: (float(n * 1.9), float(n)) for i, n in enumerate(tokens)}
    other = {i: (float(n * (2.0 + rng.normal(0, 0.1))), float(n)) for i, n in enumerate(tokens)}
    usual = {"metric": "loss", "champion": None, "forgetting": {}}
    assert failed(evidence(**{**usual, "base": Paired("its base", own, other), "forgetting": {"c4": 0.02}})) == []
    assert failed(evidence(**{**usual, "base": Paired("its base", other, own)})) == ["base loss", "forgetting"]
    limit = {**VALUES["loss"], "limit": 1.8}
    found = evidence(**{**usual, "base": Paired("its base", own, other), "forgetting": {"c4": 0.1, "boolq": None}})
    assert failed(found, loss=limit) == ["limit loss", "forgetting boolq", "forgetting c4"]
    shorter = {i: (loss, n - 1) for i, (loss, n) in other.items()}
    made = rules(config(), evidence(**{**usual, "base": Paired("its base", own, shorter)}))[1]
    assert not made.passed and "other tokens" in made.sentence


def test_what_cannot_be_compared_fails_and_says_why() -> None:
    whole = pair(0.3)
    gone = Paired("champion 1", whole.own, {i: whole.others[i] for i in list(whole.others)[:150]})
    for champion, said in (
        (gone, "50 of 200 test rows have no result of champion 1"), (Paired("champion 1"), "has no result"),
        (Paired("champion 1", whole.own, {}, "its files are gone"), "champion 1: its files are gone"),
        (pair(0.5, 29), "29 test rows, at least 30 are needed (`minimum_rows`): add some with `ajuste data add`"),
        (Paired("champion 1", {i: (float("nan"), 1.0) for i in range(40)}, {i: (1.0, 1.0) for i in range(40)}),
         "finite"),
    ):  # fmt: skip
        rule = rules(config(), evidence(champion=champion))[2]
        assert not rule.passed and rule.value is None and said in rule.sentence


def test_a_promotion_rests_on_so_many_rows_and_clusters() -> None:
    assert failed(evidence(base=pair(0.9, 30), champion=pair(0.9, 30))) == []
    few = evidence(base=pair(0.9, 29), champion=pair(0.9, 29))
    assert failed(few) == ["base accuracy", "champion accuracy"] and not can_promote(config(), few)
    assert failed(few, minimum_rows=29) == []
    of = {i: i % 29 for i in range(200)}
    assert failed(evidence(clusters=of)) == ["base accuracy", "champion accuracy"]
    rule = rules(config(), evidence(clusters=of))[1]
    assert "29 sources of 200 test rows, at least 30 are needed" in rule.sentence
    assert failed(evidence(clusters={i: i // 2 for i in range(200)})) == []
    lost = evidence(clusters_problem="there is no column `speaker`")
    assert failed(lost) == ["base accuracy", "champion accuracy"] and not can_promote(config(), lost)


def test_rows_of_one_source_are_one_draw() -> None:
    """Each row four times over is no more evidence than once."""
    once, fourfold = pair(0.1, 60), pair(0.1, 240)
    alone = rules(config(), evidence(base=pair(0.5), champion=once))[2]
    apart = rules(config(), evidence(base=pair(0.5), champion=fourfold))[2]
    repeated = Paired("champion 1", *({(i, k): value for i, value in side.items() for k in range(4)}
                                      for side in (once.own, once.others)))
    together = rules(config(), evidence(base=repeated, champion=repeated, clusters={k: k[0] for k in repeated.own}))[2]
    assert together.value == pytest.approx(alone.value) and apart.value > alone.value
    assert "240 rows of 60 sources" in together.sentence


def test_the_budget_is_spent_look_by_look_and_what_is_left_is_said() -> None:
    beside = [rules(config(), evidence(), look) for look in (1, 2, 365)]
    bounds = [made[2].value for made in beside]
    assert bounds[0] > bounds[1] > bounds[2], "a later look is asked at a smaller level"
    lefts = [made[0].value for made in beside]
    assert 0.05 > lefts[0] > lefts[1] > lefts[2] and lefts[2] == pytest.approx(0.0, abs=1e-12)
    assert beside[1][0].sentence.startswith("look 2 of 365 at these 200 test rows, at 0.39 %: of 5 % false promotions")
    spent = rules(config(), evidence(), 366)
    assert [rule.name for rule in spent] == ["budget", "proof", "data"] and not spent[0].passed
    assert "all 365 looks at these 200 test rows are spent: bring fresh rows" in spent[0].sentence
    nothing = rules(config(), evidence(champion=Paired("champion 1", problem="gone")), 4)[0]
    assert nothing.passed and nothing.sentence.startswith("nothing is spent")
    assert nothing.value == pytest.approx(beside[0][0].value - 0.05 * (1 / 2 + 1 / 3) / HARMONIC)


def test_what_these_rows_show_and_what_a_wanted_gain_needs_is_said() -> None:
    rule = rules(config(), evidence())[2]
    found = re.search(r"show gains from (\d\.\d+) on \(in 80% of cases\), 0.02 needs ([\d,]+) rows", rule.sentence)
    seen, rows = float(found[1]), int(found[2].replace(",", ""))
    assert rows == pytest.approx(200 * (seen / 0.02) ** 2, rel=0.01)


def test_proof_data_latency_and_memory() -> None:
    assert failed(evidence(proof=None)) == []
    assert failed(evidence(proof={"difference": 1e-2, "tolerance": 1e-4})) == ["proof"]
    assert failed(evidence(proof={"difference": None, "tolerance": None})) == ["proof"]
    assert failed(evidence(proof={"difference": float("nan"), "tolerance": 1e-4})) == ["proof"]
    assert failed(evidence(checks={"a": True, "b": False})) == ["data"]
    assert failed(evidence(checks=None)) == ["data"]
    limits = {"latency_ms": 5.0, "memory_mb": 100.0}
    assert failed(evidence(latency_ms=4.0, memory_mb=120.0), **limits) == ["memory"]
    assert failed(evidence(measure_problem="could not be measured: gone"), **limits) == ["latency", "memory"]


def kept(lost: float, figure: str = "loss", against: str = "") -> Kept:
    """100 rows of 10 tokens (of loss) on which the challenger loses `lost`, a little more or less by row."""
    size, sign = (10.0, 1.0) if figure == "loss" else (1.0, -1.0)
    noise = np.random.default_rng(0).normal(0, 0.001, 100) if lost else np.zeros(100)
    before = {i: (2.0 * size, size) for i in range(100)}
    own = {i: ((2.0 + sign * (lost + noise[i])) * size, size) for i in range(100)}
    return Kept(figure, Paired("assistant/1 that it was made from", own, before), against)


def test_a_version_that_won_its_reward_and_lost_the_assistant_is_refused_with_the_number() -> None:
    usual = {"metric": "gold", "champion": None, "forgetting": {"c4": 0.0}, "kept_by": "assistant_ppo"}
    margins = {"loss": VALUES["loss_margin"], "rules": VALUES["rules_margin"], "rouge": VALUES["rouge_margin"]}
    equal = tuple(kept(0.0, figure) for figure in margins)
    assert failed(evidence(**usual, kept=equal)) == []
    assert failed(evidence(**usual, kept=equal), loss_margin=0.0, rules_margin=0.0, rouge_margin=0.0) == []
    assert failed(evidence(**usual, kept=tuple(kept(0.8 * m, figure) for figure, m in margins.items()))) == []
    for figure, margin in margins.items():
        found = evidence(**usual, kept=(kept(1.2 * margin, figure),))
        assert failed(found) == [f"keeps {figure}"]
        rule = next(rule for rule in rules(config(), found) if rule.name == f"keeps {figure}")
        assert rule.value == pytest.approx(-1.2 * margin, abs=1e-3) and rule.limit == -margin
        assert "of assistant/1 that it was made from" in rule.sentence and f"at most {margin:g}" in rule.sentence
        assert f"may have lost {1.2 * margin:.2f}" in rule.sentence
    beside_champion = evidence(**usual, kept=(kept(0.0), kept(0.2, against="champion ")))
    assert failed(beside_champion) == ["champion keeps loss"]
    gain = kept(-0.1)
    assert failed(evidence(**usual, kept=(gain,)), loss_margin=0.0) == []


def test_what_was_not_measured_of_the_assistant_is_named() -> None:
    found = evidence(metric="gold", champion=None, kept=(), kept_by="assistant_ppo")
    rule = next(rule for rule in rules(config(), found) if not rule.passed)
    assert rule.name == "keeps" and rule.sentence.endswith("not measured on these weights: run stage `assistant_ppo`")
    assert failed(evidence(kept=None)) == [], "other families are not asked"
    missing = Kept("loss", Paired("assistant/1", {1: (1.0, 1.0), 2: (1.0, 1.0)}, {1: (1.0, 1.0)}))
    assert failed(evidence(kept=(missing,))) == ["keeps loss"]


def test_the_section_is_checked() -> None:
    with pytest.raises(ValidationError, match="promotes nothing"):
        GateConfig(**{**VALUES, "approval": True, "mode": "dry-run"})
    with pytest.raises(ValidationError):
        GateConfig(**{**VALUES, "mode": "maybe"})
    assert config().mode == "enforce" and not config().approval
