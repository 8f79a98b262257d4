"""In which form may OneBase read responses: as policy, reference, value function and reward model? (ways.py)"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ajuste.learning.layers import ragged, two_ways
from ajuste.learning.rl.token_log_probs import log_probs_of_logits
from ajuste.models import passes
from ajuste.models.folder import quiet
from ajuste.models.probe.ways import Way, told

if TYPE_CHECKING:
    from ajuste.models.one_base import OneBase

POLICY, REWARD = "policy", "reward"  # adapters of OneBase


def policy(one: "OneBase") -> Way:
    """Let `one` take the first form of rows (ajuste/models/passes.py) that says what the model's own forward says.

    Raises ValueError if none does.
    """
    rows = two_ways.rows(one.model)
    forms: dict[str, passes.Form] = {"exact": "shared", "plain": "padded", "plain, its own logits": "whole"}
    ways = {name: partial(_responses, rows=rows, form=form) for name, form in forms.items()}
    with quiet():
        chosen = two_ways.choose(one, partial(_responses_alone, rows=rows), ways)
        way = told(one.model, chosen, "log-probabilities of responses", "responses are read on padded rows")
        one.take(forms[chosen.name])
    return way


def _responses(one: "OneBase", rows: list[list[int]], form: passes.Form) -> two_ways.Seen:
    """What `one` says of two responses in that form: what the rows share is the beginning of their prompts."""
    one.take(form)
    device, begin = one.model.device, two_ways.SHARED
    tails = [torch.tensor(row[begin:], device=device) for row in rows]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    batch = [row[:begin] for row in rows], pad(tails), pad([torch.ones_like(tail) for tail in tails]).bool()
    log_probs, _, values = one.policy_and_values(*batch, 1.0)
    mask = batch[-1]
    scores = None if one.reward_head is None else one.scores(*batch)
    reference = one.reference(*batch, 1.0)[mask]
    with one.using(None), torch.no_grad():
        ordinary = torch.cat([_own_log_probs(one, torch.tensor([row], device=device)) for row in rows])
    values = None if values is None else values[passes.after(mask)]
    seen = _of_policy(one, log_probs[mask], values, reference, scores)
    return seen | {"ordinary batches": ordinary}


def _responses_alone(one: "OneBase", rows: list[list[int]]) -> two_ways.Seen:
    """The same from the model's own forward, a row at a time."""
    log_probs, values, reference, scores = [], [], [], []
    for row in rows:
        ids = torch.tensor([row], device=one.model.device)
        for adapter, found in ((POLICY, log_probs), (None, reference)):
            with one.using(adapter):
                found.append(_own_log_probs(one, ids))
        if one.value_head is not None:
            with one.using(one.valuing):
                values.append(one.value_head(_trunk(one.model, ids)[two_ways.SHARED - 1 :]).squeeze(1))
        if one.reward_head is not None:
            with one.using(REWARD), torch.no_grad():
                scores.append(_trunk(one.model, ids)[-1] @ one.reward_head + one.reward_bias)
    scores = torch.stack(scores) if scores else None
    values = torch.cat(values) if values else None
    seen = _of_policy(one, torch.cat(log_probs), values, torch.cat(reference), scores)
    return seen | {"ordinary batches": seen["reference"]}


def _own_log_probs(one: "OneBase", ids: Tensor) -> Tensor:
    """Of the response in one row [1, T], by the model's own forward."""
    logits = one.model(input_ids=ids, use_cache=False).logits[0, two_ways.SHARED - 1 : -1]
    return log_probs_of_logits(logits, ids[0, two_ways.SHARED :], 1.0)[0]


def _of_policy(
    one: "OneBase", log_probs: Tensor, values: Tensor | None, reference: Tensor, scores: Tensor | None
) -> two_ways.Seen:
    found, learnt = {"log-probabilities": log_probs.detach()}, log_probs.mean()
    if values is not None:
        found["values"], learnt = values.detach(), learnt + values.mean()
    found["reference"] = reference.detach()
    if scores is not None:
        found["rewards"] = scores
    return found | two_ways.gradients(learnt, one)


def _trunk(model: nn.Module, ids: Tensor) -> Tensor:
    """The last hidden states [T, d] of one row [1, T], as transformers gives them."""
    return ragged.trunk(model.get_base_model())(input_ids=ids, use_cache=False).last_hidden_state[0]
