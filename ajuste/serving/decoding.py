"""Rows that are continued together, one token a step; between steps rows join and leave.

    K, V of a layer   [B, H, L, d], left-padded: the keys of row b are its last lengths[b] columns
    position          of the next token of row b = lengths[b], so each row is computed as if it were alone
    prefill           a prompt without its last token, rows padded on the right: a causal model never looks there
    step              the last token of every row -> logits [B, V] of the next

A learned prefix (prefix tuning, prompt tuning) is P columns of K and V that stand before every row.
Unlike `model.generate`, which starts and ends all rows at once, and copies all of K and V for every token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

SPARE = 64                  # columns that a layer can take before it is copied

Columns = list[tuple[Tensor, Tensor]]       # K and V of each layer


class RoomyLayer(DynamicLayer):
    """K and V of one layer inside larger tensors [B, H, L + SPARE, d]: a step writes one column into them."""

    def __init__(self, rows: int, width: int, like: Tensor) -> None:
        super().__init__()
        # zeros, since what is masked still meets the softmax's zeros: 0 * nan would be nan
        shape = (rows, like.shape[1], width + SPARE, like.shape[3])
        self.room_k, self.room_v = like.new_zeros(shape), like.new_zeros(shape)
        self.keys, self.values = self.room_k[:, :, :width], self.room_v[:, :, :width]
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple:
        begin = self.keys.shape[2]
        end = begin + key_states.shape[2]
        if end > self.room_k.shape[2]:
            wider = RoomyLayer(self.keys.shape[0], end, self.keys)
            wider.room_k[:, :, :begin], wider.room_v[:, :, :begin] = self.keys, self.values
            self.room_k, self.room_v = wider.room_k, wider.room_v
        self.room_k[:, :, begin:end], self.room_v[:, :, begin:end] = key_states, value_states
        self.keys, self.values = self.room_k[:, :, :end], self.room_v[:, :, :end]
        return self.keys, self.values


class Batch:
    """The rows that one model is continuing. `lengths` and `tokens` have one entry a row, in the order of the rows."""

    def __init__(self, model: nn.Module) -> None:
        """`model`: a causal LM of transformers, or PEFT's wrapper of one."""
        self.core = model.get_base_model() if hasattr(model, "peft_config") else model
        self.prefix = prefix_of(model)
        self.lengths: list[int] = []        # columns in K and V
        self.tokens: list[int] = []         # what goes in next
        self._cache: Cache | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add rows after those that are there; each prompt has at least one token id."""
        columns, lengths = self._prefill([prompt[:-1] for prompt in prompts])
        self._regroup(list(range(len(self))), columns, lengths)
        self.tokens += [prompt[-1] for prompt in prompts]

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; the others leave."""
        if list(rows) != list(range(len(self))):
            self._regroup(list(rows), [], [])
            self.tokens = [self.tokens[i] for i in rows]

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Logits [B, V] float32 of each row's next token, which the caller picks and puts into `tokens`."""
        device = self.core.device
        lengths = torch.tensor(self.lengths, device=device)
        columns = self._cache.layers[0].keys.shape[2] + 1
        mask = torch.arange(columns, device=device) >= columns - 1 - lengths[:, None]
        logits = self.core(
            input_ids=torch.tensor(self.tokens, device=device)[:, None], position_ids=lengths[:, None],
            attention_mask=mask.long(), past_key_values=self._cache, use_cache=True,
        ).logits
        self.lengths = [length + 1 for length in self.lengths]
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

    def _regroup(self, rows: list[int], columns: Columns, lengths: list[int]) -> None:
        """New K and V of the rows that stay and of those that come, as narrow as the longest of them allows."""
        stay = [self.lengths[i] for i in rows]
        self.lengths = stay + lengths
        if not self.lengths:
            self._cache = None
            return
        width, widest = max(self.lengths), max(stay, default=0)
        old = [(layer.keys, layer.values) for layer in self._cache.layers] if self._cache else columns
        layers = []
        for number, (K, V) in enumerate(old):
            layer = RoomyLayer(len(self.lengths), width, K)
            if stay and widest:
                layer.keys[: len(stay), :, width - widest:] = K[rows, :, K.shape[2] - widest:]
                layer.values[: len(stay), :, width - widest:] = V[rows, :, V.shape[2] - widest:]
            for i, length in enumerate(lengths):
                layer.keys[len(stay) + i, :, width - length:] = columns[number][0][i, :, :length]
                layer.values[len(stay) + i, :, width - length:] = columns[number][1][i, :, :length]
            layers.append(layer)
        self._cache = Cache(layers=layers)


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
