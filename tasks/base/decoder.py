"""Stage `base_decoder`: bring a causal language model into artifacts/base/decoder, in one clean form
(tasks/base/common.py).

Its checkpoint has every weight, tied ones once, in `dtype` (bfloat16 is exact when read as float32); a GGUF file will
do (ajuste/models/gguf.py). generation_config.json and the chat template stay as they are, and base.json has the digests
of tokenizer.json and of the template too, which adapters are bound to.

Run it: `python -m tasks.base.decoder`, or `dvc repro base_decoder`.
"""

import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from ajuste.core.errors import UsageError
from ajuste.core.stage import start
from ajuste.models.gguf import load_gguf
from ajuste.rows.sources import Found
from tasks.base.common import BaseConfig, card, clean, find, load_model, load_tokenizer, quiet, save, sha256


class DecoderConfig(BaseConfig):
    """Section `base.decoder`."""

    dtype: Literal["bfloat16", "float32"] = Field(description="Of the stored weights.")


def decoder(config: DecoderConfig, out: Path) -> dict:
    """Write the decoder to the folder `out` and return what base.json says.

    Raises UsageError if the source is missing, is no causal language model with all of its weights, or has a tokenizer
    without an end, or a chat template that cannot tell a prompt from a response.
    """
    import torch

    from ajuste.learning.text import chat

    with find(config.source) as found:
        model, tokenizer = _load(found, config.source)
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
    save(model.to(getattr(torch, config.dtype)), tokenizer, config.source, out)
    if not (out / "tokenizer.json").is_file():
        raise UsageError(f"base `{config.source}` has no fast tokenizer (tokenizer.json), which encoding needs")
    clean(out / "generation_config.json", {"_from_model_config", "transformers_version"})
    return card(out, {
        "source": found.source,
        "id": found.name,
        "sha256": sha256(out / "model.safetensors"),
        "tokenizer_sha256": sha256(out / "tokenizer.json"),
        "template_sha256": chat.template_sha256(tokenizer),
        "dtype": config.dtype,
    })  # fmt: skip


def _load(found: Found, source: str) -> tuple:
    """Model and tokenizer, of a GGUF file or of a folder."""
    from transformers import AutoModelForCausalLM

    if found.path.is_file():
        quiet()
        return load_gguf(found.path, source)
    model, loading = load_model(AutoModelForCausalLM, found, source)
    for what in ("missing", "unexpected"):
        if names := sorted(loading[f"{what}_keys"]):
            raise UsageError(f"base `{source}` is no causal language model as transformers knows it: "
                             f"{len(names)} {what} weights, first {names[0]}")  # fmt: skip
    return model, load_tokenizer(found.path, source)


def main() -> None:
    with start("base_decoder", DecoderConfig) as stage:
        decoder(stage.config, Path("artifacts/base/decoder"))


if __name__ == "__main__":
    main()
