"""Where the batches of a stage are worked on: here one after the other, or on the nodes of a cluster.

    spread(function, batches) -> function(batch) of each batch, in the order of the batches

`map` is the local way. The other one (ajuste/core/on_ray/rows.py) sends function and batches to other processes: both
are then pickled, and the function may change nothing but what it returns. What comes out is written by the one process
that reads the batches, so the same bytes come of both ways.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch, Found = TypeVar("Batch"), TypeVar("Found")
Spread = Callable[[Callable[[Batch], Found], Iterable[Batch]], Iterator[Found]]
