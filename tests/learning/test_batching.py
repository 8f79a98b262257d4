"""Length-sorted order: every row once an epoch, little padding, the same order for the same epoch."""

import torch

from ajuste.learning.batching import LengthGroupedSampler

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
