"""Which way may a model go: our own fast forms of batches, transformers' plain padded ones, or none?

    exact      our form (rows without padding, a shared prefix, the packed sampler) says what the model itself says
    plain      it does not: padded rows through transformers' own forward, which do
    refused    neither does: ValueError

for each use:

    supervised   losses and gradients: stage instruct; without gradients all that scores texts
    answers      sampling and its log-probabilities: reward, ppo, evaluate_ppo
    policy       log-probabilities of policy and reference, values, scores: OneBase asks when it is made; `one.way`
    rewards      of a reward model, which asks when it is built or loaded; `reward.way(model)`
    likelihoods  of whole responses, log pi(y | x): ajuste/models/responses.py asks when it builds or loads a model

    way = supervised(model)     # Way("exact", ""), and `model` takes ragged batches; if "plain" it is as it was

Each is decided on the model itself, by two short rows that go both ways (ajuste/learning/layers/two_ways.py): no list
of architectures is kept. A plain way is said in one line (ajuste/core/notes.py) and costs time, nothing else.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ajuste.core.notes import say
from ajuste.learning.layers import fused, ragged, shared_prefix, two_ways
from ajuste.learning.rl import rollout
from ajuste.learning.rl.token_log_probs import log_probs_of_logits
from ajuste.models import passes
from ajuste.models.folder import quiet

if TYPE_CHECKING:
    from ajuste.models.one_base import OneBase


POLICY, REWARD = "policy", "reward"  # adapters of OneBase


class Way(NamedTuple):
    """reason: why it is not exact."""

    name: Literal["exact", "plain"]
    reason: str = ""


def _told(model: nn.Module, chosen: two_ways.Chosen, use: str, plain: str) -> Way:
    """The way that was chosen, said in one line if it is not the first.

    use: what the model is for; plain: what is done then. Raises ValueError, which says why, if there is no way.
    """
    kind = _kind(model)
    if chosen.name is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in chosen.reasons.items())
        raise ValueError(f"{kind} cannot be used for {use}, no way of it is right ({reasons}): take another base")
    if not chosen.reasons:
        return Way("exact")
    say(f"{kind}: {plain}, which is slower, because {chosen.reason}")
    return Way("plain", chosen.reason)


def supervised(model: nn.Module, training: bool = False) -> Way:
    """Let a causal language model, in PEFT or not, take ragged batches if they are exact; else it stays as it is.

    training: gradients are compared too, and LoRA's layers are fused (ajuste/learning/layers/fused.py). Virtual tokens
    always have padded rows, which is then the exact way. Raises ValueError if padded rows are wrong too.
    """
    rows = two_ways.rows(model)

    def with_padding(small: nn.Module, ours: bool = training) -> two_ways.Seen:
        ragged.detach(small)
        _fused(small, ours)
        return _losses(small, ragged.padded([(row, row) for row in rows], pad_id=0))

    def without_padding(small: nn.Module) -> two_ways.Seen:
        _fused(small, training)
        ragged.attach(small)
        found = _losses(small, ragged.collate([(row, row) for row in rows]))
        return found | {"ordinary batches": _alone(small, rows).detach()}

    ways = {"exact": without_padding, "plain": with_padding, "plain, not fused": lambda m: with_padding(m, ours=False)}
    if ragged.puts_tokens_before(model):
        ways = {"exact": with_padding}
    with quiet():
        with torch.set_grad_enabled(training):
            chosen = two_ways.choose(model, lambda small: _truth(small, rows), ways)
        way = _told(model, chosen, "rows of text", "rows of text are padded")
        _fused(model, training and chosen.name != "plain, not fused")
        (ragged.attach if way.name == "exact" and len(ways) > 1 else ragged.detach)(model)
    return way


def answers(model: nn.Module, adapter: str | None = None) -> rollout.Answers:
    """The model as a policy, its rows together as far as that is exact (ajuste/learning/rl/rollout.py).

    Raises ValueError if not even rows of one length are.
    """
    rows = two_ways.rows(model)
    forms: dict[str, rollout.Form] = {"exact": "packed", "plain": "padded", "plain, apart": "apart"}

    def truth(small: nn.Module) -> two_ways.Seen:
        with torch.no_grad():
            logits = [_logits(small, row) for row in rows]
        first, second = ([own[len(row) - left] for own, row in zip(logits, rows, strict=True)] for left in (3, 2))
        return {"logits": _centred(torch.stack([*first, *second, logits[1][-1]]))}

    def way(form: rollout.Form) -> two_ways.Way:
        def found(small: nn.Module) -> two_ways.Seen:
            run = rollout.Answers(small, adapter, form).begin([row[:-2] for row in rows], 2)
            with torch.no_grad():
                seen = [run.logits.clone()]
                run.step(torch.tensor([row[-2] for row in rows]))
                seen.append(run.logits.clone())
                run.keep(torch.tensor([1]))
                run.step(torch.tensor([rows[1][-1]]))
            return {"logits": _centred(torch.cat([*seen, run.logits]))}

        return found

    chosen = two_ways.choose(model, truth, {name: way(form) for name, form in forms.items()})
    _told(model, chosen, "sampling", "rows are sampled through transformers' own forward")
    return rollout.Answers(model, adapter, forms[chosen.name])


def policy(one: "OneBase") -> Way:
    """Let `one` take the first form of rows (ajuste/models/passes.py) that says what the model's own forward says.

    Raises ValueError if none does.
    """
    rows = two_ways.rows(one.model)
    forms: dict[str, passes.Form] = {"exact": "shared", "plain": "padded", "plain, its own logits": "whole"}
    ways = {name: partial(_responses, rows=rows, form=form) for name, form in forms.items()}
    with quiet():
        chosen = two_ways.choose(one, partial(_responses_alone, rows=rows), ways)
        way = _told(one.model, chosen, "log-probabilities of responses", "responses are read on padded rows")
        one.take(forms[chosen.name])
    return way


def rewards(model: nn.Module, score: Callable, alone: Callable) -> Way:
    """Let a reward model take rows behind a shared prefix if they are exact; else it stays as it is.

    score(model, rows) -> [N] as it is trained, alone(model, row) -> its reward from transformers' own forward, both
    with gradients. Raises ValueError if padded rows are wrong too.
    """
    return _behind_a_prefix(model, score, alone, "rewards")


def likelihoods(model: nn.Module, score: Callable) -> Way:
    """The same for log pi(y | x). score(model, rows) -> [N] of rows with a prompt of two_ways.SHARED tokens."""
    begin = two_ways.SHARED

    def alone(small: nn.Module, row: list[int]) -> Tensor:
        return log_p(_logits(small, row)[begin - 1 : -1], torch.tensor(row[begin:])).sum()

    return _behind_a_prefix(model, score, alone, "log-probabilities of responses")


def _behind_a_prefix(model: nn.Module, score: Callable, alone: Callable, what: str) -> Way:
    """Let a model take rows behind a shared prefix if `score` of them says what `alone` says."""
    rows = two_ways.rows(model)

    def seen(small: nn.Module, found: Tensor) -> two_ways.Seen:
        weights = torch.arange(1, len(found) + 1, device=found.device)
        return {what: found.detach()} | two_ways.gradients((weights * found).sum(), small)

    def way(form: Callable[[nn.Module], nn.Module]) -> two_ways.Way:
        return lambda small: seen(small, score(_fused(form(small), True), rows))

    ways = {"exact": way(shared_prefix.attach), "plain": way(shared_prefix.detach)}
    with quiet():
        chosen = two_ways.choose(model, lambda m: seen(m, torch.stack([alone(m, row) for row in rows])), ways)
        way = _told(model, chosen, what, "rows to score are padded")
        (shared_prefix.attach if way.name == "exact" else shared_prefix.detach)(model)
    return way


# --- what is asked ----------------------------------------------------------------------------------------------------


def _logits(model: nn.Module, row: list[int]) -> Tensor:
    """The model's own [T, V] of one row, as transformers' documentation would have it."""
    ids = torch.tensor([row], device=next(model.parameters()).device)
    mask = {"attention_mask": torch.ones_like(ids)} if ragged.puts_tokens_before(model) else {}
    return model(input_ids=ids, use_cache=False, **mask).logits[0, -len(row) :]


def _alone(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """log p of all tokens that have one before them, row by row [N]."""
    return torch.cat([log_p(_logits(model, row)[:-1], torch.tensor(row[1:])) for row in rows])


def _truth(model: nn.Module, rows: list[list[int]]) -> two_ways.Seen:
    found = _alone(model, rows)
    seen = {"log-probabilities": found.detach(), "ordinary batches": found.detach(), "loss": -found.detach().mean()}
    return seen | two_ways.gradients(-found.mean(), model)


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> two_ways.Seen:
    batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in batch.items()}
    with torch.no_grad():
        logits, targets, _ = ragged.trained(model, batch)
    loss = ragged.response_loss(model, batch)
    found = log_p(logits, targets)
    seen = {"log-probabilities": found, "ordinary batches": found, "loss": loss.detach()}
    return seen | two_ways.gradients(loss, model)


def _responses(one: "OneBase", rows: list[list[int]], form: passes.Form) -> two_ways.Seen:
    """What `one` says of two responses in that form: what the rows share is the beginning of their prompts."""
    one.take(form)
    device, begin = one.value_head.weight.device, two_ways.SHARED
    tails = [torch.tensor(row[begin:], device=device) for row in rows]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    batch = [row[:begin] for row in rows], pad(tails), pad([torch.ones_like(tail) for tail in tails]).bool()
    log_probs, _, values = one.policy_and_values(*batch, 1.0)
    mask = batch[-1]
    scores = None if one.reward_head is None else one.scores(*batch)
    reference = one.reference(*batch, 1.0)[mask]
    with one.using(None), torch.no_grad():
        ordinary = torch.cat([_own_log_probs(one, torch.tensor([row], device=device)) for row in rows])
    seen = _of_policy(one, log_probs[mask], values[passes.after(mask)], reference, scores)
    return seen | {"ordinary batches": ordinary}


def _responses_alone(one: "OneBase", rows: list[list[int]]) -> two_ways.Seen:
    """The same from the model's own forward, a row at a time."""
    log_probs, values, reference, scores = [], [], [], []
    for row in rows:
        ids = torch.tensor([row], device=one.value_head.weight.device)
        for adapter, found in ((POLICY, log_probs), (None, reference)):
            with one.using(adapter):
                found.append(_own_log_probs(one, ids))
        with one.using(one.valuing):
            values.append(one.value_head(_trunk(one.model, ids)[two_ways.SHARED - 1 :]).squeeze(1))
        if one.reward_head is not None:
            with one.using(REWARD), torch.no_grad():
                scores.append(_trunk(one.model, ids)[-1] @ one.reward_head + one.reward_bias)
    scores = torch.stack(scores) if scores else None
    seen = _of_policy(one, torch.cat(log_probs), torch.cat(values), torch.cat(reference), scores)
    return seen | {"ordinary batches": seen["reference"]}


