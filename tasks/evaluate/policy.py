"""A policy beside the SFT model that it was made from: both answer the same test prompts. And what it has forgotten.

    proxy        the reward model's score of prompt and response: what a training against it raises
    gold         P(positive) of a classifier that no training ever saw, on the response's text
    difference   after - before, paired: the same prompts, the same noise of the sampling, the same resamples
    kl           KL(after || before) in nats a response (ajuste/learning/rl/divergence.py)
    distinct2    different bigrams of tokens over all of them; ratio = after / before
    length       tokens of a response, its end of turn included; ended: share of responses that end by themselves
    forgetting   F of the control sets since the pretrained base, as stage `forgetting_instruct` says of the SFT model

Proxy up with gold flat or down is reward hacking. Intervals are 95 % percentile bootstrap intervals over prompts, of
shares Wilson's. Training chose its weights on validation prompts; nothing is chosen by these numbers.

Stages `evaluate_ppo` and `evaluate_dpo` bring their section and their folders. The policy's figures stand under its
method's name, those of the model before under `sft`: <method>.json, answers.jsonl (a line a prompt), scores.json and
rows.parquet of forgetting.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute, Config, read_yaml, section, typed
from ajuste.core.stage import Stage
from ajuste.learning.rl import divergence
from ajuste.learning.rl.rollout import sample
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder, reward
from ajuste.models.folder import read_card
from ajuste.models.probe.samples import answers
from tasks.forgetting.scores import ForgettingConfig, forgetting

BEFORE = "sft"
POSITIVE = "positive"  # the label of the gold classifier whose probability is the gold score
Phase = Callable[[str], AbstractContextManager]


class PolicyConfig(Config):
    """How a policy is judged: the same for every method, or their figures do not compare."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the evaluation, the same for both models.")
    bootstrap: int = Field(ge=100, description="Resamples of the prompts behind each interval.")
    prompts: int | None = Field(ge=1, description="Test prompts, the lowest row ids; null: all.")
    max_new_tokens: int = Field(ge=1, description="Of a response; as in training.")
    temperature: float = Field(gt=0, description="Of the sampling and of both models in the KL; as in training.")
    batch_rows: int = Field(ge=1, description="Prompts answered, and rows scored, at once.")

    def sampling(self) -> "Sampling":
        """How responses are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.batch_rows)


class Sampling(NamedTuple):
    """How responses are drawn; batch_rows prompts at once."""

    max_new_tokens: int
    temperature: float
    batch_rows: int = 32


@dataclass(frozen=True)
class Folders:
    """What is read: model folders before and after, the two judges, and the encoded prompts."""

    before: Path
    after: Path
    reward: Path
    gold: Path
    encoded: Path


@dataclass(frozen=True)
class Ledger:
    """What forgetting is measured with: its section, the base, the control sets, and the base's own scores."""

    config: ForgettingConfig
    base: Path
    control: Path
    before: Path


@dataclass
class Prompts:
    """Test prompts in the order of their ids. ids: token ids that a model continues, the last `prefilled` of them x's
    own first words, which belong to the text that is judged."""

    row_ids: list[str]
    ids: list[list[int]]
    prefilled: list[int]
    prefills: list[str]


@dataclass
class Said:
    """One model's responses: token ids, texts (prefill and continuation), whether each ended, and the scores."""

    responses: list[list[int]]
    texts: list[str]
    ended: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray


