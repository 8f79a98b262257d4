"""Opinions in two orders, and the judge card: closed forms, brute force, and the library."""

import math
from itertools import permutations

import numpy as np
import pytest

from ajuste.judging.judges import alpha
from ajuste.judging.judges.card import Admission, Judged, card, refusals
from ajuste.judging.judges.opinions import Cost, Opinion, Pair, of_letters, of_scores, told, unable

RULE = Admission(min_share_of_ceiling=0.8, min_swap_consistency=0.7)


def judged(better: int, texts=("aa", "b"), one=0.9, margin=1.0, raters=None, number=0) -> Judged:
    return Judged(Pair(f"{number:016x}", [{"role": "user", "content": "?"}], texts), better, margin, one, raters)


def made(pairs, opinions, bootstrap=100) -> dict:
    return card(pairs, opinions, Cost(2 * len(pairs), 50 * len(pairs)), bootstrap, seed=0)


# --- two orders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "p", "consistent"),
    [
        (1.0, -1.0, 1 / (1 + math.exp(-1.0)), True),  # A, then B: the same answer both times
        (-2.0, 2.0, 1 / (1 + math.exp(2.0)), True),
        (3.0, 3.0, 0.5, False),  # always A: the position alone
        (2.0, 0.5, (1 / (1 + math.exp(-2.0)) + 1 / (1 + math.exp(0.5))) / 2, False),  # answer 0, but weakly
        (0.0, 0.0, 0.5, False),
    ],
)
def test_the_preference_is_the_mean_of_both_orders(first: float, second: float, p: float, consistent: bool) -> None:
    opinion = of_letters(first, second, "honest")
    assert opinion.preference == pytest.approx(p, abs=1e-12) and opinion.consistent is consistent
    turned = of_letters(second, first, "honest")  # the answers change places
    assert turned.preference == pytest.approx(1 - p, abs=1e-12) and turned.consistent is consistent


def test_a_judge_of_scores_sees_no_order() -> None:
    opinion = of_scores(2.0, 0.5)
    assert opinion.first == opinion.second == pytest.approx(1 / (1 + math.exp(-1.5))) and opinion.consistent
    assert of_scores(1e6, -1e6).preference == 1.0 and of_scores(-1e6, 1e6).preference == 0.0
    assert not of_scores(1.0, 1.0).consistent and unable("why").preference == 0.5


def test_a_conversation_is_told_with_its_roles_and_a_single_question_without() -> None:
    assert told([{"role": "user", "content": "Why?"}]) == "Why?"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert told(turns) == "user: Hi\n\nassistant: Hello"


# --- the figures ------------------------------------------------------------------------------------------------------


def test_agreement_counts_ties_half_and_stands_beside_people_on_the_same_pairs() -> None:
    pairs = [judged(0, margin=0.5, one=0.6), judged(0, margin=1.0, one=0.8), judged(1, margin=1.5, one=1.0),
             judged(1, margin=2.5, one=None)]  # fmt: skip
    opinions = [of_scores(1, 0), of_scores(0, 1), of_scores(0, 1), unable("too long")]
    found = made(pairs, opinions)
    assert found["agreement"]["value"] == (1 + 0 + 1 + 0.5) / 4
    assert found["one_against_rest"]["value"] == pytest.approx((0.6 + 0.8 + 1.0) / 3)
    assert found["share_of_ceiling"]["value"] == pytest.approx((1 + 0 + 1) / (0.6 + 0.8 + 1.0))
    assert [(row["pairs"], row["agreement"]) for row in found["by_margin"]] == [
        (4, 0.625), (3, 0.5), (2, 0.75), (1, 0.5),
    ]  # fmt: skip
    assert found["by_margin"][3]["one_against_rest"] is None
    assert found["no_opinion"] == {"pairs": 1, "first": "too long"}
    assert found["swap_consistency"]["value"] == 0.75
    assert found["agreement_where_consistent"]["value"] == pytest.approx(2 / 3)
    assert found["cost"] == {"calls": 8, "tokens": 200, "tokens_a_pair": 50.0}
    low, high = (found["agreement"][key] for key in ("low", "high"))
    assert 0 <= low < 0.625 < high <= 1


