"""How far a policy has gone from its reference, in nats a response, with the whole distribution at every token.

    KL(pi || pi_ref) = E_{y ~ pi} sum_t KL_t        KL_t = sum_v pi(v | x, y_<t) log (pi(v | x, y_<t) / pi_ref(v | ...))

The sum over the vocabulary takes the place of the sampled log-ratio log pi(y_t) - log pi_ref(y_t): both have the same
mean, but each KL_t >= 0, and the noise of the token that happened to be drawn is gone. Training pays for the sampled
one (it costs nothing there); an evaluation can afford this one.

    distribution_kl(policy, reference, prompts, responses, temperature=0.7, pad_id=2)        # [N] float64
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def distribution_kl(
    policy: nn.Module,
    reference: nn.Module,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    pad_id: int,
    batch_rows: int = 16,
) -> Tensor:
    """Sum over a response's tokens, its end of turn included, of the KL of the two next-token distributions.

    prompts, responses: token ids, N of each. temperature divides both models' logits. Returns float64 [N] on the CPU.
    Raises ValueError for an empty prompt or response.
    """
    if any(not len(row) for row in (*prompts, *responses)):
        raise ValueError("a prompt or a response has no tokens: there is nothing to compare")
    result = torch.zeros(len(prompts), dtype=torch.float64)
    device = next(policy.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]) - len(responses[i]), i))
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        whole = [[*prompts[i], *responses[i]] for i in rows]
        ids = torch.full((len(rows), max(map(len, whole))), pad_id, device=device)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(whole):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        first = min(len(prompts[i]) for i in rows) - 1  # position t predicts token t + 1
        kept = ids.shape[1] - first
        pair = [
            model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
            for model in (policy, reference)
        ]
        for place, i in enumerate(rows):
            begin = len(prompts[i]) - 1 - first
            here = slice(begin, begin + len(responses[i]))
            log_p, log_q = (torch.log_softmax(z[place, here].float() / temperature, dim=-1) for z in pair)
            result[i] = (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64).cpu()
    return result
