"""Flight recorder: everything that training knew about the episodes of chosen updates, readable by any tool.

    flight/update-0005.safetensors    prompt_ids, prompt_lengths (end to end), responses, mask, ended, drawn, scores,
                                      log_probs, new_log_probs, reference, entropy, values, kl, rewards, advantages,
                                      returns, value_mask                      shapes: tasks/rl/episodes.py
    flight/update-0005.json           the row of history.jsonl, and the settings that made its numbers

The JSON is written after the tensors, so an update that has one is whole. `ajuste explain ppo` shows it.
Of several processes the first one's episodes are recorded.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from tasks.rl.episodes import Episodes


class Flight(NamedTuple):
    """One recorded update."""

    episodes: Episodes
    row: dict
    settings: dict


def write(folder: Path, update: int, episodes: Episodes, row: dict, settings: dict) -> None:
    """Record an update below `folder`. settings: how its numbers were made, plain JSON."""
    flight = folder / "flight"
    flight.mkdir(exist_ok=True)
    tensors = episodes.tensors() | {
        "prompt_ids": torch.tensor([token for prompt in episodes.prompts for token in prompt]),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in episodes.prompts]),
    }
    path = flight / name(update)
    temporary = path.with_name(f".{path.name}")
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
    os.replace(temporary, path)
    write_json(path.with_suffix(".json"), {"update": update, "row": row, "settings": settings})


def read(folder: Path, update: int) -> Flight:
    """The update as it was. Raises UsageError: nothing recorded, this update was not, or its files are spoilt."""
    known = updates(folder)
    if not known:
        raise UsageError(
            f"{folder / 'flight'} holds no recorded update: set `record` in the stage's section of params.yaml and run "
            "the stage"
        )
    if update not in known:
        raise UsageError(
            f"update {update} was not recorded: there are {', '.join(map(str, known))} (`record` in the stage's "
            "section of params.yaml)"
        )
    path = folder / "flight" / name(update)
    try:
        tensors = load_file(path)
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        ids = tensors.pop("prompt_ids").split(tensors.pop("prompt_lengths").tolist())
        return Flight(Episodes([part.tolist() for part in ids], **tensors), said["row"], said["settings"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read ({type(error).__name__}): run its stage again") from None


def updates(folder: Path) -> list[int]:
    """The recorded updates of an adapter folder, ascending."""
    found = (path.stem.removeprefix("update-") for path in (folder / "flight").glob("update-*.json"))
    return sorted(int(number) for number in found if number.isdigit())


def name(update: int) -> str:
    """The file of an update's tensors."""
    return f"update-{update:04d}.safetensors"
