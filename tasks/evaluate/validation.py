"""A policy beside the SFT model that it was made from, on validation prompts that chose nothing: what ranks methods.

    gold      P(positive) of the gold classifier, which no training saw; PPO chose its update by it, on other prompts
    second    P(positive) of the classifier of the reviews, by which nothing was ever chosen
    gain      after - before, paired: the same prompts, the same noise of the sampling, the same resamples
    kl        KL(after || before) in nats a response (ajuste/learning/rl/divergence.py)

The validation prompts in the order of their ids have two halves: a training may choose by the first (PPO does, half of
2 radar_prompts), and nobody by the second, which is asked here. All methods answer the same prompts from the same
generator, so their gains compare; which of them becomes `challenger`: ajuste/judging/verdicts/choosing.py.

Stages `evaluate_<method>` do it behind their test prompts, with the same section.
Writes  ranking.json, ranking.jsonl (a line a prompt)
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute
from ajuste.core.stage import Stage
from ajuste.learning.rl import divergence
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import decoder
from ajuste.models.folder import read_card
from tasks.evaluate import policy

JUDGES = ("gold", "second")
MOST = 128  # prompts that are asked; the test prompts' number where that is less


class Judges(NamedTuple):
    """Classifier folders; second: None where there is none with a label `positive`."""

    gold: Path
    second: Path | None


class Answered(NamedTuple):
    """Of each prompt [P]: the judges' scores by judge and model (`sft`, the method), and the KL."""

    scores: dict[str, dict[str, np.ndarray]]
    kl: np.ndarray


def halves(encoded: Path) -> tuple[policy.Prompts, policy.Prompts]:
    """The validation prompts that a training may choose by, and those that judge it; of one prompt both are that one.

    Raises as `tasks.evaluate.policy.read_prompts` does.
    """
    every = policy.read_prompts(encoded, "validation", None)
    middle = (len(every.ids) + 1) // 2
    return first(every, middle), first(every, None, middle) if middle < len(every.ids) else every


def first(prompts: policy.Prompts, number: int | None, after: int = 0) -> policy.Prompts:
    """The first `number` of the prompts behind the first `after`; None: all of them."""
    columns = (prompts.row_ids, prompts.ids, prompts.prefilled, prompts.prefills)
    end = None if number is None else after + number
    return policy.Prompts(*(column[after:end] for column in columns))


def judges(gold: Path, second: Path) -> Judges:
    """The two, the second one only if it knows what `positive` is. Raises UsageError for a folder that is no model."""
    try:
        return Judges(gold, second if policy.POSITIVE in read_card(second).get("labels", []) else None)
    except ValueError as error:
        raise UsageError(str(error)) from None


def answered(
    models: dict[str, nn.Module], tokenizer: PreTrainedTokenizerBase, prompts: policy.Prompts,
    config: policy.PolicyConfig, by: Judges, compute: Compute, adapter: str | None = None,
) -> Answered:  # fmt: skip
    """Both models' answers, judged. models: `sft` and the method; adapter: PEFT's name of the method's, if it has one.

    Raises ValueError for a judge that is none.
    """
    stop, pad, device = chat.end_of_turn(tokenizer), tokenizer.pad_token_id, compute.torch_device()
    (method,) = models.keys() - {policy.BEFORE}
    said = {
        name: policy.respond(
            model, prompts.ids, config.sampling(), stop, pad, compute.seed, adapter if name == method else None
        )
        for name, model in models.items()
    }
    kl = divergence.distribution_kl(
        models[method], models[policy.BEFORE], prompts.ids, said[method], config.temperature, pad, config.batch_rows
    )
    texts = {name: policy.texts_of(prompts, rows, tokenizer) for name, rows in said.items()}
    scores = {
        name: policy.score_gold(folder, texts, config.batch_rows, device)
        for name, folder in by._asdict().items() if folder is not None
    }  # fmt: skip
    return Answered(scores, kl.numpy())


def summarised(found: Answered, method: str, bootstrap: int, seed: int) -> dict:
    """ranking.json: of each judge both means and the gain, and the KL, with intervals over the prompts."""
    P = len(found.kl)
    counts, ones = metrics.resamples(P, bootstrap, seed), np.ones(P)
    report: dict = {"prompts": P, "kl": metrics.estimate(found.kl, ones, counts)}
    for judge, of in found.scores.items():
        values = {**of, "difference": of[method] - of[policy.BEFORE]}
        report[judge] = {name: metrics.estimate(some, ones, counts) for name, some in values.items()}
    return report


def judge_policy(
    config: policy.PolicyConfig, compute: Compute, before: Path, after: Path, by: Judges, encoded: Path, out: Path,
    method: str,
) -> dict:  # fmt: skip
    """Write ranking.json and ranking.jsonl of the policy `after` into `out`; returns the first.

    Raises UsageError for a folder that is no such model or a missing input, DataError without any prompt.
    """
    seed_everything(compute.seed, compute.threads)
    prompts = first(halves(encoded)[1], min(MOST, config.prompts or MOST))
    models = {}
    try:
        for name, folder in ((policy.BEFORE, before), (method, after)):
            model, tokenizer, _ = decoder.load(folder, dtype=getattr(torch, config.dtype))
            models[name] = model.to(compute.torch_device())
        found = answered(models, tokenizer, prompts, config, by, compute)
    except ValueError as error:
        raise UsageError(str(error)) from None
    report = summarised(found, method, config.bootstrap, compute.seed)
    report |= {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "ranking.json", report, sort_keys=True)
    write_lines(out / "ranking.jsonl", [
        {"id": row_id, "kl": float(found.kl[i]),
         **{f"{judge}_{name}": float(of[name][i]) for judge, of in found.scores.items() for name in of}}
        for i, row_id in enumerate(prompts.row_ids)
    ])  # fmt: skip
    return report


def run(stage: Stage, method: str) -> None:
    """What stage `evaluate_<method>` does with validation prompts in the folders of artifacts/, and its words."""
    artifacts, merged = Path("artifacts"), Path("artifacts/merged")
    by = judges(merged / "gold", merged / "classify_full")
    with stage.phase("validation"):
        report = judge_policy(
            stage.config, stage.compute, merged / "instruct", merged / method, by, artifacts / "encoded/preferences",
            artifacts / "evaluated" / method, method,
        )  # fmt: skip
    said = [f"{judge} {gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
            for judge in JUDGES if judge in report for gap in [report[judge]["difference"]]]  # fmt: skip
    print(f"on {report['prompts']} validation prompts that chose nothing: {', '.join(said)}")
