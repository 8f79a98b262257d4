"""`ajuste export`: copy a registered model, and its cards, into a folder that plain transformers or PEFT loads.

What vLLM asks of an adapter's folder is PEFT's own layout: adapter_config.json (peft_type LORA, r, lora_alpha,
target_modules, use_rslora) and adapter_model.safetensors with A and B alone; it takes no DoRA, no bias and no layers
that were trained whole. Its folder resolver finds an adapter only where base_model_name_or_path is the base's served
name, which is therefore printed.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from ajuste.cli.models.names import errors_told, open_models
from ajuste.serving import vllm
from ajuste.serving.vllm import NO_VLLM, TEMPLATE, has_template, rank_of, tagged_template

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
from ajuste.models.classifier import {load}, predict     # mean pooling: head.safetensors is beside the encoder
predict(*{load}({arguments}Path("{folder}")), ["A warm, funny film."])"""


CHAT = """\
from transformers import pipeline
chat = pipeline("text-generation", model="{folder}")
turns = [{{"role": "user", "content": "Name three uses of salt."}}]
chat(turns, max_new_tokens=64, return_full_text=False, do_sample=False)[0]["generated_text"]"""
TAGGED = """\
from transformers import pipeline
chat = pipeline("text-generation", model="{folder}")
prompt = "<instruction>Name three uses of salt.</instruction><response>"      # its base has no chat template
chat(prompt, max_new_tokens=64, return_full_text=False, do_sample=False)[0]["generated_text"]"""
DECODER_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{imported}
base = AutoModelForCausalLM.from_pretrained("BASE"{how})
model = PeftModel.from_pretrained(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
# BASE is a folder with {base_id}, model.safetensors of sha256 {base_sha256}; {base}"""
REWARD = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
{load}
turns = [{{"role": "user", "content": "Write a one-sentence movie review."}},
         {{"role": "assistant", "content": "A warm, funny film."}}]
text = {written}
with torch.no_grad():
    logits = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
reward = logits[0, 0].item() + {bias!r}      # the bias, for which this layout has no place"""
WHOLE_REWARD = """\
model = AutoModelForSequenceClassification.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
ADAPTER_REWARD = """\
from peft import PeftModel
base = AutoModelForSequenceClassification.from_pretrained("BASE", num_labels=1, dtype=torch.float32)
base.config.pad_token_id = {pad_id}      # not what ends a turn: the reward is read there
model = PeftModel.from_pretrained(base, "{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")
# BASE is a folder with {base_id}, model.safetensors of sha256 {base_sha256}; {base}"""
TEMPLATED = 'tokenizer.apply_chat_template(turns, tokenize=False).rstrip()      # ends with the end of turn'
PLAIN = ('"<instruction>{}</instruction><response>{}</response>".format(*(turn["content"] for turn in turns)) + '
         'tokenizer.eos_token')
HOW = {  # quantisation -> the base as it was trained on
    None: "",
    "nf4": ", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=\"nf4\",\n"
           "    bnb_4bit_use_double_quant=True)",
    "int8": ", quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)",
}  # fmt: skip
VLLM = """\
# vLLM: vllm serve BASE --served-model-name "{base_id}" --enable-lora --max-lora-rank {rank} \\
#           --lora-modules {name}="{folder}"{caution}"""
WHOLE_VLLM = """\
# vLLM: vllm serve "{folder}" --served-model-name "{name}" --dtype {dtype} --generation-config vllm{template}"""


def command(
    reference: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="NAME, NAME@ALIAS or NAME/VERSION.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    served_by: Annotated[Literal["vllm"] | None, typer.Option("--for", help="Add what that server reads.")] = None,
) -> None:
    """Copy a registered model, verified, into DIR, and say how to load it without this project.

    Examples:  ajuste export reviews-classifier@champion model   |   ajuste export reviews-classifier-adapter/1 adapter

    ajuste export assistant@challenger chat   |   ajuste export assistant-adapter/1 lora   |   ... --for vllm

    ajuste export ratings-reward reward
    """
    from ajuste.core.errors import UsageError
    from ajuste.core.home import home

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a new folder")
    from ajuste.serving.loading import check_digest, is_adapter

    with errors_told():
        version = open_models().find(reference)
        check_digest(version)
        refuse_bottleneck(version.path, f"{version.name}/{version.version}")
        if served_by:
            vllm.refuse(version.path, f"{version.name}/{version.version}")
        shutil.copytree(version.path, folder, dirs_exist_ok=True)
        check_digest(replace(version, path=folder))
    card = json.loads((folder / "ajuste.json").read_text(encoding="utf-8"))
    strategy = card.get("strategy", card.get("method"))  # a reward model has a method alone
    exported = {"name": version.name, "version": str(version.version), "alias": version.alias,
                "sha256": version.tags["sha256"], "strategy": strategy, "base": card["base"]}
    (folder / "exported.json").write_text(json.dumps(exported, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    from ajuste.tracking.cards import attached

    cards = attached.copy(version, folder)
    alias = f", {version.alias}" if version.alias else ""
    typer.echo(f"{version.name} version {version.version} ({strategy}{alias}) is in {folder}")
    typer.echo(f"{' and '.join(cards)} say what it is\n" if cards else "no card is kept with it: `ajuste run` "
               "writes those of the versions that dvc.lock names\n")
    if served_by:
        script = vllm.write(folder, card, is_adapter(version), version.name)
        typer.echo(f"vLLM answers with it: {vllm.usage(script, card, is_adapter(version))}")
    elif card.get("kind") in ("decoder", "reward"):
        made_from = version.tags.get("base_version")
        base = f"here it is {home() / 'artifacts' / 'base' / 'decoder'}"
        base = f"`ajuste export {made_from} BASE` writes it" if made_from else base
        explain = how_to_load_decoder if card["kind"] == "decoder" else how_to_load_reward
        typer.echo(explain(folder, card, is_adapter(version), base))
    else:
        typer.echo(how_to_load(folder, card, is_adapter(version), home() / "artifacts" / "base" / "encoder"))


def refuse_bottleneck(path: Path, name: str) -> None:
    """Raise UsageError for bottleneck layers: PEFT has none, so an exported folder would be of no use."""
    from ajuste.core.errors import UsageError

    if (path / "bottleneck.json").is_file():
        raise UsageError(f"{name} holds bottleneck layers, which PEFT and vLLM cannot load: `ajuste serve` and `ajuste "
                         "chat` answer with it; fine-tune with `instruct.method: lora` for a model to export")


def how_to_load_reward(folder: Path, card: dict, adapter: bool, base: str) -> str:
    """The lines of Python that load a reward model and score a response. base: where an adapter's base is, in words."""
    identity = card["base"]
    load = (ADAPTER_REWARD if adapter else WHOLE_REWARD).format(
        folder=folder, base=base, base_id=identity["id"], base_sha256=identity["sha256"][:16], pad_id=card["pad_id"]
    )
    return REWARD.format(load=load, bias=card["bias"], written=TEMPLATED if has_template(folder) else PLAIN)


def how_to_load_decoder(folder: Path, card: dict, adapter: bool, base: str) -> str:
    """The lines of Python that load what was exported, and those that give it to vLLM. base: where it is, in words.

    A whole model without a chat template gets its tagged form as TEMPLATE, beside its files.
    """
    if not adapter:
        own = has_template(folder)
        if not own:
            (folder / TEMPLATE).write_text(tagged_template(folder), encoding="utf-8")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        template = "" if own else f' \\\n#           --chat-template "{folder / TEMPLATE}"'
        served = json.loads((folder / "exported.json").read_text(encoding="utf-8"))["name"]
        return (CHAT if own else TAGGED).format(folder=folder) + "\n" + WHOLE_VLLM.format(
            folder=folder, name=served, dtype=config["dtype"], template=template)
    quantisation, identity = card["quantisation"], card["base"]
    text = DECODER_ADAPTER.format(
        folder=folder, base=base, base_id=identity["id"], base_sha256=identity["sha256"][:16], how=HOW[quantisation],
        imported=", BitsAndBytesConfig" if quantisation else "",
    )
    if card["method"] in NO_VLLM:
        return f"{text}\n# vLLM loads no {NO_VLLM[card['method']]}"
    caution = "\n# its base was quantised: on another one than that the answers differ a little" if quantisation else ""
    served = {"base_id": identity["id"], "rank": rank_of(folder), "name": "mine", "folder": folder, "caution": caution}
    return text + "\n" + VLLM.format(**served)


def how_to_load(folder: Path, card: dict, adapter: bool, base: Path) -> str:
    """The lines of Python that load what was exported."""
    if card["pooling"] == "mean":
        load, arguments = ("load_adapter", f'Path("{base}"), ') if adapter else ("load", "")
        return MEAN.format(load=load, arguments=arguments, folder=folder)
    if adapter:
        return ADAPTER.format(folder=folder, labels=len(card["labels"]), base=base, base_id=card["base"]["id"],
                              base_sha256=card["base"]["sha256"][:16])
    return WHOLE.format(folder=folder, max_tokens=card["max_tokens"])