def test_a_judge_that_always_says_a_has_the_whole_position_bias_and_no_consistency() -> None:
    d = math.log(0.9 / 0.1)
    found = made([judged(i % 2) for i in range(10)], [of_letters(d, d, "warm")] * 10)
    bias = found["position_bias"]
    assert bias["value"] == pytest.approx(0.4) and (bias["always_first"], bias["always_second"]) == (1.0, 0.0)
    assert found["swap_consistency"]["value"] == 0.0 and found["agreement"]["value"] == 0.5
    assert found["agreement_where_consistent"] is None
    found = made([judged(0)] * 4, [of_letters(-d, -d, "warm")] * 4)
    assert found["position_bias"]["value"] == pytest.approx(-0.4) and found["position_bias"]["always_second"] == 1.0
    assert made([judged(0)] * 4, [of_scores(1, 0)] * 4)["position_bias"]["value"] == 0.0


def test_length_bias_is_what_the_judge_has_beyond_people() -> None:
    texts = [("long text", "short"), ("short", "long text"), ("long text", "short"), ("same", "size")]
    pairs = [judged(better, texts=pair) for better, pair in zip((0, 0, 1, 0), texts, strict=True)]
    opinions = [of_scores(1, 0), of_scores(0, 1), of_scores(1, 0), of_scores(1, 0)]  # always the longer one
    bias = made(pairs, opinions)["length_bias"]
    assert bias["pairs"] == 3
    assert bias["judge"]["value"] == 1.0 and bias["people"]["value"] == pytest.approx(1 / 3)
    assert bias["difference"]["value"] == pytest.approx(2 / 3)
    assert made([judged(0, texts=("ab", "cd"))], [of_scores(1, 0)])["length_bias"]["difference"] is None


# --- Krippendorff's alpha ---------------------------------------------------------------------------------------------