def evaluate_policy(
    config: PolicyConfig, compute: Compute, folders: Folders, ledger: Ledger, out: Path, method: str,
    phase: Phase = nullcontext,
) -> dict:  # fmt: skip
    """Compare the two models and return <method>.json's content, with `F` of the control sets and the tokens generated.

    phase: times a part of the work by name. Raises UsageError for a folder that is no such model or a missing input,
    DataError when no test prompt is left.
    """
    seed_everything(compute.seed, compute.threads)
    prompts = read_prompts(folders.encoded, "test", config.prompts)
    dtype, device = getattr(torch, config.dtype), compute.torch_device()
    try:
        models = {}
        for name, folder in ((BEFORE, folders.before), (method, folders.after)):
            models[name], tokenizer, _ = decoder.load(folder, dtype=dtype)
            models[name].to(device)
        stop = chat.end_of_turn(tokenizer)
        pad = tokenizer.pad_token_id
        responses = {}
        for name, model in models.items():
            with phase(name):
                responses[name] = respond(model, prompts.ids, config.sampling(), stop, pad, compute.seed)
        with phase("kl"):
            kl = divergence.distribution_kl(
                models[method], models[BEFORE], prompts.ids, responses[method], config.temperature, pad,
                config.batch_rows,
            ).numpy()  # fmt: skip
        models.clear()
        with phase("scores"):
            said = _judge(prompts, responses, tokenizer, stop, folders, config, device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    report = summarise(prompts, said, kl, config, compute.seed, method)
    report["gold"]["accuracy_on_ratings"] = accuracy_on_ratings(folders.gold)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{method}.json", report, sort_keys=True)
    _write_answers(out / "answers.jsonl", prompts, said, kl)
    with phase("forgetting"):
        found = forgetting(ledger.config, compute, folders.after, ledger.base, ledger.control, out, ledger.before)
    generated = sum(len(row) for rows in responses.values() for row in rows)
    return {**report, "F": found["F"], "tokens": generated + found["tokens"]}


def read_prompts(encoded: Path, split: str, number: int | None) -> Prompts:
    """A split's prompts of the lowest row ids. Raises UsageError for a missing file, DataError without any prompt."""
    path = encoded / f"prompts_{split}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `encode_preferences`")
    table = pq.read_table(path, columns=["row_id", "prompt_ids", "prefill", "prefill_tokens"]).sort_by("row_id")
    rows = table.slice(0, number).to_pylist() if number else table.to_pylist()
    if not rows:
        raise DataError(f"{path} has no prompts: no {split} row of the preferences is left after filtering")
    columns = ("row_id", "prompt_ids", "prefill_tokens", "prefill")
    return Prompts(*([row[name] for row in rows] for name in columns))


def respond(
    model: nn.Module, prompts: list[list[int]], how: Sampling, stop: list[int], pad: int, seed: int,
    adapter: str | None = None,
) -> list[list[int]]:  # fmt: skip
    """A sampled response to each prompt, with the stop token that ended it, if one did. adapter: PEFT's name of it.

    The generator starts anew for each model, and a row's numbers do not depend on when other rows end: both models
    meet the same noise, so what differs between their responses is the models' doing.
    """
    generator, policy = torch.Generator().manual_seed(seed), answers(model, adapter)
    responses: list[list[int]] = []
    for first in range(0, len(prompts), how.batch_rows):
        some = prompts[first : first + how.batch_rows]
        found = sample(policy, some, how.max_new_tokens, stop, pad, how.temperature, generator)
        responses += [row[kept].tolist() for row, kept in zip(found.responses, found.mask, strict=True)]
    return responses


# --- the judges -----------------------------------------------------------------------------------------------------


def _judge(
    prompts: Prompts, responses: dict[str, list[list[int]]], tokenizer: PreTrainedTokenizerBase, stop: list[int],
    folders: Folders, config: PolicyConfig, device: str,
) -> dict[str, Said]:  # fmt: skip
    """The responses of both models with their scores."""
    texts = {name: texts_of(prompts, rows, tokenizer) for name, rows in responses.items()}
    gold = score_gold(folders.gold, texts, config.batch_rows, device)
    proxy = score_proxy(folders.reward, prompts, responses, config, device)
    return {
        name: Said(rows, texts[name], np.array([row[-1] in stop for row in rows]), proxy[name], gold[name])
        for name, rows in responses.items()
    }


def score_gold(folder: Path, texts: dict[str, list[str]], batch_rows: int, device: str) -> dict[str, np.ndarray]:
    """The gold classifier's P(positive) of each model's texts. Raises ValueError for one that knows no such label."""
    judge, tokenizer, card = classifier.load(folder)
    if POSITIVE not in card["labels"]:
        raise ValueError(f"{folder} has labels {', '.join(card['labels'])}: a gold score is P({POSITIVE})")
    judge, positive = judge.to(device), card["labels"].index(POSITIVE)
    return {
        name: classifier.predict(judge, tokenizer, card, rows, batch_rows)[:, positive].double().numpy()
        for name, rows in texts.items()
    }


def score_proxy(
    folder: Path, prompts: Prompts, responses: dict[str, list[list[int]]], config: PolicyConfig, device: str
) -> dict[str, np.ndarray]:
    """The reward model's score of prompt and response, for each model."""
    model = reward.load(folder, dtype=getattr(torch, config.dtype))[0].to(device)
    return {
        name: _scores(model, [[*x, *y] for x, y in zip(prompts.ids, rows, strict=True)])
        for name, rows in responses.items()
    }


