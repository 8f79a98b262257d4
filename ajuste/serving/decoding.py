"""Rows that are continued together, one token a step; between steps rows join and leave.

    K, V of a layer   a room [R, H, W, d]: rows 0 to B - 1 are taken, and row b has columns end - lengths[b] to end
    position          of the next token of row b = lengths[b], so each row is computed as if it were alone
    prefill           a prompt without its last token, rows padded on the right: a causal model never looks there
    step              the last token of every row -> logits [B, V] of the next; writes one column, at `end`
    join, leave       a row is written into the next free place; the last row takes the place of one that leaves

So a row that comes or goes costs its own columns, not those of the others; all are copied only when the room is full. A
learned prefix (prefix tuning, prompt tuning) is P columns of K and V that stand before every row. Unlike
`model.generate`, which starts and ends all rows at once, and copies all of K and V for every token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

from ajuste.learning.layers import one_token

SPARE = 128                 # columns of a new room that are free
TOLERANCE = 1e-3            # of the largest logit: between one_token.py's attention and the model's own, in float32

Columns = list[tuple[Tensor, Tensor]]       # K and V of each layer


class RoomyLayer(DynamicLayer):
    """K and V of one layer: a view of its room, which a step makes one column wider."""

    def __init__(self, rows: int, columns: int, like: Tensor) -> None:
        super().__init__()
        # zeros, since what is masked still meets the softmax's zeros: 0 * nan would be nan
        shape = (rows, like.shape[1], columns, like.shape[3])
        self.room_k, self.room_v = like.new_zeros(shape), like.new_zeros(shape)
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        self.show(0, 0, 0)

    def show(self, rows: int, start: int, end: int) -> None:
        """What the model sees: columns `start` to `end` of so many rows."""
        self.start, self.end = start, end
        self.keys, self.values = self.room_k[:rows, :, start:end], self.room_v[:rows, :, start:end]

    def put(self, row: int, keys: Tensor, values: Tensor, end: int) -> None:
        """Columns [H, T, d] of a row, up to `end`; before them nothing stays."""
        begin = end - keys.shape[1]
        for room, columns in ((self.room_k, keys), (self.room_v, values)):
            room[row, :, :begin] = 0
            room[row, :, begin:end] = columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        rows, end = len(key_states), self.end + 1
        self.room_k[:rows, :, self.end:end], self.room_v[:rows, :, self.end:end] = key_states, value_states
        self.show(rows, self.start, end)
        return self.keys, self.values


class Batch:
    """The rows that one model is continuing. `lengths` and `tokens` have one entry a row, in the order of the rows."""

    def __init__(self, model: nn.Module) -> None:
        """`model`: a causal LM of transformers, or PEFT's wrapper of one."""
        self.core = core_of(model)
        self.prefix = prefix_of(model)
        self.lengths: list[int] = []        # columns in K and V
        self.tokens: list[int] = []         # what goes in next
        self._layers: list[RoomyLayer] = []
        self._end = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add rows after those that are there; each prompt has at least one token id."""
        columns, lengths = self._prefill([prompt[:-1] for prompt in prompts])
        rows = len(self) + len(prompts)
        if not self._layers or rows > len(self._layers[0].room_k) or max(lengths) > self._end:
            self._move(rows, max([*self.lengths, *lengths]), columns)
        for layer, (K, V) in zip(self._layers, columns, strict=True):
            for i, length in enumerate(lengths):
                layer.put(len(self) + i, K[i, :, :length], V[i, :, :length], self._end)
        self.lengths += lengths
        self.tokens += [prompt[-1] for prompt in prompts]
        self._show()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep these rows; the others leave. Gives the numbers that the rows had, in the order that they have now."""
        order = sorted(rows)
        if len(order) == len(self):
            return order
        last = [i for i in order if i >= len(order)]        # they take the places of those that leave
        order = [i if i in set(rows) else last.pop() for i in range(len(order))]
        for layer in self._layers:
            for place, i in enumerate(order):
                if place != i:
                    layer.room_k[place], layer.room_v[place] = layer.room_k[i], layer.room_v[i]
        self.lengths, self.tokens = [self.lengths[i] for i in order], [self.tokens[i] for i in order]
        if order:
            self._show()
        else:
            self._layers, self._end = [], 0
        return order

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Logits [B, V] float32 of each row's next token, which the caller picks and puts into `tokens`."""
        if self._end >= self._layers[0].room_k.shape[2]:
            self._move(len(self), max(self.lengths), [(layer.room_k, layer.room_v) for layer in self._layers])
            self._show()
        device, lengths = self.core.device, torch.tensor(self.lengths)
        if one_token.attached(self.core):
            mask = lengths[None, None, None]
        else:
            columns = max(self.lengths) + 1
            mask = (torch.arange(columns) >= columns - 1 - lengths[:, None]).long().to(device)
        logits = self.core(
            input_ids=torch.tensor(self.tokens, device=device)[:, None], position_ids=lengths[:, None].to(device),
            attention_mask=mask, past_key_values=Cache(layers=self._layers), use_cache=True,
        ).logits
        self.lengths, self._end = [length + 1 for length in self.lengths], self._end + 1
        return logits[:, -1].float()

    def _prefill(self, rows: list[Sequence[int]]) -> tuple[Columns, list[int]]:
        """K and V [n, H, P + T, d] of a prefix of P columns and rows of at most T tokens, and their lengths."""
        device, P = self.core.device, self.prefix[0][0].shape[2] if self.prefix else 0
        T = max(1, *map(len, rows))
        ids = torch.zeros(len(rows), T, dtype=torch.long, device=device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        cache = DynamicCache()
        for layer, (K, V) in enumerate(self.prefix):
            cache.update(K.expand(len(rows), -1, -1, -1), V.expand(len(rows), -1, -1, -1), layer)
        positions = torch.arange(P, P + T, device=device).expand(len(rows), T)
        self.core(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers], [P + len(row) for row in rows]

    def _move(self, rows: int, end: int, like: Columns) -> None:
        """The rows that are there into a new room for at least so many, with their last columns before `end`."""
        room = 1 << (rows - 1).bit_length()
        layers, widest = [], max(self.lengths, default=0)
        for number, (K, _) in enumerate(like):
            layer = RoomyLayer(room, end + SPARE, K)
            if self.lengths:
                old, B = self._layers[number], len(self)
                layer.room_k[:B, :, end - widest:end] = old.room_k[:B, :, self._end - widest:self._end]
                layer.room_v[:B, :, end - widest:end] = old.room_v[:B, :, self._end - widest:self._end]
            layers.append(layer)
        self._layers, self._end = layers, end

    def _show(self) -> None:
        for layer in self._layers:
            layer.show(len(self), self._end - max(self.lengths), self._end)


def core_of(model: nn.Module) -> nn.Module:
    """The model of transformers inside PEFT."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@torch.inference_mode()
def quicken(model: nn.Module) -> None:
    """Let the model's steps go through learning/layers/one_token.py, if its logits stay what they are: tried here, with
    rows of unequal length, and left alone otherwise."""
    core, rows = core_of(model), [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    before = _three_steps(model, rows)
    if not one_token.attach(core):
        return
    try:
        after = _three_steps(model, rows)
        limit = TOLERANCE * max(1.0, core.dtype.itemsize == 2 and 30.0) * float(before.abs().max())
        if float((after - before).abs().max()) <= limit:
            return
    except (ValueError, RuntimeError):      # an argument that would be lost, or a shape of its own
        pass
    one_token.detach(core)


def _three_steps(model: nn.Module, rows: list[list[int]]) -> Tensor:
    batch, found = Batch(model), []
    batch.join(rows)
    for token in (3, 4, 5):
        found.append(batch.step())
        batch.tokens = [token] * len(rows)
    return torch.stack(found)


def check(model: nn.Module) -> None:
    """Raise ValueError for a model that keeps anything but keys and values of every token: its rows cannot join."""
    config = model.config.get_text_config()
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if any(issubclass(kind, LinearAttentionCacheLayerMixin) or not issubclass(kind, DynamicLayer) for kind in kinds):
        raise ValueError(f"a {config.model_type} keeps a state besides keys and values, which this server cannot "
                         "batch: `ajuste export` makes a folder for another one")


@torch.inference_mode()
def prefix_of(model: nn.Module) -> Columns:
    """K and V [1, H, P, d] of PEFT's learned prefix or prompt; empty for a model that has none."""
    if not hasattr(model, "peft_config") or not model.active_peft_config.is_prompt_learning:
        return []
    learned = model.get_prompt(batch_size=1)
    if isinstance(learned, Tensor):             # prompt tuning: embeddings [1, P, width]
        core, cache = model.get_base_model(), DynamicCache()
        core(inputs_embeds=learned.to(core.dtype), past_key_values=cache, use_cache=True, logits_to_keep=1)
        learned = cache
    return [(layer.keys, layer.values) for layer in learned.layers]


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id drawn from softmax(logits [V] / temperature); temperature 0 takes the largest.

    top_p < 1 keeps the most probable tokens, as few as hold at least top_p of the mass. Nothing else is cut: no top_k.
    """
    if temperature == 0:
        return int(logits.argmax())
    p, order = torch.softmax(logits.double() / temperature, -1), None
    if top_p < 1:
        p, order = p.sort(descending=True, stable=True)
        p = p[: int((p.cumsum(0) - p < top_p).sum())]
    mass = p.cumsum(0)
    u = torch.rand((), generator=generator, dtype=torch.float64) * mass[-1].cpu()
    index = min(int(torch.searchsorted(mass, u.to(mass.device), right=True)), len(p) - 1)
    return int(order[index]) if order is not None else index
