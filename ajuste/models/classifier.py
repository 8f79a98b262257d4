"""A pretrained encoder (or GPT-like decoder) with a classification head: build, save, load, predict.

    pooling `cls`    transformers' own AutoModelForSequenceClassification: the head reads what the architecture calls
                     its summary ([CLS] and pooler for BERT, <s> for RoBERTa, the last token for GPT-2).
                     The saved folder loads with plain transformers.
    pooling `mean`   head(sum_t m_t h_t / sum_t m_t): the mean of the hidden states h under the attention mask m.
                     The folder holds the bare encoder (plain AutoModel loads it) and the head in head.safetensors
                     (weight [C, d], bias [C]); the two together load with `load` of this file only.
    tasks            sequence: one label a text; token: one label a word piece; span: first and last token of an answer

The folder's card, ajuste.json, has task, pooling, labels, max_tokens, base, ... An adapter names its base by id and
sha256, and `load_adapter` refuses any other base.

    model, tokenizer, card = load(Path("artifacts/merged/classify_full"))
    predict(model, tokenizer, card, ["A masterpiece.", "I left early."])      # [2, C] probabilities, rows sum to 1

It travels inside logged models as their code, with the little that it imports of the project.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from ajuste.learning.batching import pad, sorted_batches
from ajuste.models.folder import (
    ADAPTER_CONFIG,
    check_head,
    load_tokenizer,
    quiet,
    read_card,
    save_rest,
    sha256_of,
    tidy_adapter,
)

AUTO_CLASSES = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
}
HEAD = "head.safetensors"


class MeanPoolingClassifier(nn.Module):
    """Encoder, masked mean over tokens, one linear head. `logits` is [B, C]."""

    base_model_prefix = "encoder"  # PEFT asks for it where transformers renames weights on loading

    def __init__(self, encoder: nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.head = nn.Linear(encoder.config.hidden_size, classes, dtype=encoder.dtype)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for name, parameter in encoder.named_parameters():
            if name.startswith("pooler."):
                parameter.requires_grad_(False)  # the mean takes its place, so nothing flows through it

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T] ids and mask -> [B, d]: the mean hidden state of the tokens that are not padding."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.head(self.features(input_ids, attention_mask)))


# --- build ----------------------------------------------------------------------------------------------------------


def build(
    base: Path, labels: list[str], task: str = "sequence", pooling: str = "cls", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The base with a new, randomly initialised head (seed torch first). forward(input_ids, attention_mask).logits.

    base: folder with config.json and model.safetensors. labels: names in id order, stored in the config.
    Raises ValueError for a task or pooling that does not exist.
    """
    if task not in AUTO_CLASSES or pooling not in ("cls", "mean") or (pooling == "mean" and task != "sequence"):
        raise ValueError(
            f"task {task!r} with pooling {pooling!r} does not exist: tasks are {', '.join(AUTO_CLASSES)}; "
            "pooling is `cls`, or `mean` for sequence"
        )
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    with quiet():
        if pooling == "mean":
            model = MeanPoolingClassifier(AutoModel.from_pretrained(base, dtype=dtype, **names), len(labels))
        else:
            named = {} if task == "span" else names
            model = check_head(base, AUTO_CLASSES[task]).from_pretrained(base, dtype=dtype, **named)
    model.config.pad_token_id = padding_id(model.config)
    return model


def padding_id(config: PretrainedConfig) -> int:
    """The token that fills rows up: the base's own, or its (first) end token where it has none, as GPT-2.

    Raises ValueError for a base that has neither.
    """
    found = getattr(config, "pad_token_id", None)
    found = getattr(config, "eos_token_id", None) if found is None else found
    found = found[0] if isinstance(found, list) else found
    if found is None:
        raise ValueError("the base's config.json names no pad_token_id and no eos_token_id: add one of them")
    return found


def head_modules(model: nn.Module, base: Path) -> list[str]:
    """Names of the outermost modules of `model` (from `build`) that the base has no weights for: head, maybe pooler."""
    with safe_open(base / "model.safetensors", "pt") as file:
        known = set(file.keys())
    bare = isinstance(model, MeanPoolingClassifier)
    prefix = "encoder" if bare else model.base_model_prefix
    inside_task = f"{model.encoder.base_model_prefix}." if bare else ""  # of a base that was saved with a task's head
    fresh, old = set(), set()
    for name, parameter in model.named_parameters():
        inside, parts = name.removeprefix(f"{prefix}."), name.split(".")
        module = ".".join(parts[:2]) if parts[0] == prefix else parts[0]
        if {inside, name, inside_task + inside} & known:
            old.add(module)
        elif parameter.requires_grad:
            fresh.add(module)
    return sorted(fresh - old)  # fused experts have other names in the file than here: no layer is new for them


