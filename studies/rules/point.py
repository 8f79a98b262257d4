"""Study rules: GRPO with verifiable rewards with one seed; pass rate before and after on topics never trained on.

    python -m studies.rules.point SEED

Run by `ajuste study rules`, after `merge_instruct` of the default run. No reward model is read: a response is paid the
share of its prompt's rules that it keeps. Then the SFT model and the policy answer the prompts of the test topics, at
the temperature of training and with the same noise; a response passes if it keeps every rule.

Writes artifacts/studies/rules/<SEED>.json: pass rates, their paired difference with a bootstrap interval over prompts,
the one-sided bound that holds topics together (ajuste/learning/statistics/paired.py), pass rates by kind of prompt, KL.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from ajuste.core import allocator
from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, typed
from ajuste.judging.rules import check
from ajuste.learning.rl import divergence
from ajuste.learning.statistics import metrics, paired
from ajuste.learning.text import chat
from ajuste.models import decoder
from studies.points import errors_told, write
from studies.stages import sampled
from tasks.evaluate import policy
from tasks.grpo import GrpoConfig, grpo
from tasks.rl.scores import practice
from tasks.rl.scores.practice import Practice

STUDY, OUT, ARTIFACTS = Path("studies/rules"), Path("artifacts/studies/rules"), Path("artifacts")
PRACTICE = Path("sources/rules")


def main(seed: int) -> None:
    study = read_yaml(STUDY / "params.yaml")
    if seed not in study["seeds"]:
        raise UsageError(f"no point `{seed}`: {STUDY / 'params.yaml'} names the seeds")
    judge = typed(Compute, read_yaml(Path("params.yaml"))["compute"], "compute")
    config = typed(GrpoConfig, sampled(GrpoConfig, study["grpo"]), "grpo")
    allocator.keep_memory()
    with tempfile.TemporaryDirectory() as scratch:
        adapter, checkpoints = Path(scratch) / "adapter", Path(scratch) / "checkpoints"
        checkpoints.mkdir()
        done = grpo(config, judge.model_copy(update={"seed": seed}), ARTIFACTS, adapter, checkpoints)
        allocator.give_back()
        # the same test prompts and samples' seed for all points: only the training varies
        asked = practice.read(PRACTICE, "test")[: study["prompts"]]
        passed, kl = answered(config, judge, asked, adapter)
    history = done["history"]
    report = compared(asked, passed, study["bootstrap"], judge.seed)
    write(OUT / f"{seed}.json", {
        "seed": seed, "updates": len(history), "alarms": len(done["alarms"]), "kl": kl,
        "reward": [history[0]["score"], history[-1]["score"]],
        "flat_groups": sum(row["flat_groups"] for row in history) / len(history), **report,
    })  # fmt: skip


def answered(
    config: GrpoConfig, compute: Compute, asked: list[Practice], adapter: Path
) -> tuple[dict[str, list[bool]], float]:
    """Whether each answer keeps all its rules, before and after, and the mean KL of the answers after."""
    base, dtype, device = ARTIFACTS / "merged/instruct", getattr(torch, config.dtype), compute.torch_device()
    before, tokenizer = decoder.load_base(base, dtype)
    after = decoder.load(adapter, base, dtype)[0]
    prompts = [chat.prompt_ids(tokenizer, [{"role": "user", "content": one.prompt}]) for one in asked]
    how, stop = policy.Sampling(config.max_new_tokens, config.temperature), chat.end_of_turn(tokenizer)
    pad, said = tokenizer.pad_token_id, {}
    for name, model, named in (("before", before, None), ("after", after, "default")):
        said[name] = policy.respond(model.to(device).eval(), prompts, how, stop, pad, compute.seed, named)
    kl = divergence.distribution_kl(after, before, prompts, said["after"], config.temperature, pad)
    passed = {
        name: [all(check(one.rules, chat.response_text(tokenizer, ids))) for one, ids in zip(asked, rows, strict=True)]
        for name, rows in said.items()
    }
    return passed, float(kl.mean())


def compared(asked: list[Practice], passed: dict[str, list[bool]], bootstrap: int, seed: int) -> dict:
    """Pass rates with intervals, by kind of prompt without."""
    found = {name: np.array(some, dtype=float) for name, some in passed.items()}
    found["difference"] = found["after"] - found["before"]
    counts, ones = metrics.resamples(len(asked), bootstrap, seed), np.ones(len(asked))
    topics = [one.topic for one in asked]
    kinds = {}
    for kind in dict.fromkeys(one.kind for one in asked):
        rows = np.array([one.kind == kind for one in asked])
        kinds[kind] = {name: float(found[name][rows].mean()) for name in ("before", "after")}
    return {
        "passed": {name: metrics.estimate(some, ones, counts) for name, some in found.items()},
        "at_least": paired.gain(found["difference"], clusters=topics).lower,
        "prompts": len(asked), "topics": len(set(topics)), "kinds": kinds,
    }  # fmt: skip


if __name__ == "__main__":
    with errors_told():
        main(int(sys.argv[1]))
