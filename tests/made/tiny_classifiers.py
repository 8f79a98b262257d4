"""Tiny model folders on disk, random but alive: a base, LoRA adapters of it, a merged and a fully trained model.

Every folder is in the layout of a stage's output, written with ajuste.models.classifier, so what reads one reads the
other.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, BertTokenizerFast

from ajuste.learning import lora
from ajuste.models import classifier
from ajuste.models.folder import sha256_of

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a the film is was good bad warm dull funny slow plot actor scene and not very it this of end".split()
LABELS = ["negative", "positive"]
TEXTS = ["a warm film", "dull", "the plot is not very good and the actor is bad", "this scene was funny", "it is slow"]


def tiny_tokenizer() -> BertTokenizerFast:
    """Words and letters, no subwords to train."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS, *(x for x in letters if x not in WORDS)])}
    vocabulary |= {f"##{x}": len(vocabulary) + i for i, x in enumerate(letters)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    return BertTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """A random BERT of 4 heads x 8 and 2 layers, with base.json."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    identity = {"source": "path:tiny", "id": "tiny", "sha256": sha256_of(folder / "model.safetensors")}
    (folder / "base.json").write_text(json.dumps(identity))
    return folder


def card(base: Path, strategy: str, pooling: str = "cls", labels: list[str] = LABELS) -> dict:
    """What ajuste.json says of such a model."""
    about = json.loads((base / "base.json").read_text())
    return {"task": "sequence", "strategy": strategy, "pooling": pooling, "labels": labels, "max_tokens": 32,
            "set": "reviews", "base": {"id": about["id"], "sha256": about["sha256"]},
            "parameters": {"total": 10, "trainable": 1, "share": 0.1},
            "validation": {"loss": 0.5, "accuracy": 0.8, "macro_f1": 0.8}}


def tiny_adapter(base: Path, folder: Path, seed: int = 10, pooling: str = "cls", labels: list[str] = LABELS,
                 task: str = "sequence") -> Path:
    """LoRA on query and value with a random A and B, and a random head."""
    torch.manual_seed(seed)
    model = classifier.build(base, labels, task, pooling)
    head = classifier.head_modules(model, base)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["value", "query"],
                                               modules_to_save=head))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    classifier.save(adapted, tiny_tokenizer(), folder, card(base, "lora", pooling, labels) | {"task": task})
    (folder / "history.jsonl").write_text('{"step": 1, "loss": 0.7}\n')
    return folder


def tiny_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The adapter folded into the base, without the stage's proof."""
    model, tokenizer, about = classifier.load_adapter(base, adapter)
    classifier.save(lora.merge(model), tokenizer, folder, about)
    return folder


def tiny_full(base: Path, folder: Path, seed: int = 3, pooling: str = "cls", labels: list[str] = LABELS) -> Path:
    """A model of which every weight was moved."""
    torch.manual_seed(seed)
    model = classifier.build(base, labels, pooling=pooling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    classifier.save(model, tiny_tokenizer(), folder, card(base, "full", pooling, labels))
    return folder
