"""Where a stage runs: section `launch` of params.yaml.

    one     in the process that DVC started
    ray     a stage that trains: as `processes` workers of a Ray cluster (ajuste/core/launch/train.py); one that works
            through batches of rows (`spread`): here, and its batches there (ajuste/core/launch/rows.py)

    spread(function, batches) -> function(batch) of each batch, in the order of the batches

`map` is the local `Spread`. The other one sends function and batches to other processes: both are then pickled, and the
function may change nothing but what it returns. What comes out is written by the one process that reads the batches, so
the same bytes come of both ways.

Several processes add up in another order, so a training differs in its last digits from that of one; where it draws
(dropout, a policy's samples) each process has random numbers of its own, and the run is another one.
Equal numbers of processes give equal bytes.

`launch` is in no stage's `params`: to move a run to another machine must not make its stages stale. What the ways need
is imported by name, so that it is among no stage's deps either.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from ajuste.core.params import Compute, Config, read_yaml, typed
from ajuste.core.stages import module_of

Batch, Found = TypeVar("Batch"), TypeVar("Found")
Spread = Callable[[Callable[[Batch], Found], Iterable[Batch]], Iterator[Found]]
AWAY = "AJUSTE_LAUNCHED"  # set where a stage has been sent to: it runs there


class Launch(Config):
    """Section `launch`, shared by all stages."""

    by: Literal["one", "ray"] = Field(default="one", description="one: this process; ray: a cluster.")
    processes: int = Field(default=1, ge=1, description="Of a stage that trains.")
    address: str = Field(default="local", min_length=1, description="Of the cluster: local, auto or HOST:PORT.")


def launch_of(params: dict) -> Launch:
    """The section of params.yaml; without one a stage runs in one process."""
    return typed(Launch, params.get("launch") or {}, "launch")


def sent_away(name: str, together: bool) -> bool:
    """Run stage `name` where `launch` says, to its end; False: it is to run here and now.

    together: its processes share the training out. Raises UsageError: no cluster; SystemExit with the code of a stage
    that failed there.
    """
    params = read_yaml(Path("params.yaml"))
    launch = launch_of(params)
    if launch.by == "one" or os.environ.get(AWAY):
        return False
    module = module_of(name)
    if together:
        compute = typed(Compute, params.get("compute") or {}, "compute")
        importlib.import_module("ajuste.core.launch.train").run(module, launch.processes, launch.address, compute)
        return True
    if getattr(sys.modules["__main__"].__spec__, "name", None) != module:  # a test called the stage
        return False
    os.environ[AWAY] = "1"  # what is sent to other processes must be of a module that they can import: not of __main__
    importlib.import_module(module).main()
    return True


def spread(function: Callable, batches: Iterable) -> Iterator:
    """function(batch) of each batch in order, worked on where `launch` says: a `Spread`."""
    launch = launch_of(read_yaml(Path("params.yaml")))
    if launch.by == "one":
        return map(function, batches)
    return importlib.import_module("ajuste.core.launch.rows").spread(function, batches, launch.address)
