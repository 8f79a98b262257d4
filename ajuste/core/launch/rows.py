"""Batches of rows worked on by Ray Data on the nodes of a cluster: a `Spread` (ajuste/core/launch/where.py).

    the stage reads batches ─> windows of them ─> Ray Data: function(batch), a task each ─> in order ─> the stage writes

The batches of a window are blocks of one row, so Ray Data places each where there is a free CPU, and hands the results
on in the order of the blocks (`preserve_order`). Memory is a window, whatever the rows; a batch whose node is lost is
worked on anew by Ray. A fault of the data or of the user is raised here as the function raised it.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ajuste.core.errors import DataError, UsageError
from ajuste.core.launch.connect import connected

BATCHES_A_CPU = 16  # in a window; Ray Data starts each window anew, and its last tasks wait for no others


def spread(function: Callable, batches: Iterable, address: str) -> Iterator:
    """function(batch) of each batch in order, on one CPU each. Raises UsageError: no cluster."""
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    if not first:
        return
    with connected(address, 1):
        import ray

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells the plan of every window
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        cpus = int(ray.cluster_resources().get("CPU", 1))
        shared = ray.put(function)  # once for all windows: a tokenizer and n-grams are large
        window = first + list(itertools.islice(batches, BATCHES_A_CPU * cpus - 1))
        while window:
            rows = [{"batch": _Whole(batch)} for batch in window]
            data = ray.data.from_items(rows, override_num_blocks=len(rows))
            mapped = data.map(_apply, fn_args=(shared,), num_cpus=1)
            for row in mapped.iter_rows():
                found, fault = row["found"].thing
                if fault:
                    raise fault
                yield found
            window = list(itertools.islice(batches, BATCHES_A_CPU * cpus))


@dataclass
class _Whole:
    """Keeps a thing as it is in a row of Ray Data, which would make a column of Arrow of what it understands."""

    thing: Any


def _apply(row: dict[str, _Whole], shared: Any) -> dict[str, _Whole]:
    """A task: the function at one batch."""
    import ray

    try:
        found = ray.get(shared)(row["batch"].thing), None
    except (DataError, UsageError) as fault:  # Ray would wrap it, and its kind would be lost
        found = None, fault
    return {"found": _Whole(found)}
