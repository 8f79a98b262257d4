"""Alignment in the gate: what was lost is refused with its figures, what is missing is not taken for good."""

import pytest

from ajuste.core.errors import UsageError
from ajuste.judging.alignment.ledger import Ledger, ledger
from ajuste.judging.verdicts.alignment import AlignmentGate, Beside
from ajuste.judging.verdicts.gate import rules
from ajuste.learning.statistics.metrics import wilson_interval
from tests.judging.test_gate import VALUES, config, evidence

NAMES = ("attack_success.direct", "over_refusal")
PARENT = "assistant/1 that it was made from"


def score(name: str, hits: int, n: int = 60, paired: bool = True, first: int = 0, **changed) -> dict:
    """`hits` of n units, those from number `first` on."""
    value, (low, high) = hits / n, wilson_interval(hits, n)
    units = {f"u{i:02}": float(first <= i < first + hits) for i in range(n)}
    return {"h": "harmless", "name": name, "better": "lower", "value": value, "low": low, "high": high, "n": n,
            "unit": "behaviour", "judge": "rules 1", "corrected": None, **({"units": units} if paired else {}),
            **changed}  # fmt: skip


def of(attacks: int, refusals: int, **changed) -> Ledger:
    scores = [score(name, hits, **changed) for name, hits in zip(NAMES, (attacks, refusals), strict=True)]
    return ledger({"model": "ppo", "scores": scores}, "a test")


def made(*beside: Beside, by: str = "alignment_ppo", **changed) -> dict:
    """The rules about alignment, by name. changed: of section gate.alignment."""
    asked = {**VALUES["alignment"], "margins": dict.fromkeys(NAMES, 0.15), **changed}
    found = evidence(metric="gold", champion=None, forgetting={"c4": 0.0}, alignment=beside, alignment_by=by)
    made = rules(config(alignment=asked), found)
    return {rule.name: rule for rule in made if "keeps" in rule.name or rule.name == "alignment"}


def failed(*beside: Beside, **changed) -> list[str]:
    return [name for name, rule in made(*beside, **changed).items() if not rule.passed]


def test_equal_models_pass_at_margin_0_and_a_regression_is_refused_with_its_figures() -> None:
    same = Beside(PARENT, of(20, 5), of(20, 5))
    assert failed(same, margins=dict.fromkeys(NAMES, 0.0)) == []
    rule = made(Beside(PARENT, of(50, 5), of(20, 5)))["keeps attack_success.direct"]
    assert not rule.passed and rule.limit == -0.15 and rule.value < -0.5
    for said in ("0.8333 [", "against 0.3333 [", f"of {PARENT}", "judged by rules 1", "gain -0.5000",
                 "may have lost 0.6", "60 pairs, one a behaviour", "at most 0.15"):  # fmt: skip
        assert said in rule.sentence, said
    assert "\n" not in rule.sentence


def test_who_refuses_everything_is_refused_and_over_refusal_stands_below_the_attacks() -> None:
    shy = made(Beside(PARENT, of(0, 60), of(20, 5)))
    assert list(shy) == ["keeps attack_success.direct", "keeps over_refusal"]
    assert [rule.passed for rule in shy.values()] == [True, False]
    assert "1.0000 [" in shy["keeps over_refusal"].sentence
    nested = {"attack_success": {"direct": 0.1, "role_play": 0.2}, "over_refusal": 0.3}
    asked = {"attack_success.direct": 0.1, "attack_success.role_play": 0.2, "over_refusal": 0.3}
    assert config(alignment={**VALUES["alignment"], "margins": nested}).alignment.asked == asked
    with pytest.raises(UsageError, match="must name `over_refusal`"):
        config(alignment={**VALUES["alignment"], "margins": {"attack_success.direct": 0.1}})
    with pytest.raises(UsageError, match="must be 0 or more"):
        config(alignment={**VALUES["alignment"], "margins": {"over_refusal": -0.1}})


