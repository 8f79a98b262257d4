"""Mixtures of human and AI rows: exact, deterministic, nested, and refused where one side has too few."""

import pytest

from ajuste.rows.mixture import chosen

HUMAN, AI = [f"h{i:03d}" for i in range(50)], [f"a{i:03d}" for i in range(40)]


@pytest.mark.parametrize(("share", "ai"), [(0.0, 0), (0.25, 8), (0.5, 15), (0.51, 15), (0.99, 30), (1.0, 30)])
def test_the_share_is_exact_and_the_number_of_rows_is_always_the_same(share: float, ai: int) -> None:
    kept, taken = chosen(HUMAN, AI, share, 30)
    assert (len(kept), len(taken)) == (30 - ai, ai) and len(set(kept + taken)) == 30
    assert set(kept) <= set(HUMAN) and set(taken) <= set(AI)


def test_the_order_of_the_rows_changes_nothing_and_a_larger_share_keeps_what_a_smaller_one_took() -> None:
    assert chosen(HUMAN, AI, 0.5, 30) == chosen(HUMAN[::-1], AI[::-1], 0.5, 30)
    everyone = chosen(HUMAN, AI, 0.0, 30)[0]
    before = chosen(HUMAN, AI, 0.25, 30)
    after = chosen(HUMAN, AI, 0.75, 30)
    assert set(after[0]) < set(before[0]) < set(everyone) and set(before[1]) < set(after[1])
    assert set(chosen(HUMAN + ["late"], AI, 0.5, 51)[1]) <= set(AI)
    assert everyone != sorted(HUMAN)[:30], "by the hash, not by the id"


def test_one_side_that_has_too_few_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="share 1 of 41 rows takes 41 of the judge's, and there are 40"):
        chosen(HUMAN, AI, 1.0, 41)
    with pytest.raises(ValueError, match="takes 51 of people's, and there are 50"):
        chosen(HUMAN, AI, 0.0, 51)
    assert chosen([], AI, 1.0, 3)[0] == []
    for share, rows in ((1.2, 3), (-0.1, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="a share from 0 to 1"):
            chosen(HUMAN, AI, share, rows)
