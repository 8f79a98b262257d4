"""Rows of unequal length as one sequence without padding, and the loss on the trained tokens alone.

    rows      [a a a]  [b b b b b]  [c c]
    input_ids  a a a    b b b b b    c c         [1, T]     T = the sum of the lengths, nothing is padded
    position   0 1 2    0 1 2 3 4    0 1         [1, T]     each row counts from 0
    attention  each row sees itself alone, causally: exact, without FlashAttention (attention.py)

    L = -(1/N) sum log p(y_t | y_<t, x)          over the N trained tokens of the whole optimiser step

Everything in a decoder but its attention works on single tokens, so the two ways give the same numbers; a row's place
in the batch, the padding of another row and the side of the padding change nothing (tests/invariants/test_ragged.py).
Naive packing, reset positions but one causal triangle over all rows, is another model: row b would read row a.

The lengths travel in the place of the attention mask, as a [1, 1, 1, B] tensor: transformers hands a mask of four
dimensions on to the attention untouched, through PEFT, gradient checkpointing and DDP, so nothing is kept in a global
that two models could mix up. The output layer runs on the trained positions only (`logits_to_keep`), and the gradient
of the cross-entropy is written over its logits, a few rows at a time, in float32.

    model = attach(model)                                  # once, before or after PEFT wraps it
    loss = response_loss(model, collate(rows), items)      # rows: pairs (ids, labels), labels[i] == ids[i] or -100
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajuste.learning.layers import active
from ajuste.learning.layers.attention import row_attention
from ajuste.learning.losses.cross_entropy import IGNORED

NAME = "rows"  # of the attention function
CHUNK = 64  # logits turned into float32 at once: 64 x 49152 x 4 bytes are 12 MB

Row = tuple[Sequence[int], Sequence[int]]


# --- batches ----------------------------------------------------------------------------------------------------------


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows laid end to end: input_ids, labels and position_ids [1, T], lengths [B], all int64.

    A row's first token is never trained: there is nothing that it could be predicted from.
    Raises ValueError for no rows, an empty row, or labels of another length than the ids.
    """
    ids, labels = _tensors(rows)
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
        "lengths": torch.tensor([len(row) for row in ids]),
    }


def padded(rows: Sequence[Row], pad_id: int, left: bool = False) -> dict[str, Tensor]:
    """The plain way: input_ids, labels, attention_mask and position_ids [B, T], padded to the longest row.

    For prefix and prompt tuning, which put tokens of their own before each row, and for comparison. Those two need
    the padding on the right: on the left it would stand between their tokens and the row's.
    """
    ids, labels = _tensors(rows)
    side = "left" if left else "right"
    pad = nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_id, padding_side=side),
        "labels": pad(labels, batch_first=True, padding_value=IGNORED, padding_side=side),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def _tensors(rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
    if not rows:
        raise ValueError("a batch needs at least one row")
    ids = [torch.as_tensor(row, dtype=torch.int64) for row, _ in rows]
    labels = [torch.as_tensor(row, dtype=torch.int64).clone() for _, row in rows]
    for number, (row, marks) in enumerate(zip(ids, labels, strict=True)):
        if not len(row) or len(row) != len(marks):
            raise ValueError(f"row {number} of the batch has {len(row)} ids and {len(marks)} labels")
        marks[0] = IGNORED
    return ids, labels


# --- attention --------------------------------------------------------------------------------------------------------


def attach(model: nn.Module) -> nn.Module:
    """Let a causal language model of transformers, wrapped by PEFT or not, take ragged batches; returns it.

    Every other batch (padded, or a generation with its cache) goes through the attention that was active, as before
    (active.py). Nothing of this is saved with the model. Whether the architecture takes them exactly is the probe's to
    say (ajuste/models/probe/). Raises ValueError when it takes no attention function from outside.
    """
    active.attach(_base(model), NAME, _attention)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Undo `attach`: the attention that was active, alone."""
    active.detach(_base(model))
    return model


def takes_ragged(model: nn.Module) -> bool:
    """True after `attach`, unless PEFT puts virtual tokens before each row (prefix and prompt tuning)."""
    return not puts_tokens_before(model) and active.attached(_base(model), NAME)


def _attention(plain: active.Plain, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """query [1, H, T, d], key and value [1, G, T, d], lengths [1, 1, 1, B] -> [1, T, H, d]."""
    return row_attention(query, key, value, lengths.flatten().tolist(), plain.scale, plain.dropout, plain.window)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without DDP around it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _base(model: nn.Module) -> nn.Module:
    """The model of transformers inside DDP and PEFT."""
    model = _unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk(base: nn.Module) -> nn.Module:
    """The layers below the output layer of a model of transformers; Llama-4's prefix is not the name that they have."""
    return base.base_model if base.base_model is not base else base.model


# --- loss -------------------------------------------------------------------------------------------------------------


def response_loss(model: nn.Module, batch: dict[str, Tensor], items: Tensor | int | None = None) -> Tensor:
    """-sum log p(y_t | y_<t, x) / items over the trained tokens of a ragged or padded batch: a scalar in nats, float32.

    items: trained tokens of the whole optimiser step (all its pieces and processes); None means those of `batch`.
    A batch without trained tokens costs 0. Raises ValueError for a ragged batch when `attach` was not called.
    """
    logits, targets, _ = trained(model, batch)
    if items is None:
        items = max(1, len(targets))
    return _CrossEntropy.apply(logits, targets, 1.0 / float(items))


@torch.no_grad()
def row_losses(model: nn.Module, rows: Sequence[Row], tokens_per_batch: int) -> Tensor:
    """Sum of -log p over each row's trained tokens, and their number: float64 [N, 2], in the order of `rows`.

    Batches hold rows of similar length, at most `tokens_per_batch` tokens (or one row). Puts the model in eval mode
    for the time and restores it. exp(sum / sum) over the rows is the perplexity.
    """
    result = torch.zeros(len(rows), 2, dtype=torch.float64)
    lengths = [len(ids) for ids, _ in rows]
    ragged = takes_ragged(model)
    training = model.training
    model.eval()
    try:
        for chosen in batches(lengths, tokens_per_batch):
            some = [rows[i] for i in chosen]
            batch = collate(some) if ragged else padded(some, pad_id=0)
            device = next(model.parameters()).device
            logits, targets, owners = trained(model, {name: tensor.to(device) for name, tensor in batch.items()})
            nll = torch.cat([_nll(part, y) for part, y in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)])
            pair = torch.stack([nll.double().cpu(), torch.ones(len(nll), dtype=torch.float64)], dim=1)
            result.index_add_(0, torch.tensor(chosen)[owners.cpu()], pair)
    finally:
        model.train(training)
    return result


