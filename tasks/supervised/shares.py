"""The rows of an optimiser step, divided over the processes that run the stage together.

    batch_rows = rows of a batch x accumulation x processes          each process takes every processes-th batch

A step has the rows that it has in one process, whatever their number: the odd last step of an epoch is divided as
evenly as it goes. accelerate's own division would fill it up with rows of the epoch's beginning, which count twice
then. Where a step has fewer rows than there are batches, a batch without a row takes one at weight 0, since every
process has to go forward and backward as often: its labels are all IGNORED, and the loop multiplies its loss by 0.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ajuste.core.errors import UsageError
from ajuste.learning.batching import LengthGroupedSampler
from ajuste.learning.losses.cross_entropy import IGNORED

Collate = Callable[[list], dict[str, Tensor]]
Key = tuple[int, bool]  # a row's number, and whether it counts


def rows_of_a_batch(batch_rows: int, accumulation: int, processes: int) -> int:
    """Raises UsageError when the rows of a step cannot be divided."""
    batches = accumulation * processes
    if batch_rows % batches:
        raise UsageError(
            f"batch_rows {batch_rows} cannot be divided over {processes} processes in accumulation {accumulation} "
            f"pieces: make it a multiple of {batches}, or start another number of processes"
        )
    return batch_rows // batches


class Shares(Sampler[list[Key]]):
    """The batches of one process in an epoch. `batch_sampler` is the order of all rows: Trainer sets its epoch there,
    or through `set_epoch` where it has put its own sampler around this one."""

    def __init__(
        self, order: LengthGroupedSampler, batch_rows: int, accumulation: int, rank: int, processes: int
    ) -> None:
        self.batch_sampler, self.batch_rows, self.accumulation = order, batch_rows, accumulation
        self.rank, self.processes = rank, processes

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        whole, odd = divmod(len(self.batch_sampler), self.batch_rows)
        return whole * self.accumulation + self._pieces(odd)

    def __iter__(self) -> Iterator[list[Key]]:
        order = list(self.batch_sampler)
        for start in range(0, len(order), self.batch_rows):
            step = order[start : start + self.batch_rows]
            batches = np.array_split(step, self._pieces(len(step)) * self.processes)
            for own in batches[self.rank :: self.processes]:
                yield [(int(row), True) for row in own] or [(step[0], False)]

    def _pieces(self, rows: int) -> int:
        """As many as one process would cut so many rows into."""
        return math.ceil(rows / (self.batch_rows // self.accumulation))


class _Keyed(Dataset):
    """Rows by `Key`."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __getitem__(self, key: Key) -> tuple[object, bool]:
        number, counts = key
        return self.rows[number], counts


def loader(rows: Dataset, shares: Shares, collate: Collate) -> DataLoader:
    """The batches of one process; those of `rows` that do not count have no label."""

    def collated(some: list[tuple[object, bool]]) -> dict[str, Tensor]:
        batch = collate([row for row, _ in some])
        if not some[0][1]:
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return batch

    return DataLoader(_Keyed(rows), batch_sampler=shares, collate_fn=collated)