def _scores(model: nn.Module, rows: list[list[int]]) -> np.ndarray:
    return reward.score(model, rows).double().cpu().numpy()


def texts_of(prompts: Prompts, responses: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a reader sees of each response: its prefill and its continuation, without the end of turn."""
    return [
        chat.response_text(tokenizer, [*ids[len(ids) - prefilled :], *response])
        for ids, prefilled, response in zip(prompts.ids, prompts.prefilled, responses, strict=True)
    ]


def accuracy_on_ratings(gold: Path) -> dict | None:
    """How often the gold scorer agrees with people's ratings, as its own stage measured it; None for other sets."""
    found = read_card(gold).get("accuracy_on_ratings")
    return found if found and found["value"] is not None else None


# --- the report -----------------------------------------------------------------------------------------------------


def summarise(
    prompts: Prompts, said: dict[str, Said], kl: np.ndarray, config: PolicyConfig, seed: int, method: str
) -> dict:
    """<method>.json: every figure of both models and their paired difference, with intervals."""
    rows = len(prompts.ids)
    counts, ones = metrics.resamples(rows, config.bootstrap, seed), np.ones(rows)
    before, after = said[BEFORE], said[method]

    def paired(of: Callable[[Said], np.ndarray]) -> dict:
        values = {BEFORE: of(before), method: of(after), "difference": of(after) - of(before)}
        return {name: metrics.estimate(value, ones, counts) for name, value in values.items()}

    distinct = {name: _distinct(s.responses) for name, s in said.items()}
    known = distinct[BEFORE] and distinct[method] is not None
    ratio = distinct[method] / distinct[BEFORE] if known else None
    return {
        "proxy": paired(lambda s: s.proxy),
        "gold": paired(lambda s: s.gold),
        "kl": metrics.estimate(kl, ones, counts),
        "length": paired(lambda s: np.array([len(row) for row in s.responses], dtype=float)),
        "ended": {name: _share(s.ended) for name, s in said.items()},
        "distinct2": {**distinct, "ratio": ratio},
        "equal": sum(a == b for a, b in zip(before.texts, after.texts, strict=True)) / rows,
        "prompts": rows,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
    }


def _distinct(responses: list[list[int]]) -> float | None:
    """None where no response has two tokens: nan is no JSON."""
    found = metrics.distinct(responses, 2)
    return None if math.isnan(found) else found


def _share(ended: np.ndarray) -> dict:
    low, high = metrics.wilson_interval(int(ended.sum()), len(ended))
    return {"value": float(ended.mean()), "low": low, "high": high}


def _write_answers(path: Path, prompts: Prompts, said: dict[str, Said], kl: np.ndarray) -> None:
    """One line a prompt: id, prefill, and of both models text, proxy, gold and tokens."""
    lines = []
    for i, row_id in enumerate(prompts.row_ids):
        line: dict = {"id": row_id, "prefill": prompts.prefills[i], "kl": float(kl[i])}
        for name, s in said.items():
            line |= {name: s.texts[i], f"proxy_{name}": float(s.proxy[i]), f"gold_{name}": float(s.gold[i]),
                     f"tokens_{name}": len(s.responses[i])}  # fmt: skip
        lines.append(line)
    write_lines(path, lines)


# --- the stages -----------------------------------------------------------------------------------------------------


def run(stage: Stage, method: str) -> None:
    """What stage `evaluate_<method>` does in the folders of artifacts/, and its words."""
    artifacts, merged = Path("artifacts"), Path("artifacts/merged")
    folders = Folders(
        merged / "instruct", merged / method, merged / "reward", merged / "gold", artifacts / "encoded/preferences"
    )
    # the very section of the scores before: those of another one would not compare
    control = typed(ForgettingConfig, section(read_yaml(Path("params.yaml")), "forgetting", ""), "forgetting")
    ledger = Ledger(control, artifacts / "base/decoder", Path("data/control"), artifacts / "evaluated/forgetting_base")
    out = artifacts / "evaluated" / method
    report = evaluate_policy(stage.config, stage.compute, folders, ledger, out, method, stage.phase)
    stage.count(tokens=report["tokens"])
    for name in ("proxy", "gold"):
        gap = report[name]["difference"]
        print(f"{name} {gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}) against SFT")
    print(f"KL {report['kl']['value']:.2f} nats a response, on {report['prompts']} prompts")
