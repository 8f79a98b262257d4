"""What a classifier's head reads: the features of its encoder, in the place of logits."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ajuste.models.classifier import last_linear


class FeatureReader(nn.Module):
    """A classifier that answers with the input of its last linear layer, [B, d], in the place of logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config
        self.seen: Tensor | None = None
        last_linear(model).register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.seen = inputs[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        self.model(input_ids=input_ids, attention_mask=attention_mask)
        seen = self.seen
        if seen.dim() == 3:  # a GPT-like head scores every token; the model reads the last one that is not padding
            real = input_ids != self.config.pad_token_id  # an end token may stand in the place of padding
            places = torch.arange(real.shape[1], device=real.device)
            seen = seen[range(len(seen)), (real * places).argmax(dim=1)]
        return SequenceClassifierOutput(logits=seen)
