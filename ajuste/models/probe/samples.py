"""May a decoder's answers be sampled together, by the packed sampler or padded? (ways.py)"""

import torch
from torch import Tensor, nn

from ajuste.learning.layers import two_ways
from ajuste.learning.rl import rollout
from ajuste.models.probe.ways import own_logits, told


def answers(model: nn.Module, adapter: str | None = None) -> rollout.Answers:
    """The model as a policy, its rows together as far as that is exact (ajuste/learning/rl/rollout.py).

    Raises ValueError if not even rows of one length are.
    """
    rows = two_ways.rows(model)
    forms: dict[str, rollout.Form] = {"exact": "packed", "plain": "padded", "plain, apart": "apart"}

    def truth(small: nn.Module) -> two_ways.Seen:
        with torch.no_grad():
            logits = [own_logits(small, row) for row in rows]
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
    told(model, chosen, "sampling", "rows are sampled through transformers' own forward")
    return rollout.Answers(model, adapter, forms[chosen.name])


def _centred(logits: Tensor) -> Tensor:
    """What stays of logits in probabilities."""
    return (logits - logits.mean(-1, keepdim=True)).float().cpu()
