"""The tiny models are the same in every process: other tests compare bytes that come of them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ajuste.core.imports import ROOT


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.slow
def test_the_decoder_is_the_same_in_every_process(tiny_decoder: Path, tmp_path: Path) -> None:
    code = f"from tests.made.tiny_models import *; make_tiny_decoder(Path({str(tmp_path / 'a')!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert digests(tmp_path / "a") == digests(tiny_decoder)


def test_the_decoder_is_small_and_reads_any_text(tiny_decoder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_decoder), AutoModelForCausalLM.from_pretrained(tiny_decoder)
    assert len(tokenizer) == model.config.vocab_size == 2048 and 0.9e6 < model.num_parameters() < 1.1e6
    for text in ("A good film.\n\n", "ünï ☃ \t\x00 12,345", " <|im_end|> "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
