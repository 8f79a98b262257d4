"""A reward model: a decoder whose last hidden state says how good a response is.

    r(x, y) = w . h + b            h [d]: after the last layer and norm, at the last real token of prompt + response
    w ~ N(0, 1/(d + 1)), b = 0     at the start (Stiennon et al., 2020)
    w <- g w,  b <- g b + c        after training: mean 0 and deviation 1 on samples of the reference policy

The last real token is the end of turn, if the response has one: it is part of the text that is judged. It is found
from the lengths, never by comparing ids with a padding token: what follows a row changes nothing. Rows are laid end
to end without padding, and a prompt that all of a batch begin with is read once
(ajuste/learning/layers/shared_prefix.py), where the architecture allows.

    adapter   artifacts/adapters/reward: PEFT's own layout (SEQ_CLS), A and B and `score` (w); any tool loads it
    whole     artifacts/merged/reward: an ordinary <Model>ForSequenceClassification with one label

Neither layout has a place for b (`score` has no bias): it stands in the card, ajuste.json, and is added here. For plain
transformers, which looks for the last token that is not padding, both folders name a padding token that ends no turn.

    model, tokenizer, card = load(Path("artifacts/merged/reward"))
    model, tokenizer, card = load(Path("artifacts/adapters/reward"), base=Path("artifacts/merged/instruct"))
    score(model, [prompt_ids + response_ids, ...])                                           # [N] float32

Differs from the papers: the base's weights stay frozen and LoRA learns beside them, in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from ajuste.learning.layers import ragged, shared_prefix
from ajuste.learning.text import chat
from ajuste.models import decoder, experts, layers
from ajuste.models.folder import check_head, load_tokenizer, quiet, read_card
from ajuste.models.probe import prefixes
from ajuste.models.probe.ways import Way

ADAPTER, WHOLE = "adapter_model.safetensors", "model.safetensors"
HEAD = "score"
TOKENS = 4096  # of one batch that is scored


class Settings(NamedTuple):
    """LoRA beside the frozen base: the update is (alpha/r) B A."""

    r: int = 8
    alpha: float = 16
    lora_dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)  # last names of the adapted layers


# --- build ------------------------------------------------------------------------------------------------------------


def build(base: Path, settings: Settings, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The decoder at `base` with LoRA and a new head, in training mode; A and w are drawn: seed torch first.

    dtype: of the frozen weights and the products; A, B and w are float32. Raises ValueError for a base that is missing
    or no whole model, or a target layer that it does not have.
    """
    decoder.identity_of(base)
    tokenizer = load_tokenizer(base)
    model = _plain(base, dtype, padding_id(tokenizer))
    names = layers.linear_modules(model, settings.targets, outside=[HEAD])
    parameters = experts.targets_of(model, settings.targets, fused=True).parameters if not settings.lora_dropout else []
    with quiet():
        import peft  # takes seconds

        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=sorted({name.rsplit(".", 1)[-1] for name in names}),
            target_parameters=parameters or None,
            modules_to_save=[HEAD],
            fan_in_fan_out=any(isinstance(module, layers.Conv1D) for module in model.modules()),
        )
        adapted = peft.get_peft_model(layers.without_noise(model), config)
    experts.told(adapted)
    w = head(adapted).float().weight
    nn.init.normal_(w, std=(w.shape[1] + 1) ** -0.5)
    return attach(adapted).train()


def attach(model: nn.Module, bias: float = 0.0) -> nn.Module:
    """Let a sequence classification model, in PEFT or not, score at the last real token and add `bias`; returns it.

    Its forward(input_ids, attention_mask, position_ids).logits is then [B, 1] for rows padded on the right and, where
    that is exact, for rows behind a shared prefix: `way(model)` says which. Parameters, names and what is saved stay
    as they are. Raises ValueError for an architecture whose rewards come out right in neither way.
    """
    inner = _inner(model)
    inner.reward_bias = bias
    inner.forward = MethodType(_forward, inner)
    inner.reward_way = prefixes.rewards(model, _together, _alone)
    return model


def way(model: nn.Module) -> Way:
    """How the rows of an attached model go through it."""
    return _inner(model).reward_way


def _together(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """r(x, y) of one batch of rows [B], with gradients."""
    device = next(model.parameters()).device
    return rewards(model, {name: x.to(device) for name, x in collate(model, rows).items()})


def _alone(model: nn.Module, row: Sequence[int]) -> Tensor:
    """r(x, y) of one row from transformers' own classifier, a scalar."""
    inner = _inner(model)
    ids = torch.tensor([row], device=next(inner.parameters()).device)
    return type(inner).forward(inner, input_ids=ids, use_cache=False).logits[0, 0].float() + inner.reward_bias


def _forward(
    self: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, **others
) -> SequenceClassifierOutput:
    """forward of the model of transformers: hidden states, the one at each row's end, its score."""
    trunk = getattr(self, self.base_model_prefix)
    position = {} if position_ids is None else {"position_ids": position_ids}  # BLOOM knows none
    hidden = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **position).last_hidden_state
    if attention_mask.ndim == 4:  # the lengths: of the prefix, then of each row behind it
        last = hidden[0, (attention_mask.flatten().cumsum(0)[1:] - 1).to(hidden.device)]
    else:
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
    r = getattr(self, HEAD)(last.to(head(self).weight.dtype))
    return SequenceClassifierOutput(logits=r.to(torch.promote_types(r.dtype, torch.float32)) + self.reward_bias)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token that ends no turn, for padding: the first control token of that kind, else the last of the vocabulary."""
    ends = set(chat.end_of_turn(tokenizer))
    control = sorted(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return next(number for number in [*control, *range(len(tokenizer) - 1, -1, -1)] if number not in ends)


def head(model: nn.Module) -> nn.Linear:
    """The layer with w [1, d], inside PEFT or not."""
    module = getattr(_inner(model), HEAD)
    return module.modules_to_save[module.active_adapters[0]] if hasattr(module, "modules_to_save") else module


def _inner(model: nn.Module) -> nn.Module:
    """The model of transformers inside DDP and PEFT."""
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The decoder at `folder` with a new head of one label. Raises ValueError for an architecture without such a form.
    """
    with quiet():
        model = check_head(folder, AutoModelForSequenceClassification).from_pretrained(
            folder, dtype=dtype, num_labels=1, local_files_only=True
        )
    if not isinstance(getattr(model, HEAD, None), nn.Linear):
        raise ValueError(f"{type(model).__name__} has no single linear head over the last token: choose another base")
    return model


