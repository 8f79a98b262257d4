"""Study methods: one method with one seed, trained at the study's budget and measured as all others are.

    python -m studies.methods.point METHOD SEED         sft, best-of-n, rejection, dpo, ppo, grpo or rloo

Run by `ajuste study methods`, after the default run, whose SFT model, reward model, gold and reference are read and not
made again. The seed is that of the training and of the answers to the test prompts, so with one seed all methods meet
the same noise. How a method is trained: training.py, at which budget: budget.py, by what it is judged: measures.py.

Writes artifacts/studies/methods/<METHOD>-<SEED>.json: what was spent, a row a test prompt, the opinions of the judge of
words, and what the weights have lost. The adapter is not kept. A point that was killed begins anew and ends with the
same bytes. Seconds and peak memory of the training alone (of best-of-n and SFT: of the answers) stand in .state.
"""

import resource
import shutil
import sys
import time
from pathlib import Path

from ajuste.core import allocator
from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.models import decoder
from studies import policies
from studies.labelled import run
from studies.methods.budget import Spent
from studies.methods.measures import Answers, answered, best, lost, opinions, test_prompts
from studies.methods.shared import BEST, PARAMS, POINTS, SFT, UNTRAINED, MethodsConfig, keep_cost, path_of, read
from studies.methods.training import train


def main(method: str, seed: int) -> None:
    study = read()
    if method not in study.methods or seed not in study.seeds:
        raise UsageError(f"no point `{method} {seed}`: {PARAMS} names methods and seeds")
    compute = policies.compute().model_copy(update={"seed": seed})
    allocator.keep_memory()
    seed_everything(compute.seed, compute.threads)
    work = POINTS / f".{method}-{seed}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    began = time.monotonic()
    if method in UNTRAINED:
        spent, alarms = Spent(an_answer=study.n if method == BEST else 1), 0
        said = best(study, compute, work) if method == BEST else answered(study, compute, policies.SFT)
        cost, weights = _cost(began, compute), None
    else:
        adapter, spent, alarms = train(method, study, compute, work)
        cost = _cost(began, compute)
        whole = _merged(adapter, work / "whole")
        said = answered(study, compute, whole)
        weights = lost(study, compute, method, whole, work)
    heard = [] if method == SFT else opinions(study, compute, said)
    write_json(path_of(method, seed), {
        "method": method, "seed": seed, "spent": vars(spent), "alarms": alarms, "rows": _rows(study, said),
        "distinct2": _distinct(said), "opinions": heard, "lost": weights,
    })  # fmt: skip
    keep_cost(method, seed, cost)
    shutil.rmtree(work)
    print(f"{method}, seed {seed}: proxy {said.proxy.mean():.3f}, gold {said.gold.mean():.3f}, KL {said.kl.mean():.2f} "
          f"nats a response on {len(said.texts)} test prompts; {cost['seconds']:.0f} s")  # fmt: skip


def _cost(began: float, compute: Compute) -> dict:
    """Seconds since `began`, and the most memory that this process has held until now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.monotonic() - began, 2), "peak_memory_mb": round(peak, 1),
            "device": compute.torch_device(), "threads": compute.threads}  # fmt: skip


def _merged(adapter: Path, out: Path) -> Path:
    """One decoder out of the SFT model and the adapter."""
    model, tokenizer, card = decoder.load(adapter, policies.SFT)
    decoder.save_whole(model.merge_and_unload(), tokenizer, out, card)
    return out


def _rows(study: MethodsConfig, said: Answers) -> list[dict]:
    """A row a test prompt."""
    columns = zip(test_prompts(study).row_ids, said.proxy, said.gold, said.kl, said.responses, strict=True)
    return [{"id": row_id, "proxy": float(proxy), "gold": float(gold), "kl": float(kl), "tokens": len(response)}
            for row_id, proxy, gold, kl, response in columns]  # fmt: skip


def _distinct(said: Answers) -> float | None:
    """Different bigrams of all answers over all of them; None where no answer has two tokens."""
    found = metrics.distinct(said.responses, 2)
    return None if found != found else found


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        raise SystemExit("error: python -m studies.methods.point METHOD SEED")
    run(lambda: main(sys.argv[1], int(sys.argv[2])))
