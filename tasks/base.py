"""Stage base_<kind>: bring a pretrained base into artifacts/base/<kind>, in one clean form.

    python -m tasks.base encoder

Wherever the base came from (tasks/_sources.py), all later stages read the same layout: config.json without paths or
library versions, model.safetensors in float32 (sharded or torch .bin weights are converted; .bin files are read with
weights_only), the tokenizer without truncation or padding baked in, and base.json: {source, id, sha256 of the weights}.
The same source gives the same bytes. What the checkpoint has beyond the bare encoder (a masked-word head) is left out.

A package or a Hub commit never changes. A `path:` folder can: after changing its files,
`dvc repro --force --single-item base_encoder` takes them in.
"""

import hashlib
import json
import pickle
import sys
from pathlib import Path

from pydantic import Field

from tasks._sources import find
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


def base(config: BaseConfig, compute: Compute, out: Path) -> dict:
    """Write the base to the folder `out` and return what base.json says.

    Raises UsageError if the source is missing or holds no model that transformers can load as it is.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found = find(config.source)
    if not (found.path / "config.json").is_file():
        raise UsageError(f"base `{config.source}` has no config.json: name the folder that holds a transformers model")
    torch.manual_seed(compute.seed)  # weights that the checkpoint lacks (a pooler, say) are drawn the same way always
    try:
        model, loading = AutoModel.from_pretrained(
            found.path, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except pickle.UnpicklingError:
        raise UsageError(f"base `{config.source}` cannot be loaded: its .bin file holds more than tensors") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"base `{config.source}` cannot be loaded by transformers: {_first_line(error)}") from None
    missing = sorted(loading["missing_keys"])
    if missing:
        print(f"base: {len(missing)} weights are not in the checkpoint and start random: {', '.join(missing[:4])}",
              file=sys.stderr)  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, max_shard_size="100GB")
    _save_tokenizer(found.path, config.source, model.config.vocab_size, out)
    _clean(out / "config.json", {"_name_or_path", "transformers_version"})
    with (out / "model.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    card = {"source": found.source, "id": found.name, "sha256": sha256}
    (out / "base.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def _save_tokenizer(folder: Path, source: str, vocabulary: int, out: Path) -> None:
    from transformers import AutoTokenizer

    # transformers would make an empty tokenizer without a word
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UsageError(f"base `{source}` has no tokenizer: one of {', '.join(VOCABULARIES)} must stand beside it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"base `{source}` has no tokenizer that can be loaded: {_first_line(error)}") from None
    if tokenizer.pad_token_id is None:
        raise UsageError(f"base `{source}`: its tokenizer has no padding token, which batches of rows need")
    if len(tokenizer) > vocabulary:
        raise UsageError(f"base `{source}`: its tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}")
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def main() -> None:
    with start("base", BaseConfig) as stage:
        base(stage.config, stage.compute, Path("artifacts/base") / stage.variant)


if __name__ == "__main__":
    main()
