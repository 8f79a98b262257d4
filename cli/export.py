"""`ajuste export`: copy a registered model into a folder that plain transformers or PEFT loads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

WHOLE = """\
from transformers import pipeline
classify = pipeline("text-classification", model="{folder}")
classify("A warm, funny film.", truncation=True, max_length={max_tokens})"""
ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained("BASE", num_labels={labels})
model = PeftModel.from_pretrained(base, "{folder}")
# BASE is a folder with {base_id}, model.safetensors of sha256 {base_sha256}; here it is {base}"""
MEAN = """\
from pathlib import Path
from learning.classifier import {load}, predict     # mean pooling: the head is head.safetensors, beside the encoder
predict(*{load}({arguments}Path("{folder}")), ["A warm, funny film."])"""


def command(
    reference: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="NAME, NAME@ALIAS or NAME/VERSION.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
) -> None:
    """Copy a registered model, verified, into DIR, and say how to load it without this project.

    Examples:  ajuste export reviews-classifier@champion model   |   ajuste export reviews-classifier-adapter/1 adapter
    """
    from tasks._stage import DataError, UsageError, home

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a new folder")
    from serving.models import Models, RefusedModel, UnknownModel, check_digest, is_adapter
    from tracking import registry

    try:
        version = Models(registry.resolve, registry.names(), Path()).find(reference)
        check_digest(version)
        shutil.copytree(version.path, folder, dirs_exist_ok=True)
        check_digest(replace(version, path=folder))
    except UnknownModel as error:
        raise UsageError(str(error)) from None
    except RefusedModel as error:
        raise DataError(str(error)) from None
    card = json.loads((folder / "ajuste.json").read_text(encoding="utf-8"))
    exported = {"name": version.name, "version": str(version.version), "alias": version.alias,
                "sha256": version.tags["sha256"], "strategy": card["strategy"], "base": card["base"]}
    (folder / "exported.json").write_text(json.dumps(exported, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    alias = f", {version.alias}" if version.alias else ""
    typer.echo(f"{version.name} version {version.version} ({card['strategy']}{alias}) is in {folder}\n")
    typer.echo(how_to_load(folder, card, is_adapter(version), home() / "artifacts" / "base" / "encoder"))


def how_to_load(folder: Path, card: dict, adapter: bool, base: Path) -> str:
    """The lines of Python that load what was exported."""
    if card["pooling"] == "mean":
        load, arguments = ("load_adapter", f'Path("{base}"), ') if adapter else ("load", "")
        return MEAN.format(load=load, arguments=arguments, folder=folder)
    if adapter:
        return ADAPTER.format(folder=folder, labels=len(card["labels"]), base=base, base_id=card["base"]["id"],
                              base_sha256=card["base"]["sha256"][:16])
    return WHOLE.format(folder=folder, max_tokens=card["max_tokens"])
