"""Stage base_<kind>: bring a pretrained base into artifacts/base/<kind>, in one clean form.

    python -m tasks.base encoder
    python -m tasks.base decoder

Wherever the base came from (tasks/_sources.py), all later stages read the same layout: config.json without paths or
library versions, model.safetensors (sharded or torch .bin weights are converted; .bin files are read with
weights_only), the tokenizer without truncation or padding baked in, and base.json: {source, id, sha256 of the weights}.
The same source gives the same bytes.

encoder: weights in float32; what the checkpoint has beyond the bare encoder (a masked-word head) is left out.
decoder: a causal language model whose checkpoint has every weight, tied ones once, in `dtype` (bfloat16 is exact
when read as float32); a GGUF file will do (tasks/_gguf.py). generation_config.json and the chat template stay as they
are, and base.json has the digests of tokenizer.json and of the template too, which adapters are bound to.

A package or a Hub commit never changes. A `path:` folder can: after changing its files,
`dvc repro --force --single-item base_encoder` takes them in.
"""

import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks._gguf import load_gguf
from tasks._sources import Found, find
from tasks._stage import Compute, Config, UsageError, start

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class BaseConfig(Config):
    """Where the base comes from."""

    source: str = Field(description="package:<distribution>/<path> | hub:<id>@<revision> | path:<folder>")


class DecoderConfig(BaseConfig):
    """Section `base.decoder`."""

    dtype: Literal["bfloat16", "float32"] = Field(description="Of the stored weights.")


# --- encoder --------------------------------------------------------------------------------------------------------


def base(config: BaseConfig, compute: Compute, out: Path) -> dict:
    """Write the base to the folder `out` and return what base.json says.

    Raises UsageError if the source is missing or holds no model that transformers can load as it is.
    """
    import torch
    from transformers import AutoModel

    found = find(config.source)
    torch.manual_seed(compute.seed)  # weights that the checkpoint lacks (a pooler, say) are drawn the same way always
    model, loading = _load_model(AutoModel, found, config.source)
    missing = sorted(loading["missing_keys"])
    if missing:
        print(f"base: {len(missing)} weights are not in the checkpoint and start random: {', '.join(missing[:4])}",
              file=sys.stderr)  # fmt: skip
    tokenizer = _load_tokenizer(found.path, config.source)
    if tokenizer.pad_token_id is None:
        raise UsageError(f"base `{config.source}`: its tokenizer has no padding token, which batches of rows need")
    _save(model, tokenizer, config.source, out)
    return _card(out, {"source": found.source, "id": found.name, "sha256": _sha256(out / "model.safetensors")})


# --- decoder --------------------------------------------------------------------------------------------------------


def decoder(config: DecoderConfig, out: Path) -> dict:
    """Write the decoder to the folder `out` and return what base.json says.

    Raises UsageError if the source is missing, is no causal language model with all of its weights, or has a tokenizer
    without an end, or a chat template that cannot tell a prompt from a response.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from learning import chat

    found = find(config.source)
    if found.path.is_file():
        _quiet()
        model, tokenizer = load_gguf(found.path, config.source)
    else:
        model, loading = _load_model(AutoModelForCausalLM, found, config.source)
        for what in ("missing", "unexpected"):
            if names := sorted(loading[f"{what}_keys"]):
                raise UsageError(f"base `{config.source}` is no causal language model as transformers knows it: "
                                 f"{len(names)} {what} weights, first {names[0]}")  # fmt: skip
        tokenizer = _load_tokenizer(found.path, config.source)
    if tokenizer.eos_token_id is None:
        raise UsageError(f"base `{config.source}`: its tokenizer has no end-of-sequence token, which ends a response")
    if tokenizer.pad_token_id is None:
        print(f"base: the tokenizer has no padding token: {tokenizer.eos_token} pads too", file=sys.stderr)
        tokenizer.pad_token = tokenizer.eos_token
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    try:
        chat.segments(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except ValueError as error:
        raise UsageError(f"base `{config.source}`: {error}") from None
    _save(model.to(getattr(torch, config.dtype)), tokenizer, config.source, out)
    if not (out / "tokenizer.json").is_file():
        raise UsageError(f"base `{config.source}` has no fast tokenizer (tokenizer.json), which encoding needs")
    _clean(out / "generation_config.json", {"_from_model_config", "transformers_version"})
    return _card(out, {
        "source": found.source,
        "id": found.name,
        "sha256": _sha256(out / "model.safetensors"),
        "tokenizer_sha256": _sha256(out / "tokenizer.json"),
        "template_sha256": chat.template_sha256(tokenizer),
        "dtype": config.dtype,
    })  # fmt: skip


# --- both -----------------------------------------------------------------------------------------------------------


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _load_model(kind: type, found: Found, source: str) -> tuple:
    """The model in float32 and what transformers says about missing and unexpected weights."""
    import torch
    from safetensors import SafetensorError

    _quiet()
    if not (found.path / "config.json").is_file():
        raise UsageError(f"base `{source}` has no config.json: name the folder that holds a transformers model")
    try:
        return kind.from_pretrained(
            found.path, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except pickle.UnpicklingError:
        raise UsageError(f"base `{source}` cannot be loaded: its .bin file holds more than tensors") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"base `{source}` cannot be loaded by transformers: {_first_line(error)}") from None


def _load_tokenizer(folder: Path, source: str):
    from transformers import AutoTokenizer

    # transformers would make an empty tokenizer without a word
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UsageError(f"base `{source}` has no tokenizer: one of {', '.join(VOCABULARIES)} must stand beside it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"base `{source}` has no tokenizer that can be loaded: {_first_line(error)}") from None


def _save(model, tokenizer, source: str, out: Path) -> None:
    """Write model and tokenizer so that the same base gives the same bytes wherever and whenever."""
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"base `{source}`: its tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}"
        )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, max_shard_size="100GB")
    _clean(out / "config.json", {"_name_or_path", "transformers_version"})
    if tokenizer.is_fast:  # some are saved with a length baked in, which would cut rows without a word
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(out)
    # what was an argument of some call, ours or its maker's, is no property of the tokenizer
    arguments = {"is_local", "local_files_only", "trust_remote_code", "name_or_path"}
    baked_in = {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of"}
    _clean(out / "tokenizer_config.json", arguments | baked_in)


def _clean(path: Path, drop: set[str]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if key not in drop}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(out: Path, card: dict) -> dict:
    (out / "base.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def main() -> None:
    with start("base", {"encoder": BaseConfig, "decoder": DecoderConfig}) as stage:
        out = Path("artifacts/base") / stage.variant
        if stage.variant == "decoder":
            decoder(stage.config, out)
        else:
            base(stage.config, stage.compute, out)


if __name__ == "__main__":
    main()
