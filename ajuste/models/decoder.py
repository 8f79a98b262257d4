"""A decoder (a causal language model) and its adapters on disk: load, save, and the guard between the two.

    base       artifacts/base/decoder: weights in bfloat16, tokenizer, and base.json, its identity
    whole      a fine-tuned or merged model: an ordinary transformers folder, which needs no base
    adapter    PEFT's own layout (any tool loads it), or the bottleneck layers of ajuste/learning/layers/bottleneck.py
               (PEFT has none)

Each folder but the base's holds `ajuste.json`, the card: method, base, parameters, validation, max_tokens, ...

An adapter means something only on the very base that it was trained on, read with the very tokenizer and written in
the very chat template. The card keeps the sha256 of all three, and `load` refuses a base that differs in one:

    model, tokenizer, card = load(Path("artifacts/adapters/instruct"), base=Path("artifacts/base/decoder"))
    model, tokenizer, card = load(Path("artifacts/merged/instruct"))

An adapter that was trained on a quantised base (QLoRA) is loaded on that base quantised again, in the same way.
"""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ajuste.learning.layers import bottleneck
from ajuste.learning.text import chat
from ajuste.models import quantize
from ajuste.models.folder import (
    ADAPTER_CONFIG,
    CARD,
    load_tokenizer,
    quiet,
    read_card,
    save_rest,
    sha256_of,
    tidy_adapter,
)

BASE_CARD, WEIGHTS, TOKENIZER = "base.json", "model.safetensors", "tokenizer.json"
IDENTITY = {"sha256": "weights", "tokenizer_sha256": "tokenizer", "template_sha256": "chat template"}


# --- the base and its identity --------------------------------------------------------------------------------------


def identity_of(base: Path) -> dict:
    """{"id", "sha256", "tokenizer_sha256", "template_sha256"} of a base folder, as its base.json says.

    The whole model of a training (artifacts/merged/instruct) can be the base of the next one: its id is its own base's
    and "+instruct" (a later method's name after that), the rest is of its files.
    Raises ValueError if base.json is missing or is not that of a decoder, and for a folder that is an adapter.
    """
    path = base / BASE_CARD
    if not path.is_file() and (base / CARD).is_file():
        return _identity_of_trained(base)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        return {key: card[key] for key in ("id", *IDENTITY)}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run stage `base_decoder`") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}: it is not the base of a decoder; run stage `base_decoder`") from None


def _identity_of_trained(folder: Path) -> dict:
    card = read_card(folder)
    if card.get("kind") != "decoder":
        raise ValueError(f"{folder} holds no decoder but a {card.get('task', 'different')} model: it cannot be a base")
    if is_adapter(folder):
        raise ValueError(
            f"{folder} holds an adapter of method `{card['method']}`, which cannot be merged and so cannot be a base: "
            "train with a mergeable method (lora, rslora, dora, qlora, qlora8) or full"
        )
    for needed in (WEIGHTS, TOKENIZER):
        _need(folder / needed, "train or merge the model again")
    before = card["base"]["id"]
    return {
        "id": f"{before}+{card['method'] if '+' in before else 'instruct'}",
        "sha256": sha256_of(folder / WEIGHTS),
        "tokenizer_sha256": sha256_of(folder / TOKENIZER),
        "template_sha256": chat.template_sha256(load_tokenizer(folder)),
    }


