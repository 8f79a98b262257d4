"""What vLLM reads beside an assistant's files: `ajuste export NAME DIR --for vllm`, for more than one machine answers.

    generation_config.json   the ids that end an answer: the end of a turn and the end of the text. vLLM stops at the
                             text's end alone where it is not told, and an assistant ends its turn with the other
    tagged.jinja             the tagged form as a chat template, of a base that has none of its own
    serve.sh                 the command: `sh DIR/serve.sh`, of an adapter `sh DIR/serve.sh BASE`

A whole model has transformers' own layout. An adapter has PEFT's, of which vLLM takes LoRA without DoRA, bias or layers
that were trained whole, at the ranks of RANKS; its base is named by the id that the adapter names.
"""

import json
import shlex
from pathlib import Path

from ajuste.core.errors import UsageError

TEMPLATE = "tagged.jinja"  # of a base without a template of its own: vLLM's chat page needs one
TAGGED_TEMPLATE = """\
{%- set before = namespace(text="") -%}
{%- for turn in messages -%}
{%- if turn.role == "system" -%}
{%- set before.text = turn.content ~ "\\n\\n" -%}
{%- elif turn.role == "user" -%}
{{ "<instruction>" ~ before.text ~ turn.content ~ "</instruction><response>" }}
{%- set before.text = "" -%}
{%- else -%}
{{ turn.content ~ "</response>" ~ eos_token }}
{%- endif -%}
{%- endfor -%}
"""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes
NO_VLLM = {"dora": "DoRA", "prefix": "prefix tuning", "prompt": "prompt tuning"}
SCRIPT = """\
#!/bin/sh
# {name} by vLLM, on loopback; further options go through, as in `sh serve.sh {given}--port 8001`.{caution}
here=$(cd "$(dirname "$0")" && pwd)
{base}exec vllm serve {model} --served-model-name {served} {options} \\
  --generation-config "$here" --host 127.0.0.1 "$@"
"""
BASE = """\
base=${{1:?name the folder of {id}, whose model.safetensors has the sha256 {sha256}}}
shift
"""


def refuse(folder: Path, name: str) -> None:
    """Raise UsageError for what vLLM cannot answer with: another kind of model, or of adapter."""
    card = json.loads((folder / "ajuste.json").read_text(encoding="utf-8"))
    if card.get("kind") != "decoder":
        raise UsageError(f"{name} is no assistant, and vLLM is for those: export it without `--for vllm`")
    if (folder / "adapter_config.json").is_file() and card["method"] in NO_VLLM:
        raise UsageError(f"{name} was tuned with {NO_VLLM[card['method']]}, which vLLM cannot load: `ajuste serve` can")


def write(folder: Path, card: dict, adapter: bool, name: str) -> Path:
    """Add the files named above to an exported assistant and return serve.sh. name: what it is asked for by."""
    from transformers import GenerationConfig

    from ajuste.learning.text.chat import end_of_turn
    from ajuste.models.folder import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GenerationConfig(eos_token_id=end_of_turn(tokenizer), **ids).save_pretrained(folder)
    options = []
    if not has_template(folder):
        (folder / TEMPLATE).write_text(tagged_template(folder), encoding="utf-8")
        options.append(f'--chat-template "$here/{TEMPLATE}"')
    identity = card["base"]
    if adapter:
        options.append(f'--enable-lora --max-lora-rank {rank_of(folder)} --lora-modules {shlex.quote(name)}="$here"')
        model, served = '"$base"', shlex.quote(identity["id"])
        base = BASE.format(id=identity["id"], sha256=identity["sha256"])
    else:
        options.append(f"--dtype {json.loads((folder / 'config.json').read_text(encoding='utf-8'))['dtype']}")
        model, served, base = '"$here"', shlex.quote(name), ""
    quantised = card.get("quantisation") if adapter else None
    caution = "\n# The base was quantised in training: on another one the answers differ a little." if quantised else ""
    script = folder / "serve.sh"
    given = "BASE " if adapter else ""
    script.write_text(
        SCRIPT.format(name=name, given=given, caution=caution, base=base, model=model, served=served,
                      options=" ".join(options)),
        encoding="utf-8",
    )  # fmt: skip
    return script


def usage(script: Path, card: dict, adapter: bool) -> str:
    """The line that starts vLLM."""
    return f"sh {shlex.quote(str(script))}" + (f" BASE, a folder with {card['base']['id']}" if adapter else "")


def rank_of(folder: Path) -> int:
    """The smallest --max-lora-rank that holds an adapter."""
    r = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return next((known for known in RANKS if known >= r), r)


def has_template(folder: Path) -> bool:
    """Whether the tokenizer has a chat template."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return (folder / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))


def tagged_template(folder: Path) -> str:
    """The tagged form as a chat template, with what this tokenizer puts before every text: vLLM leaves that to it."""
    from ajuste.models.folder import load_tokenizer

    tokenizer = load_tokenizer(folder)
    first = tokenizer("")["input_ids"][:1]
    begins = bool(first) and first[0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if begins else "") + TAGGED_TEMPLATE
