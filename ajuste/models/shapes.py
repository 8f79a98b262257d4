"""A model's sizes without its weights: for plans (ajuste/learning/plan/).

    of_folder(Path("artifacts/base/decoder"))     from the first bytes of its safetensors and config.json; no torch
    of("gpt3-175b")                               a GPT by its sizes (ajuste/learning/memory_plan.py)
    of("their/folder"), of("llama"), of("MistralConfig")
                                                  built by transformers on the meta device, where no weight has memory

A name without a folder is a class of transformers with the sizes that it has when nothing is set. Nothing is fetched.
"""

import json
import struct
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.learning.memory_plan import SHAPES
from ajuste.learning.plan.architecture import Architecture, gpt, read

NAMED = {"gpt3-175b": "gpt-3", **{name: name for name in SHAPES}}
PUBLISHED = {"gpt3-175b": 175e9, "gpt-3": 175e9}  # what the papers calculate with; the sizes make 174,604,259,328


def of(name: str) -> Architecture:
    """A named GPT, a folder, or a class of transformers. Raises UsageError for anything else."""
    if name in NAMED:
        return gpt(SHAPES[NAMED[name]], name)
    folder = Path(name)
    if (folder / "config.json").is_file():
        return of_folder(folder) if any(folder.glob("*.safetensors")) else on_meta(_configured(folder), name)
    if folder.is_dir():
        raise UsageError(f"{folder} has no config.json: it is no folder of a model of transformers")
    return on_meta(_default(name), name)


def of_folder(folder: Path) -> Architecture:
    """From the headers of a folder's safetensors. Raises UsageError for a folder without weights or configuration."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in header(file).items()}
        if not shapes:
            raise FileNotFoundError(f"{folder} has no safetensors")
        return read(shapes, config, str(folder))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} cannot be planned: {error}") from None


def header(file: Path) -> dict[str, list[int]]:
    """{name: shape} of a safetensors file: 8 bytes of length, then that many of JSON."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        found = json.loads(opened.read(length))
    return {name: entry["shape"] for name, entry in found.items() if name != "__metadata__"}


def on_meta(config: object, name: str) -> Architecture:
    """The model of a configuration of transformers, built without memory for its weights."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModel
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
        return read({key: tuple(weight.shape) for key, weight in model.named_parameters()}, config.to_dict(), name)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UsageError(f"`{name}` cannot be planned: {' '.join(str(error).split())[:200]}") from None


def _configured(folder: Path) -> object:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _default(name: str) -> object:
    import transformers
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[name] if name in CONFIG_MAPPING else getattr(transformers, name, None)
    known = getattr(known, "config_class", None) or known
    if not isinstance(known, type) or not issubclass(known, transformers.PretrainedConfig):
        raise UsageError(
            f"`{name}` is no model: name a folder with config.json, a class of transformers (llama, MistralConfig) or "
            f"one of {', '.join(NAMED)}"
        )
    return known()
