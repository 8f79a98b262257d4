"""Length-sorted order: every row once an epoch, little padding, the same order for the same epoch."""

import pytest
import torch

from ajuste.learning.batching import LengthGroupedSampler, pad, sorted_batches

LENGTHS = torch.randint(4, 60, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


def padding(order: list[int], rows: int) -> float:
    batches = [[LENGTHS[i] for i in order[start : start + rows]] for start in range(0, len(order), rows)]
    return 1 - sum(LENGTHS) / sum(max(batch) * len(batch) for batch in batches)


def test_every_row_once_and_another_order_each_epoch() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 16, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(len(LENGTHS))) and len(sampler) == len(LENGTHS)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGroupedSampler(LENGTHS, 16, seed=1)) != first


def test_padding_is_far_below_that_of_random_batches() -> None:
    assert padding(list(LengthGroupedSampler(LENGTHS, 16, seed=0)), 16) < 0.15
    assert padding(torch.randperm(len(LENGTHS)).tolist(), 16) > 0.35


def test_batches_do_not_come_in_order_of_length() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 16, seed=0))
    longest = torch.tensor([max(LENGTHS[i] for i in order[start : start + 16]) for start in range(0, 992, 16)])
    ranks = torch.stack([longest.argsort().argsort().double(), torch.arange(len(longest)).double()])
    assert abs(torch.corrcoef(ranks)[0, 1]) < 0.5


def test_fewer_rows_than_a_batch() -> None:
    assert sorted(LengthGroupedSampler([3, 1, 2], 16, seed=0)) == [0, 1, 2]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 2), (3, 1)])
def test_the_order_is_that_of_its_three_steps(seed: int, epoch: int) -> None:
    """Shuffle, sort pools of 16 batches by length, shuffle the batches; the odd batch is drawn first and comes last."""
    rows, sampler = 4, LengthGroupedSampler(LENGTHS, 4, seed)
    sampler.set_epoch(epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(1003, generator=generator).tolist()
    batches = []
    for start in range(0, 1000, rows * 16):
        pool = sorted(shuffled[start : min(start + rows * 16, 1000)], key=lambda i: LENGTHS[i])
        batches += [pool[i : i + rows] for i in range(0, len(pool), rows)]
    order = torch.randperm(len(batches), generator=generator).tolist()
    assert list(sampler) == [i for number in order for i in batches[number]] + shuffled[1000:]


def test_padding_stands_on_the_right_and_the_mask_says_where() -> None:
    ids, mask = pad([[5, 6, 7], [8], []], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_sorted_batches_begin_with_the_longest_and_keep_the_order_of_equals() -> None:
    rows = [[0] * n for n in (2, 5, 2, 7, 5)]
    assert list(sorted_batches(rows, 2)) == [[3, 1], [4, 0], [2]]
    assert list(sorted_batches(rows, 5)) == [[3, 1, 4, 0, 2]] and list(sorted_batches([], 2)) == []
