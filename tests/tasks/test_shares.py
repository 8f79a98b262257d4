"""How a step's rows are divided over processes: no row twice, none left out, every step the configured one."""

import pytest
import torch
from torch.utils.data import Dataset

from ajuste.core.errors import UsageError
from ajuste.learning.batching import LengthGroupedSampler
from tasks.supervised.shares import Shares, loader, rows_of_a_batch


def divided(rows: int, batch_rows: int, accumulation: int, processes: int, epoch: int = 0) -> list[list]:
    """The batches of each process."""
    found = []
    for rank in range(processes):
        order = LengthGroupedSampler([7 * i % 5 for i in range(rows)], batch_rows, seed=3)
        shares = Shares(order, batch_rows, accumulation, rank, processes)
        shares.set_epoch(epoch)
        found.append(list(shares))
        assert len(found[-1]) == len(shares)
    return found


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("rows", [24, 25, 26, 31, 47])
def test_each_step_has_the_rows_of_one_process(rows: int, accumulation: int, processes: int) -> None:
    batch_rows = 12 * accumulation
    order = LengthGroupedSampler([7 * i % 5 for i in range(rows)], batch_rows, seed=3)
    order.set_epoch(2)
    whole, found = list(order), divided(rows, batch_rows, accumulation, processes, epoch=2)
    assert len({len(batches) for batches in found}) == 1
    for number, start in enumerate(range(0, rows, batch_rows)):
        pieces = [batches[number * accumulation : (number + 1) * accumulation] for batches in found]
        counted = [row for batches in pieces for batch in batches for row, counts in batch if counts]
        assert sorted(counted) == sorted(whole[start : start + batch_rows])
        sizes = [sum(counts for _, counts in batch) for batches in pieces for batch in batches]
        assert max(sizes) - min(sizes) <= 1 and all(batch for batches in pieces for batch in batches)
        if len(counted) == batch_rows:
            assert set(sizes) == {batch_rows // accumulation // processes}


def test_epochs_have_orders_of_their_own() -> None:
    assert divided(24, 12, 1, 2, epoch=0) != divided(24, 12, 1, 2, epoch=1)


def test_a_batch_without_a_row_of_its_own_has_no_label() -> None:
    class Numbers(Dataset):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, number: int) -> int:
            return number

    order = LengthGroupedSampler([1] * 5, 4, seed=0)
    batches = [
        list(loader(Numbers(), Shares(order, 4, 1, rank, 2), lambda rows: {"labels": torch.tensor([rows])}))
        for rank in range(2)
    ]
    assert [batch["labels"].shape for batch in batches[0]] == [(1, 2), (1, 1)]
    assert batches[1][1]["labels"].tolist() == [[-100]]
    seen = [number for own in batches for batch in own for number in batch["labels"].flatten().tolist()]
    assert sorted(seen) == [-100, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("batch_rows", "accumulation", "processes"), [(6, 2, 2), (9, 1, 2), (8, 2, 3)])
def test_rows_that_cannot_be_divided_are_named(batch_rows: int, accumulation: int, processes: int) -> None:
    assert rows_of_a_batch(12, 2, 3) == 2 and isinstance(rows_of_a_batch(12, 2, 3), int)
    said = f"batch_rows {batch_rows} .* {processes} processes .* make it a multiple of {accumulation * processes}"
    with pytest.raises(UsageError, match=said):
        rows_of_a_batch(batch_rows, accumulation, processes)