def last_linear(model: nn.Module) -> nn.Linear:
    """The layer that makes the logits: weight [C, d], bias [C] (GPT-2's `score` has no bias)."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


# --- save and load --------------------------------------------------------------------------------------------------


def save(model: nn.Module, tokenizer: PreTrainedTokenizerBase, out: Path, card: dict) -> None:
    """Write weights (or the PEFT adapter), tokenizer and card into `out`: the same bytes for the same weights."""
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        if hasattr(model, "peft_config"):
            # "auto" would look the base up on the Hub to see whether its embeddings were resized
            model.save_pretrained(out, save_embedding_layers=False)
            tidy_adapter(out, card["base"]["id"])
        elif isinstance(model, MeanPoolingClassifier):
            model.encoder.save_pretrained(out)
            save_file({name: p.detach().contiguous() for name, p in model.head.named_parameters()}, out / HEAD)
        else:
            model.save_pretrained(out)
    save_rest(tokenizer, out, card)


def load(folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase, dict]:
    """A saved model in eval mode, its tokenizer and its card. Raises ValueError for a folder that is no whole model."""
    card = read_card(folder)
    if (folder / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder} holds an adapter, which needs its base: use load_adapter(base, adapter)")
    with quiet():
        if card["pooling"] == "mean":
            model = MeanPoolingClassifier(AutoModel.from_pretrained(folder, dtype=torch.float32), len(card["labels"]))
            model.head.load_state_dict(load_file(folder / HEAD))
        else:
            model = AUTO_CLASSES[card["task"]].from_pretrained(folder, dtype=torch.float32)
    return model.eval(), load_tokenizer(folder), card


def load_adapter(base: Path, adapter: Path) -> tuple[nn.Module, PreTrainedTokenizerBase, dict]:
    """The adapter on its base, a PeftModel in eval mode, with tokenizer and card.

    Raises ValueError if `adapter` was trained on another base (sha256 of model.safetensors).
    """
    card = read_card(adapter)
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{adapter} holds no adapter ({ADAPTER_CONFIG} is missing): use load(folder)")
    found, wanted = sha256_of(base / "model.safetensors"), card["base"]["sha256"]
    if found != wanted:
        raise ValueError(
            f"adapter {adapter} belongs to base {card['base']['id']} with sha256 {wanted[:16]}, but "
            f"{base / 'model.safetensors'} has {found[:16]}: give it the base that it was trained on"
        )
    model = build(base, card["labels"], card["task"], card["pooling"])
    with quiet():
        import peft  # takes seconds

        model = peft.PeftModel.from_pretrained(model, adapter)
    return model.eval(), load_tokenizer(adapter), card


# --- predict --------------------------------------------------------------------------------------------------------


@torch.no_grad()  # not inference_mode: buffers cached inside would be unusable for training afterwards
def logits_of(model: nn.Module, rows: Sequence[Sequence[int]], batch_rows: int = 32) -> Tensor:
    """Logits [N, C] in float32 on the CPU, in the order of `rows` (token ids), computed in length-sorted batches."""
    device, pad_id = next(model.parameters()).device, model.config.pad_token_id
    logits = torch.empty(len(rows), 0)
    for batch in sorted_batches(rows, batch_rows):
        input_ids, attention_mask = (x.to(device) for x in pad([rows[i] for i in batch], pad_id))
        answer = model(input_ids=input_ids, attention_mask=attention_mask).logits.float().cpu()
        if not logits.shape[1]:
            logits = torch.empty(len(rows), answer.shape[1])
        logits[batch] = answer
    return logits


def predict(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: dict, texts: list[str], batch_rows: int = 32
) -> Tensor:
    """Class probabilities [N, C] of `texts`, in their order. Texts are cut at the card's max_tokens, as in training.

    Raises ValueError for a model whose task is not `sequence`.
    """
    if card["task"] != "sequence":
        raise ValueError(f"this model's task is `{card['task']}`: only a `sequence` model labels whole texts")
    if not texts:
        return torch.empty(0, len(card["labels"]))
    rows = tokenizer(texts, truncation=True, max_length=card["max_tokens"])["input_ids"]
    return torch.softmax(logits_of(model, rows, batch_rows), dim=-1)


