"""Tiny decoder folders on disk, random but alive: a base, adapters of every method, whole models, encoded rows.

Every folder is in the layout of a stage's output, written with ajuste.models.decoder, so what reads one reads the
other.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from ajuste.learning.layers import bottleneck
from ajuste.learning.text import chat
from ajuste.models import decoder, quantize
from ajuste.models.folder import sha256_of
from ajuste.models.made import make_tiny_decoder

LORA = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
QUANTISED = {"qlora": "nf4", "qlora8": "int8"}
MERGEABLE = ("lora", "rslora", "dora", "qlora", "qlora8")
ALONE = ("prefix", "prompt", "bottleneck")
ASKED = ["Name a warm film.", "Is the plot good?", "Write a review of a dull movie.", "Which scene was funny?",
         "Tell me about the actor.", "What is slow?"]
ANSWERED = ["The good one.", "It is not.", "A dull movie with a slow plot.", "The last scene.", "She is fine.", "This."]


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """A random Llama in bfloat16, with base.json."""
    make_tiny_decoder(folder, seed)
    model, tokenizer = decoder.load_base(folder, torch.bfloat16)
    model.save_pretrained(folder)
    identity = {"source": "path:tiny", "id": "tiny", "sha256": sha256_of(folder / "model.safetensors"),
                "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
                "template_sha256": chat.template_sha256(tokenizer), "dtype": "bfloat16"}
    (folder / "base.json").write_text(json.dumps(identity))
    return folder


def card(base: Path, method: str) -> dict:
    """What ajuste.json says of such a model."""
    return {"kind": "decoder", "method": method, "strategy": method, "base": decoder.identity_of(base),
            "parameters": {"trainable": 100, "total": 10_000, "share": 0.01}, "max_tokens": 64, "dtype": "float32",
            "validation": {"loss": 2.0, "perplexity": 7.389}, "mergeable": method in MERGEABLE,
            "quantisation": QUANTISED.get(method)}


def tiny_adapter(base: Path, folder: Path, method: str = "lora", seed: int = 10) -> Path:
    """An adapter of that method whose weights are random, so that it changes every answer."""
    tokenizer = decoder.load_base(base)[1]
    model = quantize.load(base, QUANTISED[method]) if method in QUANTISED else decoder.load_base(base)[0]
    torch.manual_seed(seed)
    if method == "bottleneck":
        model = bottleneck.attach(model, 8)
    elif method in ("prefix", "prompt"):
        virtual = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
        model = get_peft_model(model, (PrefixTuningConfig if method == "prefix" else PromptTuningConfig)(**virtual))
    else:
        model = get_peft_model(model, LoraConfig(**LORA, use_rslora=method == "rslora", use_dora=method == "dora"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
            elif parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    decoder.save_adapter(model, tokenizer, folder, card(base, method))
    (folder / "history.jsonl").write_text('{"step": 1, "loss": 2.7}\n')
    return folder


def tiny_full(base: Path, folder: Path, seed: int = 3) -> Path:
    """A model of which every weight was moved."""
    model, tokenizer = decoder.load_base(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    decoder.save_whole(model, tokenizer, folder, card(base, "full"))
    (folder / "history.jsonl").write_text('{"step": 1, "loss": 2.7}\n')
    return folder


def encoded(base: Path, folder: Path, splits: tuple[str, ...] = ("test",), asked: list[str] = ASKED) -> Path:
    """Encoded rows of `asked` and ANSWERED, the same in every split but for their ids."""
    tokenizer = decoder.load_base(base)[1]
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        rows = []
        for number, (question, answer) in enumerate(zip(asked, ANSWERED, strict=True)):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            (prompt, _), (response, _) = chat.segments(tokenizer, turns)
            rows.append({"row_id": f"{split[:2]}{number:014x}", "input_ids": prompt + response,
                         "labels": [-100] * len(prompt) + response, "prompt_tokens": len(prompt), "reference": answer,
                         "category": "qa", "source": "tiny", "length": len(prompt + response),
                         "location": f"tiny.jsonl:{number + 1}"})
        integers = pa.list_(pa.int32())
        table = pa.Table.from_pylist(rows)
        for name in ("input_ids", "labels"):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(integers))
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder
