"""The error budget: what a look costs, what fresh rows bring back, and what is remembered of the rows."""

import pytest

from ajuste.judging.clusters import clusters
from ajuste.judging.verdicts.budget import SAMPLE, Ledger, left, level, refreshed, rows_digest, spent


def used(looks: int, ids: list[str]) -> Ledger:
    ledger = refreshed(Ledger(), ids)
    for _ in range(looks):
        ledger = spent(refreshed(ledger, ids))
    return ledger


def rows(first: int, number: int) -> list[str]:
    return [f"row {n}" for n in range(first, first + number)]


def test_all_looks_together_cost_the_budget_and_earlier_ones_more() -> None:
    levels = [level(0.05, 365, k) for k in range(1, 366)]
    assert sum(levels) == pytest.approx(0.05) and level(0.05, 365, 366) == 0.0
    assert levels == sorted(levels, reverse=True) and levels[0] == pytest.approx(0.00772, abs=1e-5)
    for k in (0, 1, 30, 365):
        assert left(0.05, 365, k) == pytest.approx(0.05 - sum(levels[:k]), abs=1e-12)
    assert left(0.05, 365, 400) == 0.0
    assert level(0.05, 1, 1) == 0.05


def test_the_same_rows_bring_nothing_back_and_other_rows_all() -> None:
    ledger = used(30, rows(0, 100))
    assert ledger.used == 30
    assert refreshed(ledger, rows(0, 100)[::-1]) == ledger, "their order does not matter"
    assert refreshed(ledger, rows(0, 60)).used == 30, "rows that left are no fresh ones"
    assert refreshed(ledger, rows(100, 100)).used == 0
    assert refreshed(ledger, rows(0, 125)).used == 24, "a fifth of the rows is fresh"
    assert refreshed(refreshed(ledger, rows(0, 125)), rows(0, 100)).used == 24, "rows that were seen stay seen"
    assert refreshed(ledger, rows(0, 101)).used == 30, "one row more is next to nothing"


@pytest.mark.parametrize("looks", [1, 7, 30, 365])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.995, 1.0])
def test_fresh_rows_bring_back_at_most_their_share_of_the_budget(looks: int, share: float) -> None:
    fresh = round(200 * share)
    before = used(looks, rows(0, 200))
    after = refreshed(before, [*rows(0, 200 - fresh), *rows(200, fresh)])
    assert left(0.05, 365, after.used) - left(0.05, 365, before.used) <= 0.05 * fresh / 200 + 1e-12


def test_a_row_a_night_never_gives_a_budget_a_night() -> None:
    ledger = used(0, rows(0, 300))
    cost = 0.0
    for night in range(365):
        ledger = refreshed(ledger, rows(0, 300 + night))
        cost += level(0.05, 365, ledger.used + 1)
        ledger = spent(ledger)
    assert cost <= 0.05 * (1 + sum(1 / (300 + night) for night in range(365)))
    assert ledger.used > 150


def test_of_many_rows_a_sample_is_remembered_and_the_share_is_near() -> None:
    ledger = used(100, rows(0, 5000))
    assert len(ledger.seen) == SAMPLE
    assert refreshed(ledger, rows(0, 5000)).used == 100
    assert refreshed(ledger, rows(0, 10_000)).used == pytest.approx(50, abs=9)
    assert refreshed(ledger, rows(5000, 5000)).used == 0


def test_a_digest_of_rows_knows_no_order() -> None:
    assert rows_digest(["a", "b"]) == rows_digest(["b", "a"]) != rows_digest(["a", "c"])


def test_rows_are_one_draw_where_they_are_alike() -> None:
    assert clusters(["1", "2", "3"], ["x", "y", "x"]) == {"1": "1", "2": "2", "3": "1"}
    assert clusters(["1", "2", "3"], [None, None, "x"]) == {"1": "1", "2": "2", "3": "3"}
    assert len(set(clusters(["1", "2", "3"], [[1, 2], [2, 1], [1, 2]]).values())) == 2, "a list of ids is one value"
    shared = [["a", "b"], ["c", "b"], ["c", "d"], ["e", "f"]]  # A beside B, C beside B, C beside D
    for values in (shared, [[[ord(x)] for x in pair] for pair in shared]):
        assert clusters(["1", "2", "3", "4"], values) == {"1": "1", "2": "1", "3": "1", "4": "4"}