def _plain(folder: Path, dtype: torch.dtype, pad_id: int) -> nn.Module:
    model = load_base(folder, dtype)
    model.config.pad_token_id = pad_id
    return model


# --- score ------------------------------------------------------------------------------------------------------------


def collate(model: nn.Module, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows of token ids as the batch that `rewards` takes: without padding where the model can, else on the right."""
    if shared_prefix.takes_shared(model):
        return shared_prefix.collate(rows)._asdict()
    batch = ragged.padded([(row, row) for row in rows], _inner(model).config.pad_token_id)
    del batch["labels"]
    return batch


def rewards(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """r(x, y) of every row of a batch from `collate`: [B] float32, with gradients."""
    mask = batch.get("attention_mask")
    if "lengths" in batch:
        mask = batch["lengths"].cpu().view(1, 1, 1, -1)  # the attention reads them as Python numbers, once a layer
    return model(
        input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"]
    ).logits.squeeze(-1)


@torch.no_grad()
def score(model: nn.Module, rows: Sequence[Sequence[int]], tokens_per_batch: int = TOKENS) -> Tensor:
    """r(x, y) of rows of token ids, prompt and response: [N] float32 on the CPU, in the order of `rows`.

    model: from `load` or `build`. Runs in eval mode, in batches of rows of similar length, of at most
    `tokens_per_batch` tokens (or one row). Raises ValueError for an empty row.
    """
    result = torch.zeros(len(rows))
    training = model.training
    model.eval()
    try:
        for chosen in ragged.batches([len(row) for row in rows], tokens_per_batch):
            result[chosen] = _together(model, [rows[i] for i in chosen]).cpu()
    finally:
        model.train(training)
    return result


# --- normalisation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def rescale(model: nn.Module, gain: float, shift: float) -> None:
    """r <- gain r + shift, for every row: w and b in place. Raises ValueError unless gain > 0 and both are numbers.

    A positive gain keeps every order, so no pair changes its winner.
    """
    if not (0 < gain < float("inf") and abs(shift) < float("inf")):
        raise ValueError(f"rewards cannot be rescaled by gain {gain} and shift {shift}")
    inner = _inner(model)
    head(model).weight.mul_(gain)
    inner.reward_bias = gain * inner.reward_bias + shift


# --- disk -------------------------------------------------------------------------------------------------------------


def save(model: nn.Module, tokenizer: PreTrainedTokenizerBase, out: Path, card: dict) -> None:
    """Write the adapter of a PEFT model, or a whole model, with tokenizer and card; b goes into the card."""
    card = {**card, "bias": _inner(model).reward_bias}
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(_inner(model).config.pad_token_id)
    write = decoder.save_adapter if hasattr(model, "peft_config") else decoder.save_whole
    write(model, tokenizer, out, card)


def load(
    folder: Path, base: Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase, dict]:
    """A reward model in eval mode, ready for `score`; its tokenizer and its card. An adapter needs its `base`.

    dtype: of the base's weights and the products. Raises ValueError for a folder that is no reward model, an adapter
    without base, and a base that is not the adapter's, naming what differs.
    """
    card = read_card(folder)
    if card.get("kind") != "reward":
        raise ValueError(f"{folder} holds no reward model but a {card.get('kind', 'different')} model")
    tokenizer = load_tokenizer(folder)
    if not decoder.is_adapter(folder):
        if not (folder / WHOLE).is_file():
            raise ValueError(f"{folder / WHOLE} is missing: train or merge the model again")
        return attach(_plain(folder, dtype, tokenizer.pad_token_id), card["bias"]).eval(), tokenizer, card
    if base is None:
        raise ValueError(f"{folder} holds an adapter, which needs its base {card['base']['id']}")
    decoder.check_base(folder, card, base)
    model = decoder.put_on(_plain(base, dtype, tokenizer.pad_token_id), folder)
    head(model).float()
    return attach(model, card["bias"]).eval(), tokenizer, card


def head_of(folder: Path) -> tuple[Tensor, float]:
    """(w [d] float32, b) of a saved reward model, adapter or whole, without loading the rest.

    Raises ValueError for a folder that is no reward model.
    """
    card = read_card(folder)
    if card.get("kind") != "reward":
        raise ValueError(f"{folder} holds no reward model")
    tensors = load_file(folder / (ADAPTER if decoder.is_adapter(folder) else WHOLE))
    (w,) = [tensor for name, tensor in tensors.items() if name.endswith(f"{HEAD}.weight")]
    return w[0].float(), card["bias"]