def batches(lengths: list[int], tokens: int) -> list[list[int]]:
    """Row numbers by length, cut so that no batch holds more than `tokens` tokens, padding included."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not found or lengths[i] * (len(found[-1]) + 1) > tokens:
            found.append([])
        found[-1].append(i)
    return found


def trained(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the model: logits [N, V] that predict the trained tokens, their ids [N], and the row of each [N]."""
    labels, lengths = batch["labels"], batch.get("lengths")
    mask = batch.get("attention_mask")
    if lengths is not None:
        if not takes_ragged(model):
            raise ValueError("this model takes no ragged batch: call layers.ragged.attach first, or pad the rows")
        mask = lengths.cpu().view(1, 1, 1, -1)  # the attention reads them as Python numbers, once a layer
    T = labels.shape[1]
    counted = labels[:, 1:] != IGNORED  # position t predicts token t + 1
    columns = counted.any(0).nonzero().flatten()
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        position_ids=None if puts_tokens_before(model) else batch["position_ids"],
        use_cache=False,
        logits_to_keep=columns - T,  # from the end: prompt tuning puts tokens before the row
    )
    kept = counted[:, columns]
    # squeezed, for the gradient of [0] would fill and copy N x V numbers
    logits = outputs.logits.squeeze(0) if len(labels) == 1 else outputs.logits[kept]
    targets = labels[:, 1:][:, columns][kept]
    if lengths is None:
        owners = kept.nonzero()[:, 0]
    else:
        owners = torch.bucketize(columns, lengths.cumsum(0).to(columns.device), right=True)
    return logits, targets, owners


def puts_tokens_before(model: nn.Module) -> bool:
    """Does PEFT put virtual tokens before each row (prefix and prompt tuning)?"""
    config = getattr(_unwrapped(model), "active_peft_config", None)
    return config is not None and config.is_prompt_learning


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")


class _CrossEntropy(torch.autograd.Function):
    """scale * sum of -log softmax(logits)[target], in float32, a few rows at a time.

    Its gradient, scale * (softmax - one-hot), is written over the logits in their own dtype: nobody else reads them,
    and N x V numbers are kept once instead of four times.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, scale: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        keep = ctx.needs_input_grad[0]
        for part, y in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True):
            log_p = F.log_softmax(part.to(torch.promote_types(part.dtype, torch.float32)), dim=-1)
            total -= log_p.gather(1, y[:, None]).sum()
            if keep:
                p = log_p.exp_()
                p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))
                part.copy_(p.mul_(scale))
        ctx.gradient = logits if keep else None
        return total * scale

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of this loss was already used: compute the loss again")
        return gradient if upstream.device.type == "cpu" and upstream.item() == 1 else gradient * upstream, None, None