def _own_log_probs(one: "OneBase", ids: Tensor) -> Tensor:
    """Of the response in one row [1, T], by the model's own forward."""
    logits = one.model(input_ids=ids, use_cache=False).logits[0, two_ways.SHARED - 1 : -1]
    return log_probs_of_logits(logits, ids[0, two_ways.SHARED :], 1.0)[0]


def _of_policy(
    one: "OneBase", log_probs: Tensor, values: Tensor, reference: Tensor, scores: Tensor | None
) -> two_ways.Seen:
    found = {"log-probabilities": log_probs.detach(), "values": values.detach(), "reference": reference.detach()}
    if scores is not None:
        found["rewards"] = scores
    return found | two_ways.gradients(log_probs.mean() + values.mean(), one)


def _trunk(model: nn.Module, ids: Tensor) -> Tensor:
    """The last hidden states [T, d] of one row [1, T], as transformers gives them."""
    return ragged.trunk(model.get_base_model())(input_ids=ids, use_cache=False).last_hidden_state[0]


def log_p(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [N, V], targets [N] -> log p [N], float32."""
    return logits.float().log_softmax(-1).gather(1, targets.to(logits.device)[:, None])[:, 0]


def _centred(logits: Tensor) -> Tensor:
    """What stays of logits in probabilities."""
    return (logits - logits.mean(-1, keepdim=True)).float().cpu()


def _fused(model: nn.Module, wanted: bool) -> nn.Module:
    (fused.fuse if wanted else fused.unfuse)(model)
    return model


def _kind(model: nn.Module) -> str:
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(model).__name__
