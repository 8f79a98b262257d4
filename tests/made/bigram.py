"""A policy that can be written on a whiteboard: the next token depends on the last one alone, through a table.

    log pi(y | x) = log softmax(table[x] / T)[y]          V(x) = value[x]          the reference is another table

It stands where `OneBase` stands in the loop of tasks/rl, so a run of the loop takes milliseconds and every number of it
can be computed a second way.
"""

import torch
from torch import Tensor, nn

TOKENS = 6


class Bigram(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(TOKENS, TOKENS, generator=generator)
        self.policy = nn.Parameter(table.clone())
        self.value = nn.Parameter(torch.randn(TOKENS, generator=generator) * 0.5)
        self.register_buffer("start", table + 0.4 * torch.randn(TOKENS, TOKENS, generator=generator))
        self.batches: list[int] = []  # rows of each pass that wants gradients

    def policy_parameters(self) -> list[nn.Parameter]:
        return [self.policy]

    def value_parameters(self) -> list[nn.Parameter]:
        return [self.value]

    def begin(self, prompts: list[list[int]], max_new_tokens: int) -> "Bigram":
        self.last = torch.tensor([prompt[-1] for prompt in prompts])
        return self

    @property
    def logits(self) -> Tensor:
        return self.policy.detach()[self.last]

    def step(self, tokens: Tensor) -> None:
        self.last = tokens

    def keep(self, rows: Tensor) -> None:
        self.last = self.last[rows]

    def policy_and_values(self, prompts, responses: Tensor, mask: Tensor, temperature: float):
        """As OneBase's: log pi and entropy [B, R], V [B, R + 1], 0 where there is nothing."""
        if torch.is_grad_enabled():
            self.batches.append(len(prompts))
        before = self._before(prompts, responses)
        log_p = torch.log_softmax(self.policy[before[:, :-1]] / temperature, -1)
        entropy = -(log_p.exp() * log_p).sum(-1).detach()
        taken = log_p.gather(2, responses[..., None])[..., 0]
        states = torch.arange(mask.shape[1] + 1) <= mask.sum(1)[:, None]
        return taken * mask, entropy * mask, self.value[before] * states

    def reference(self, prompts, responses: Tensor, mask: Tensor, temperature: float) -> Tensor:
        log_p = torch.log_softmax(self.start[self._before(prompts, responses)[:, :-1]] / temperature, -1)
        return log_p.gather(2, responses[..., None])[..., 0] * mask

    def trainable_state(self) -> dict[str, Tensor]:
        return {"policy": self.policy.detach().clone(), "value": self.value.detach().clone()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.policy.copy_(state["policy"])
            self.value.copy_(state["value"])

    @staticmethod
    def _before(prompts, responses: Tensor) -> Tensor:
        """The token before each state [B, R + 1]."""
        return torch.cat([torch.tensor([[prompt[-1]] for prompt in prompts]), responses], dim=1)
