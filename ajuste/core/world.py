"""The processes that run one stage together: which of them this is, and how they wait for each other.

torchrun (`python -m torch.distributed.run`) and `accelerate launch` start a stage several times and tell each process
its number in RANK, how many there are in WORLD_SIZE, and its number on this machine in LOCAL_RANK. The first one,
rank 0, takes the stage's lock and writes: state, checkpoints, outs, history. The others read what it has written after
both have waited for each other, and leave when the training is over:

    first()           true in the first process, and where there is one alone
    wait()            until all are here
    same(thing)       the first one's, in all of them
    any_of(flag)      whether it is true in one of them
    first_goes_on()   the others have nothing left to do: `start` (stage.py) ends them well
    only_first()      the others have nothing to do at all: what a stage that shares nothing out begins with

Imports torch where it is used: a process that is alone needs none.
"""

import os
from typing import Any


class Left(BaseException):
    """A process other than the first has done its part; no code but `start` catches it."""


def rank() -> int:
    """This process's number."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def processes() -> int:
    """How many run this stage together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def own_device() -> None:
    """Let `cuda` mean this process's own GPU, where there are several processes."""
    import torch

    if processes() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def wait() -> None:
    """Until all processes are here; they must have been joined (accelerate and Trainer do it)."""
    if processes() > 1:
        import torch.distributed

        torch.distributed.barrier()


def same(thing: Any) -> Any:
    """What the first process gives, in all of them: any object that can be pickled."""
    if processes() == 1:
        return thing
    import torch.distributed

    held = [thing]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in one of the processes."""
    if processes() == 1:
        return flag
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found.item())


def only_first() -> None:
    """End every process but the first, which is alone from here on."""
    if not first():
        raise SystemExit(0)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def first_goes_on() -> None:
    """After what they did together the first process goes on alone. Raises Left in the others."""
    wait()
    if not first():
        raise Left
