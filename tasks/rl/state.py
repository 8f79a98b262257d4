"""The whole state of a run between two updates, on disk: what a kill at any moment can be undone from.

    checkpoint-<update>/state.safetensors    weights of adapters and heads, both moments of Adam, random generators
    checkpoint-<update>/state.json           update, data cursors, beta's controller, history, radar, samples
    checkpoint-<update>/COMPLETE             sha256 of both, written last (ajuste/core/checkpoints.py)

The orders of prompts and minibatches are functions of (seed, epoch) and (seed, update, epoch), so a cursor is all that
they need. Checkpoint 0 and the last two stay: those that an alarm can go back to. Every number is kept exactly, so
a run that goes on ends with the same bytes as one that was never disturbed.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ajuste.core.checkpoints import is_complete, last_complete, seal
from ajuste.core.errors import UsageError
from ajuste.core.home import write_atomically
from ajuste.learning.rl.kl import Beta
from ajuste.learning.rl.steps import Adam
from ajuste.models.one_base import OneBase
from tasks.rl.world import World

TENSORS, NUMBERS = "state.safetensors", "state.json"
KEPT = 4  # checkpoints that stand at once: the first, the last two, and the next while it is written
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class State:
    """What `save` writes and `load` brings back. one, optimiser, beta and generator are changed in place."""

    one: OneBase
    optimiser: Adam
    beta: Beta
    generator: torch.Generator  # of this process's sampling
    world: World
    update: int = 0
    cursor: int = 0  # prompts drawn so far
    ptx_cursor: int = 0  # instruction rows drawn so far
    history: list[dict] = field(default_factory=list)
    radar: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that the optimiser has, the policy's first."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def save(self, folder: Path) -> None:
        """Write checkpoint-<update> below `folder` and remove those that nobody can go back to any more."""
        generators = self.world.stacked(self.generator.get_state())
        if self.world.main:
            out = folder / f"checkpoint-{self.update}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            tensors = {f"weights/{name}": value for name, value in self.one.trainable_state().items()}
            save_file(_plain({**tensors, **self._moments(), "generators": generators}), out / TENSORS)
            numbers = {
                "update": self.update, "cursor": self.cursor, "ptx_cursor": self.ptx_cursor, "beta": self.beta.state(),
                "processes": self.world.processes, "history": self.history, "radar": self.radar,
                "samples": self.samples,
            }
            (out / NUMBERS).write_text(json.dumps(numbers) + "\n", encoding="utf-8")
            seal(out)
            for step in steps(folder)[1:-2]:
                shutil.rmtree(folder / f"checkpoint-{step}")  # only now that its successor is sealed
        self.world.wait()

    def load(self, checkpoint: Path) -> None:
        """Become what `save` saw. Raises UsageError for a checkpoint of another number of processes."""
        numbers = json.loads((checkpoint / NUMBERS).read_text(encoding="utf-8"))
        if numbers["processes"] != self.world.processes:
            raise UsageError(
                f"{checkpoint} was written by {numbers['processes']} processes and this run has "
                f"{self.world.processes}: start as many, or remove {checkpoint.parent} to begin again"
            )
        tensors = load_file(checkpoint / TENSORS)
        weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if "weights/" in name}
        self.one.load_trainable_state(weights)
        for number, parameter in enumerate(self.parameters()):
            moments = {name: tensors.get(f"moments/{number:04d}/{name}") for name in MOMENTS}
            if moments["step"] is None:
                self.optimiser.state.pop(parameter, None)  # not stepped yet
            else:
                device = parameter.device
                self.optimiser.state[parameter] = {
                    name: value if name == "step" else value.to(device) for name, value in moments.items()
                }
        self.generator.set_state(tensors["generators"][self.world.rank].clone())
        self.beta.load(numbers["beta"])
        for name in ("update", "cursor", "ptx_cursor", "history", "radar", "samples"):
            setattr(self, name, numbers[name])

    def _moments(self) -> dict[str, Tensor]:
        found = {}
        for number, parameter in enumerate(self.parameters()):
            for name, value in self.optimiser.state.get(parameter, {}).items():
                found[f"moments/{number:04d}/{name}"] = value
        return found


def steps(folder: Path) -> list[int]:
    """The updates whose checkpoints stand in `folder`, ascending."""
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def resumable(folder: Path) -> Path | None:
    """The newest whole checkpoint, None if there is none; spoilt ones after it are removed."""
    return last_complete(folder)


def last_good(folder: Path, update: int) -> Path:
    """The newest whole checkpoint of `update` or before. Raises UsageError when there is none."""
    for step in reversed(steps(folder)):
        if step <= update and is_complete(folder / f"checkpoint-{step}"):
            return folder / f"checkpoint-{step}"
    raise UsageError(f"{folder} has no whole checkpoint to go back to: remove it and run again")


def save_weights(one: OneBase, folder: Path, update: int) -> None:
    """The weights alone, in peaks/checkpoint-<update>: what the radar looked at and may keep."""
    out = folder / "peaks" / f"checkpoint-{update}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    save_file(_plain(one.trainable_state()), out / TENSORS)
    seal(out)


def load_weights(one: OneBase, folder: Path, update: int) -> None:
    """Bring back what `save_weights` kept. Raises UsageError if it is spoilt."""
    out = folder / "peaks" / f"checkpoint-{update}"
    if not is_complete(out):
        raise UsageError(f"{out} is spoilt: remove {folder} and run again")
    one.load_trainable_state(load_file(out / TENSORS))


def write_history(folder: Path, history: list[dict]) -> None:
    """history.jsonl as a whole, so that a resumed run has no line of a lost update."""
    write_atomically(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
