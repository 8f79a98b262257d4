"""What bringing in any base shares: load it as transformers does, write it in one clean form.

Wherever the base came from (ajuste/rows/sources.py), all later stages read the same layout: config.json without paths
or library versions, model.safetensors (sharded or torch .bin weights are converted; .bin files are read with
weights_only), the tokenizer without truncation or padding baked in, and base.json: {source, id, sha256 of the weights}.
The same source gives the same bytes.

A package or a Hub commit never changes. A `path:` folder can: after changing its files,
`dvc repro --force --single-item base_encoder` takes them in. `made:` makes a small random model on the spot
(ajuste/models/made.py).
"""

import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from ajuste.core.errors import UsageError
from ajuste.core.params import Config
from ajuste.models import made
from ajuste.rows import sources
from ajuste.rows.sources import Found

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

    source: str = Field(
        description="package:<distribution>/<path> | hub:<id>@<revision> | path:<folder> | made:tiny-<kind>"
    )

    def check(self) -> None:
        """Raises UsageError if the source is not here; one on the Hub is looked for when its stage runs."""
        name = self.source.removeprefix("made:")
        if name != self.source:
            made.known(name)
        else:
            sources.check(self.source)


@contextmanager
def find(source: str) -> Iterator[Found]:
    """Where the base lies while it is read: a source of ajuste/rows/sources.py, or a model that is made here and now.

    Raises UsageError and ConnectionError as `sources.find` does, and UsageError for a model that nobody can make.
    """
    name = source.removeprefix("made:")
    if name == source:
        yield sources.find(source)
        return
    make = made.MADE[made.known(name)]
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        yield Found(make(Path(folder)), name, source)


def quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_model(kind: type, found: Found, source: str) -> tuple:
    """The model in float32 and what transformers says about missing and unexpected weights."""
    import torch
    from safetensors import SafetensorError

    quiet()
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


def load_tokenizer(folder: Path, source: str):
    from transformers import AutoTokenizer

    # transformers would make an empty tokenizer without a word
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UsageError(f"base `{source}` has no tokenizer: one of {', '.join(VOCABULARIES)} must stand beside it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"base `{source}` has no tokenizer that can be loaded: {_first_line(error)}") from None


def save(model, tokenizer, source: str, out: Path) -> None:
    """Write model and tokenizer so that the same base gives the same bytes wherever and whenever."""
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"base `{source}`: its tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}"
        )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, max_shard_size="100GB")
    clean(out / "config.json", {"_name_or_path", "transformers_version"})
    if tokenizer.is_fast:  # some are saved with a length baked in, which would cut rows without a word
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(out)
    # what was an argument of some call, ours or its maker's, is no property of the tokenizer
    arguments = {"is_local", "local_files_only", "trust_remote_code", "name_or_path"}
    baked_in = {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of"}
    clean(out / "tokenizer_config.json", arguments | baked_in)


def clean(path: Path, drop: set[str]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if key not in drop}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card(out: Path, card: dict) -> dict:
    (out / "base.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
