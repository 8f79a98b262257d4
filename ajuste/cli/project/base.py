"""`ajuste base`: start from an assistant or a reward model of one's own, a registered one or a folder, in place of
training one here."""

import json
import struct
from pathlib import Path
from typing import Annotated

import typer

WEIGHTS = "model.safetensors"


def command(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS, models:/NAME@ALIAS, NAME/VERSION, or a folder.")],
) -> None:
    """Point params.yaml at a model that is there already: an assistant, from which all that learns from preferences
    starts, or a reward model, which pays PPO.

    \b
    ajuste base models:/assistant@champion    a registered assistant; the version that the alias names now
    ajuste base ../their-model                a folder of transformers, with its tokenizer
    ajuste base ratings-reward@champion       a registered reward model, or a folder with one
    git checkout params.yaml                  back to what was committed
    """
    from ajuste.cli.data.use import use

    folder, kind = _folder(model)
    source = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    if kind == "reward":
        use([("ppo.score", f"model:{source}")], True)
        return
    use([("base.decoder.source", f"path:{source}"), ("base.decoder.dtype", dtype_of(folder)),
         ("instruct.method", "none")], True)  # fmt: skip


def _folder(model: str) -> tuple[Path, str]:
    """The folder of a whole model, and what it is: assistant or reward. Raises UsageError for what is neither."""
    from ajuste.core.errors import UsageError

    if Path(model).is_dir():
        folder, what = Path(model).resolve(), model
        if not (folder / "config.json").is_file():
            raise UsageError(f"{model} has no config.json: name the folder that holds a transformers model")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])
        kind = "reward" if classifies else "assistant"
    else:
        from ajuste.tracking.registry import registry
        from ajuste.tracking.registry.families.all import kind_of

        found = registry.resolve(model)
        folder, what = found.path.resolve(), f"{found.name}/{found.version}"
        if (kind := kind_of(found.name)) not in ("assistant", "reward"):
            raise UsageError(f"{what} is a {kind}: what others are made from is an assistant or a reward model")
    if not (folder / WEIGHTS).is_file():
        raise UsageError(f"{what} has no {WEIGHTS}: an adapter is no whole model; name a merged version, or save the "
                         "model in one file of safetensors")  # fmt: skip
    return folder, kind


def dtype_of(folder: Path) -> str:
    """float32 where the weights are stored so, else bfloat16: as the stage `base_decoder` shall keep them."""
    with (folder / WEIGHTS).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    return "bfloat16" if kinds <= {"BF16"} else "float32"
