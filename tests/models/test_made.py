"""The models that are made on the spot are the same in every process: other tests compare bytes that come of them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from tasks.base.decoder import DecoderConfig, decoder
from tasks.base.encoder import EncoderConfig, encoder

WEIGHTS = {  # sha256 of model.safetensors as the stage writes it, on a CPU with AVX2
    "tiny-encoder": "9a3972345ca02b6723cf6f5da8856c3818f8d184c80467b3610ae113eb4c20ca",
    "tiny-decoder": "7324b4297431f59b64ab8bd0bc9bc9ec74e7af940a3a0ddad51972793d747a7e",
}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.slow
def test_the_decoder_is_the_same_in_every_process(tiny_decoder: Path, tmp_path: Path) -> None:
    code = f"from ajuste.models.made import *; make_tiny_decoder(Path({str(tmp_path / 'a')!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert digests(tmp_path / "a") == digests(tiny_decoder)


def test_the_decoder_is_small_and_reads_any_text(tiny_decoder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_decoder), AutoModelForCausalLM.from_pretrained(tiny_decoder)
    assert len(tokenizer) == model.config.vocab_size == 2048 and 0.9e6 < model.num_parameters() < 1.1e6
    for text in ("A good film.\n\n", "ünï ☃ \t\x00 12,345", " <|im_end|> "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_a_stage_makes_its_base_and_names_it(tmp_path: Path) -> None:
    compute = Compute(dtype="float32", device="cpu", threads=1, seed=0)
    cards = {
        "tiny-encoder": encoder(EncoderConfig(source="made:tiny-encoder"), compute, tmp_path / "encoder"),
        "tiny-decoder": decoder(DecoderConfig(source="made:tiny-decoder", dtype="float32"), tmp_path / "decoder"),
    }
    for name, card in cards.items():
        assert (card["source"], card["id"]) == (f"made:{name}", name)
        if "avx2" in Path("/proc/cpuinfo").read_text():
            assert card["sha256"] == WEIGHTS[name]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("made:huge", "write made:tiny-encoder or made:tiny-decoder"),
        ("path:no/such/folder", "no/such/folder does not exist"),
        ("package:no-such-package-here/model", "is not installed"),
        ("hub:bert-base-uncased", "needs an id and a revision"),
    ],
)
def test_a_source_that_is_not_here_is_known_before_anything_runs(source: str, named: str) -> None:
    for config in (EncoderConfig(source=source), DecoderConfig(source=source, dtype="float32")):
        with pytest.raises(UsageError, match=named) as caught:
            config.check()
        assert "\n" not in str(caught.value)


def test_the_hub_is_not_asked_before_anything_runs() -> None:
    EncoderConfig(source="hub:bert-base-uncased@main").check()