def alpha_by_hand(units: list[list[float]], distance) -> float:
    """1 - D_o / D_e from the definition: ordered pairs of values inside units, and of all values."""
    units = [unit for unit in units if len(unit) > 1]
    every = [value for unit in units for value in unit]
    n = len(every)
    observed = sum(sum(distance(a, b) for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    expected = sum(distance(a, b) for a, b in permutations(every, 2)) / (n * (n - 1))
    return 1 - observed / expected


def test_alpha_is_that_of_its_definition() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 2, (2, 40)).astype(float)
    one[::7] = np.nan
    units = [[a, b] for a, b in zip(one, other, strict=True) if not np.isnan(a)]
    assert alpha.of_labels(one, other) == pytest.approx(alpha_by_hand(units, lambda a, b: a != b), abs=1e-12)
    texts = [draw.integers(-4, 5, draw.integers(1, 9)).astype(float).tolist() for _ in range(20)]
    assert alpha.of_ratings(texts) == pytest.approx(alpha_by_hand(texts, lambda a, b: (a - b) ** 2), abs=1e-12)
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    assert alpha.of_labels(labels, labels) == 1.0 and alpha.of_labels(labels * 0, labels * 0) is None
    assert alpha.of_ratings([[1.0], [2.0]]) is None


def test_one_person_against_the_rest_is_the_kth_rater_of_both_texts() -> None:
    one, rest = alpha.persons([1.0, 3.0, 2.0], [2.0, 2.0, 2.0, 2.0])
    # persons: 1 < 2, 3 > 2, 2 = 2; the others of the first text: 2.5, 1.5, 2
    assert one.tolist()[:2] == [1.0, 0.0] and math.isnan(one[2])
    assert rest.tolist()[:2] == [0.0, 1.0] and math.isnan(rest[2])
    assert [part.tolist() for part in alpha.persons([1.0], [2.0, 3.0])] == [[], []]


def test_the_cards_alphas_put_judge_and_person_to_one_question() -> None:
    raters = [([2.0, 3.0, 1.0], [-1.0, 0.0, -2.0]), ([0.0, 1.0], [2.0, 3.0]), ([1.0, 2.0], [0.0, 3.0])]
    pairs = [judged(better, raters=pair) for better, pair in zip((0, 1, 0), raters, strict=True)]
    found = made(pairs, [of_scores(1, 0), of_scores(0, 1), of_scores(0, 1)])["alpha"]
    judge = alpha_by_hand([[0, 0], [1, 1], [1, 0]], lambda a, b: a != b)
    assert found["judge"]["value"] == pytest.approx(judge)
    # the last pair: 1 > 0 and 2 < 3, the others 2 < 3 and 1 > 0
    person = alpha_by_hand([[0, 0]] * 3 + [[1, 1]] * 2 + [[0, 1], [1, 0]], lambda a, b: a != b)
    assert found["one_against_rest"] == pytest.approx(person)
    texts = [text for pair in raters for text in pair]
    assert found["people"] == pytest.approx(alpha_by_hand(texts, lambda a, b: (a - b) ** 2))
    nobody = made([judged(0), judged(1)], [of_scores(1, 0)] * 2)["alpha"]
    assert nobody["one_against_rest"] is None and nobody["people"] is None


# --- refusal ----------------------------------------------------------------------------------------------------------


def figures(agreement: float, swap: float, ceiling: float | None = 0.9) -> dict:
    return {"agreement": {"value": agreement}, "pairs": 50, "swap_consistency": {"value": swap},
            "one_against_rest": None if ceiling is None else {"value": ceiling}}  # fmt: skip


@pytest.mark.parametrize(
    ("agreement", "swap", "reasons"),
    [(0.72, 1.0, 1), (0.7201, 1.0, 0), (0.7199, 1.0, 1), (0.9, 0.7, 0), (0.9, 0.699, 1), (0.5, 0.1, 2)],
)
def test_labels_are_refused_at_the_share_of_the_ceiling_and_not_above_it(
    agreement: float, swap: float, reasons: int
) -> None:
    assert len(refusals(figures(agreement, swap), RULE)) == reasons


def test_a_refusal_says_its_numbers_and_without_a_ceiling_nothing_is_admitted() -> None:
    first, second = refusals(figures(0.5, 0.25), RULE)
    assert first == ("it agrees with people on 0.500 of 50 pairs, and must be above 0.720, which is 0.8 of the 0.900 "
                     "of one person against the rest")  # fmt: skip
    assert second == "its verdict survives a change of order on 0.250 of the pairs, and must on 0.7"
    assert "no ceiling" in refusals(figures(1.0, 1.0, None), RULE)[0]
    with pytest.raises(ValueError, match="no pair"):
        card([], [], Cost(), 100, 0)


def test_a_card_is_the_same_for_every_order_of_the_two_answers() -> None:
    draw = np.random.default_rng(1)
    pairs = [judged(int(draw.integers(2)), texts=("x" * int(draw.integers(1, 9)), "yyy"), one=0.9, number=i)
             for i in range(30)]  # fmt: skip
    opinions = [Opinion(*draw.random(2).tolist()) for _ in pairs]
    turned = [one._replace(better=1 - one.better, pair=one.pair._replace(answers=one.pair.answers[::-1]))
              for one in pairs]  # fmt: skip
    mirrored = [Opinion(1 - opinion.second, 1 - opinion.first) for opinion in opinions]
    one, other = made(pairs, opinions), made(turned, mirrored)
    for key in ("agreement", "swap_consistency", "share_of_ceiling"):
        assert one[key] == pytest.approx(other[key]), key
    assert one["position_bias"]["value"] == pytest.approx(other["position_bias"]["value"])
    assert one["length_bias"]["difference"] == pytest.approx(other["length_bias"]["difference"])
