"""McNemar's exact test: the binomial test on the rows where two classifiers differ, and every coin counted by hand."""

import itertools

import pytest
from scipy.stats import binomtest

from ajuste.learning.statistics.mcnemar import mcnemar


def rightness(b: int, c: int) -> tuple[list[bool], list[bool]]:
    """b rows that only the first has right, c that only the second has, nine of each kind on which they agree."""
    return [True] * b + [False] * c + [True] * 9 + [False] * 9, [False] * b + [True] * c + [True] * 9 + [False] * 9


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (7, 2), (40, 45), (30, 10), (5, 5)])
def test_it_is_the_binomial_test(b: int, c: int) -> None:
    p = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(*rightness(b, c)) == (b, c, pytest.approx(p, abs=1e-12))


@pytest.mark.parametrize(("b", "c"), [(0, 6), (1, 5), (2, 4), (3, 3)])
def test_it_counts_the_coins_that_are_as_uneven(b: int, c: int) -> None:
    throws = list(itertools.product([0, 1], repeat=b + c))
    uneven = [throw for throw in throws if abs(2 * sum(throw) - (b + c)) >= abs(b - c)]
    assert mcnemar(*rightness(b, c))[2] == pytest.approx(len(uneven) / len(throws), abs=1e-12)


def test_which_is_the_first_does_not_matter() -> None:
    first, second = rightness(8, 1)
    assert mcnemar(second, first) == (1, 8, mcnemar(first, second)[2])


def test_other_rows_are_refused() -> None:
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])
