"""Equal tensors of several models, kept once.

Adapters share their base: a LoRA model is W0 and a small A and B. `TensorPool` gives all models one and the same tensor
wherever theirs are equal byte for byte, so ten adapters of one base cost one base and ten times A and B, and a merged
model costs only the matrices that the merge changed. Every model keeps its own modules, so there is no active adapter
to switch, and no request can be answered by another one's.
"""

import hashlib
import threading
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class TensorPool:
    """One copy of equal tensors. A tensor leaves the pool with the last model that uses it. For any thread."""

    def __init__(self) -> None:
        self._tensors: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        # Two that add the same tensor at once would each keep their own. One that leaves meanwhile does no harm: its
        # entry goes only while it is the dead one's.
        self._lock = threading.Lock()

    def share(self, model: nn.Module) -> None:
        """Replace the model's parameters by those of the pool where they are equal; add the others to the pool.

        What a loader read is a view of the file: each tensor is copied first, or the model would change with its file.
        Quantised ones stay alone: their codes are equal for W and 2 W, the scale stands elsewhere.
        """
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if type(parameter) is nn.Parameter:
                    parameter.data = parameter.data.clone()
                    if parameter.is_floating_point():
                        content = _content(parameter)
                        with self._lock:
                            module._parameters[name] = self._tensors.setdefault(content, parameter)


def bytes_of(models: Iterable[nn.Module]) -> int:
    """Bytes of the models' parameters and buffers; what several hold counts once."""
    held = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


def _content(tensor: Tensor) -> tuple:
    flat = tensor.detach().cpu().contiguous().flatten()
    data = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return str(tensor.device), tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).digest()
