"""Batches of rows of similar length: on a CPU padding is the enemy (43 % of the tokens of random batches).

One epoch's order is a pure function of (lengths, batch_rows, seed, epoch), so a resumed run finds the same order
without any saved generator:

    1. shuffle all rows with the generator of (seed, epoch)
    2. cut into pools of `POOL` batches, sort each pool by length, cut it into batches
    3. shuffle the batches

transformers' own `group_by_length` leaves out step 3: within a pool of 50 batches the rows get shorter and shorter.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

POOL = 16  # batches that are sorted together: less padding with more, more random batches with fewer


class LengthGroupedSampler(Sampler[int]):
    """Yields row numbers so that each `batch_rows` in a row are of similar length; the odd batch comes last.

    lengths: tokens of each row. `set_epoch` chooses the order; torch's DataLoader and accelerate call it.
    """

    def __init__(self, lengths: Sequence[int], batch_rows: int, seed: int):
        self.lengths = torch.as_tensor(lengths)
        self.batch_rows = batch_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        # the rows of the odd batch are drawn before sorting, or they would always be the shortest of a pool
        whole = len(order) // self.batch_rows * self.batch_rows
        batches = []
        for pool in order[:whole].split(self.batch_rows * POOL):
            batches += pool[torch.argsort(self.lengths[pool], stable=True)].split(self.batch_rows)
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        yield from torch.cat([*shuffled, order[whole:]]).tolist()


def pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Token ids of unequal length -> (input_ids, attention_mask), both int64 [B, longest], padded on the right."""
    input_ids = torch.full((len(rows), max(map(len, rows))), value)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row)
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask


def sorted_batches(rows: Sequence[Sequence[int]], batch_rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, so that a batch that does not fit fails at once."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]
