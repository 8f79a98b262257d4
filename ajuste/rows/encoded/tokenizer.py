"""The tokenizer that conversations and comparisons are encoded with: that of the base, as it was saved."""

import json
from pathlib import Path

import pyarrow as pa

from ajuste.core.errors import UsageError

IDS = pa.list_(pa.int32())


def tokenizer_of(base: Path, max_tokens: int):
    """The base's tokenizer. Raises UsageError if there is no base, or if it reads fewer than `max_tokens` tokens."""
    from transformers import AutoTokenizer

    if not (base / "tokenizer.json").is_file():
        raise UsageError(f"{base / 'tokenizer.json'} is missing: run `dvc repro base_decoder`")
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    positions = settings.get("max_position_embeddings") or settings.get("n_positions")
    if positions and max_tokens > positions:
        raise UsageError(f"params.yaml: max_tokens is {max_tokens}, but the base reads {positions} tokens at most")
    return AutoTokenizer.from_pretrained(base, local_files_only=True)