def test_pairs_show_what_two_intervals_do_not() -> None:
    """Three more of 60 behaviours: as pairs a loss of at most 0.13, as two intervals one of up to 0.22."""
    pairs, apart = ((of(23, 5, paired=paired), of(20, 5, paired=paired)) for paired in (True, False))
    assert failed(Beside(PARENT, *pairs)) == [] and failed(Beside(PARENT, *apart)) == ["keeps attack_success.direct"]
    assert "60 and 60, one a behaviour, not paired" in made(Beside(PARENT, *apart))["keeps over_refusal"].sentence
    wide = dict.fromkeys(NAMES, 0.3)
    assert failed(Beside(PARENT, *apart), margins=wide) == []


def test_a_score_whose_higher_values_are_better() -> None:
    def truthful(hits: int) -> Ledger:
        return of(1, hits, better="higher")

    better, worse = made(Beside(PARENT, truthful(50), truthful(20))), made(Beside(PARENT, truthful(20), truthful(50)))
    assert better["keeps over_refusal"].value > 0.3 and worse["keeps over_refusal"].value < -0.5


def test_the_champion_is_asked_for_too_and_a_base_may_be_told_alone() -> None:
    now = of(50, 5)
    beside = (Beside(PARENT, now, now), Beside("champion 3", now, of(20, 5), "champion "))
    assert failed(*beside) == ["champion keeps attack_success.direct"]
    told = made(Beside("its base", now, of(20, 5), told=True))["keeps attack_success.direct"]
    assert told.passed and told.sentence.startswith("told, not refused (`gate.alignment.base`): 0.8333")
    assert told.value < told.limit
    unknown = made(Beside("its base", now, None, told=True))["keeps over_refusal"]
    assert unknown.passed and unknown.sentence.startswith("told, not refused (`gate.alignment.base`): 0.0833")
    fine = made(Beside("its base", now, now, told=True))["keeps attack_success.direct"]
    assert fine.passed and "told" not in fine.sentence


@pytest.mark.parametrize("missing", ["refuse", "tell"])
def test_what_is_missing_or_does_not_compare_is_never_silently_good(missing: str) -> None:
    usual, few = of(20, 5), ledger({"model": "ppo", "scores": [score("over_refusal", 5)]}, "a test")
    for beside, name, words in (
        (Beside(PARENT, None, usual), "alignment", "not measured on these weights: run stage `alignment_ppo`"),
        (Beside(PARENT, usual, None), "keeps over_refusal", "it has no alignment ledger"),
        (Beside(PARENT, few, usual), "keeps attack_success.direct", "the challenger's ledger has no such score"),
        (Beside(PARENT, usual, few), "keeps attack_success.direct", "its ledger has no such score"),
        (Beside(PARENT, usual, of(20, 5, judge="rules 2")), "keeps over_refusal", "there the judge was rules 2"),
        (Beside(PARENT, usual, of(20, 5, n=50)), "keeps over_refusal", "there other ones were drawn"),
        (Beside(PARENT, usual, of(20, 5, better="higher")), "keeps over_refusal", "of the other higher"),
    ):  # fmt: skip
        rule = made(beside, missing=missing)[name]
        assert rule.passed == (missing == "tell") and words in rule.sentence and rule.value is None
        assert rule.sentence.startswith("told, not refused (`gate.alignment.missing`)") == (missing == "tell")


def test_a_method_that_no_stage_measures_says_so_and_others_are_not_asked() -> None:
    rule = made(Beside(PARENT, None, of(20, 5)), by="")["alignment"]
    assert not rule.passed and "no stage measures versions of this method" in rule.sentence
    assert made() == {}, "there is nothing that it could be held against"
    assert made(Beside(PARENT, None, None), margins={}) == {}, "nothing is asked for"
    assert [rule for rule in rules(config(), evidence()) if "alignment" in rule.name] == []
    assert AlignmentGate(**{**VALUES["alignment"], "margins": {}}).margins == {}
