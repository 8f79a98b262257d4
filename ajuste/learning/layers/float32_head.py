"""An output layer in float32 above a model in bfloat16: z = h W^T with h and W turned into float32 first.

bfloat16 keeps 8 bits: a logit between 16 and 32 is rounded to a multiple of 1/8, by whoever computes it. Sampler and
trainer round alike, but from hidden states that already differ a little, so the rounding multiplies their difference
(MiniMax-M1 measured the same, arXiv 2506.13585). The weights' values stay, only products, sums and logits get longer;
a copy of W in float32 is what it costs, V x d x 4 bytes.

    attach(model)        # afterwards model's logits are float32, and get_output_embeddings().weight is
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Float32Head(nn.Module):
    """In the place of an output layer. weight [V, d] and bias [V] or None: frozen float32 copies, in no state dict."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        bias = getattr(head, "bias", None)
        self.register_buffer("weight", head.weight.detach().float(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """h [..., d] in any dtype -> logits [..., V] in float32."""
        return F.linear(h.float(), self.weight, self.bias)


def attach(model: nn.Module) -> None:
    """Replace the output layer of a causal language model of transformers, in place; embeddings tied to it stay."""
    model.set_output_embeddings(Float32Head(model.get_output_embeddings()))