def load_base(base: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The base's model in eval mode, every weight in `dtype`, and its tokenizer. Raises ValueError if it is missing."""
    _need(base / WEIGHTS, "run stage `base_decoder`")
    return _whole(base, dtype), load_tokenizer(base)


# --- save -----------------------------------------------------------------------------------------------------------


def save_adapter(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, out: Path, card: dict, adapter: str = "default"
) -> None:
    """Write the adapter of a model from ajuste/models/methods.py: the same bytes for the same weights, and no path.

    adapter: PEFT's name of it; the others that the model has are not written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        if hasattr(model, "peft_config"):
            # "auto" would look the base up on the Hub to see whether its embeddings were resized
            model.save_pretrained(out, save_embedding_layers=False, selected_adapters=[adapter])
            if adapter != "default":  # PEFT wrote it in a folder of its own
                for file in (out / adapter).iterdir():
                    file.replace(out / file.name)
                (out / adapter).rmdir()
            tidy_adapter(out, card["base"]["id"])
        else:
            bottleneck.save(model, out, card["base"]["id"])
    save_rest(tokenizer, out, card)


def save_whole(model: nn.Module, tokenizer: PreTrainedTokenizerBase, out: Path, card: dict) -> None:
    """Write a whole model in the dtype that it has; plain transformers loads the folder."""
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(out, max_shard_size="100GB")
    save_rest(tokenizer, out, card)


# --- load -----------------------------------------------------------------------------------------------------------


def is_adapter(folder: Path) -> bool:
    """True if a model folder holds an adapter, which needs its base."""
    return (folder / ADAPTER_CONFIG).is_file() or (folder / bottleneck.CONFIG).is_file()


def load(
    folder: Path, base: Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase, dict]:
    """A model in eval mode, its tokenizer and its card. A whole model needs no `base`, an adapter does.

    dtype: of the base's weights and the arithmetic; an adapter's own weights stay float32.
    Raises ValueError for a folder that is no model, an adapter without base, and a base that is not the adapter's,
    naming what differs: weights, tokenizer or chat template.
    """
    card = read_card(folder)
    if card.get("kind") != "decoder":
        raise ValueError(f"{folder} holds no decoder but a {card.get('task', 'different')} model")
    if not is_adapter(folder):
        _need(folder / WEIGHTS, "train or merge the model again")
        return _whole(folder, dtype), load_tokenizer(folder), card
    if base is None:
        raise ValueError(f"{folder} holds an adapter, which needs its base {card['base']['id']}")
    check_base(folder, card, base)
    quantisation = card["quantisation"]
    model = quantize.load(base, quantisation, dtype) if quantisation else _whole(base, dtype)
    return put_on(model, folder).eval(), load_tokenizer(base), card


def put_on(model: nn.Module, adapter: Path) -> nn.Module:
    """The adapter folder on a model that is its base (`check_base` first), or on the base's dequantised form.

    Its weights are float32 and frozen. Raises ValueError for weights that do not fit the model.
    """
    if (adapter / bottleneck.CONFIG).is_file():
        return bottleneck.load(model, adapter)
    try:
        with quiet():
            import peft  # takes seconds

            return peft.PeftModel.from_pretrained(model, adapter)
    except RuntimeError as error:
        raise ValueError(f"adapter {adapter} does not fit its base: {str(error).splitlines()[-1].strip()}") from None


def check_base(adapter: Path, card: dict, base: Path) -> None:
    """Raise ValueError, naming what differs, unless `base` is the one that the adapter's card names."""
    wanted, found = card["base"], identity_of(base)
    for needed in (WEIGHTS, TOKENIZER):
        _need(base / needed, "run stage `base_decoder`")
    if (base / BASE_CARD).is_file():  # which may be older than the files themselves
        found |= {
            "sha256": sha256_of(base / WEIGHTS),
            "tokenizer_sha256": sha256_of(base / TOKENIZER),
            "template_sha256": chat.template_sha256(load_tokenizer(base)),
        }
    different = [
        f"its {what} (sha256 {found[key][:12]}, wanted {wanted[key][:12]})"
        for key, what in IDENTITY.items()
        if found[key] != wanted[key]
    ]
    if different:
        raise ValueError(
            f"adapter {adapter} was trained on base {wanted['id']}, and {base} ({found['id']}) differs in "
            f"{' and '.join(different)}: give it the base that it was trained on"
        )


def _whole(folder: Path, dtype: torch.dtype) -> nn.Module:
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()


def _need(path: Path, cure: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {cure}")
