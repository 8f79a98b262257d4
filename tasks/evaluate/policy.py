"""Stage `evaluate_ppo`: the assistant before and after PPO on the same test prompts, and what PPO made it forget.

    proxy        the reward model's score of prompt and response: what PPO was trained to raise
    gold         P(positive) of a classifier that neither the reward model nor PPO ever saw, on the response's text
    difference   after - before, paired: the same prompts, the same noise of the sampling, the same resamples
    kl           KL(after || before) in nats a response (ajuste/learning/rl/divergence.py)
    distinct2    different bigrams of tokens over all of them; ratio = after / before
    length       tokens of a response, its end of turn included; ended: share of responses that end by themselves
    forgetting   F of the control sets since the pretrained base, as stage `forgetting_instruct` says of the SFT model

Proxy up with gold flat or down is reward hacking. Intervals are 95 % percentile bootstrap intervals over prompts, of
shares Wilson's. Training chose its update on validation prompts; nothing is chosen by these numbers.

Reads   artifacts/merged/{instruct, ppo, reward, gold}, artifacts/encoded/preferences, data/control,
        artifacts/base/decoder, artifacts/evaluated/forgetting_base
Writes  artifacts/evaluated/ppo: ppo.json, answers.jsonl (a line a prompt), scores.json and rows.parquet of forgetting
Run it: `dvc repro evaluate_ppo`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute, Config, read_yaml, section, typed
from ajuste.core.stage import start
from ajuste.learning.rl import divergence
from ajuste.learning.rl.rollout import Answers, sample
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder, reward
from ajuste.models.folder import read_card
from tasks.forgetting.scores import ForgettingConfig, forgetting

MODELS = ("sft", "ppo")
POSITIVE = "positive"  # the label of the gold classifier whose probability is the gold score
Phase = Callable[[str], AbstractContextManager]


class PpoConfig(Config):
    """Section `evaluate.ppo`."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of the evaluation, the same for both models.")
    bootstrap: int = Field(ge=100, description="Resamples of the prompts behind each interval.")
    prompts: int | None = Field(ge=1, description="Test prompts, the lowest row ids; null: all.")
    max_new_tokens: int = Field(ge=1, description="Of a response; as in training.")
    temperature: float = Field(gt=0, description="Of the sampling and of both models in the KL; as in training.")
    batch_rows: int = Field(ge=1, description="Prompts answered, and rows scored, at once.")


@dataclass(frozen=True)
class Folders:
    """What the stage reads: model folders before and after, the two judges, and the encoded prompts."""

    sft: Path
    ppo: Path
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


def evaluate_ppo(
    config: PpoConfig, compute: Compute, folders: Folders, ledger: Ledger, out: Path, phase: Phase = nullcontext
) -> dict:
    """Compare the two models and return ppo.json's content, with `F` of the control sets and the tokens generated.

    phase: times a part of the work by name. Raises UsageError for a folder that is no such model or a missing input,
    DataError when no test prompt is left.
    """
    seed_everything(compute.seed, compute.threads)
    prompts = read_prompts(folders.encoded, config.prompts)
    dtype, device = getattr(torch, config.dtype), compute.torch_device()
    try:
        models = {}
        for name in MODELS:
            models[name], tokenizer, _ = decoder.load(getattr(folders, name), dtype=dtype)
            models[name].to(device)
        stop = chat.end_of_turn(tokenizer)
        pad = tokenizer.pad_token_id
        responses = {}
        for name, model in models.items():
            with phase(name):
                responses[name] = respond(model, prompts.ids, config, stop, pad, compute.seed)
        with phase("kl"):
            kl = divergence.distribution_kl(
                models["ppo"], models["sft"], prompts.ids, responses["ppo"], config.temperature, pad, config.batch_rows
            ).numpy()
        models.clear()
        with phase("scores"):
            said = _judge(prompts, responses, tokenizer, stop, folders, config, device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    report = summarise(prompts, said, kl, config, compute.seed)
    report["gold"]["accuracy_on_ratings"] = accuracy_on_ratings(folders.gold)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "ppo.json", report, sort_keys=True)
    _write_answers(out / "answers.jsonl", prompts, said, kl)
    with phase("forgetting"):
        found = forgetting(ledger.config, compute, folders.ppo, ledger.base, ledger.control, out, ledger.before)
    generated = sum(map(len, responses["sft"])) + sum(map(len, responses["ppo"]))
    return {**report, "F": found["F"], "tokens": generated + found["tokens"]}


def read_prompts(encoded: Path, number: int | None) -> Prompts:
    """The test prompts of the lowest row ids. Raises UsageError for a missing file, DataError without any prompt."""
    path = encoded / "prompts_test.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `encode_preferences`")
    table = pq.read_table(path, columns=["row_id", "prompt_ids", "prefill", "prefill_tokens"]).sort_by("row_id")
    rows = table.slice(0, number).to_pylist() if number else table.to_pylist()
    if not rows:
        raise DataError(f"{path} has no prompts: no test row of the preferences is left after filtering")
    columns = ("row_id", "prompt_ids", "prefill_tokens", "prefill")
    return Prompts(*([row[name] for row in rows] for name in columns))


def respond(
    model: nn.Module, prompts: list[list[int]], config: PpoConfig, stop: list[int], pad: int, seed: int
) -> list[list[int]]:
    """A sampled response to each prompt, with the stop token that ended it, if one did.

    The generator starts anew for each model, and a row's numbers do not depend on when other rows end: both models
    meet the same noise, so what differs between their responses is the models' doing.
    """
    generator, policy = torch.Generator().manual_seed(seed), Answers(model)
    responses: list[list[int]] = []
    for first in range(0, len(prompts), config.batch_rows):
        some = prompts[first : first + config.batch_rows]
        found = sample(policy, some, config.max_new_tokens, stop, pad, config.temperature, generator)
        responses += [row[kept].tolist() for row, kept in zip(found.responses, found.mask, strict=True)]
    return responses


# --- the judges -----------------------------------------------------------------------------------------------------


def _judge(
    prompts: Prompts, responses: dict[str, list[list[int]]], tokenizer: PreTrainedTokenizerBase, stop: list[int],
    folders: Folders, config: PpoConfig, device: str,
) -> dict[str, Said]:  # fmt: skip
    """The responses of both models with their scores."""
    texts = {name: texts_of(prompts, rows, tokenizer) for name, rows in responses.items()}
    judge, judge_tokenizer, card = classifier.load(folders.gold)
    if POSITIVE not in card["labels"]:
        raise ValueError(f"{folders.gold} has labels {', '.join(card['labels'])}: a gold score is P({POSITIVE})")
    judge, positive = judge.to(device), card["labels"].index(POSITIVE)
    gold = {
        name: classifier.predict(judge, judge_tokenizer, card, rows, config.batch_rows)[:, positive].double().numpy()
        for name, rows in texts.items()
    }
    proxy = score_proxy(folders.reward, prompts, responses, config, device)
    return {
        name: Said(rows, texts[name], np.array([row[-1] in stop for row in rows]), proxy[name], gold[name])
        for name, rows in responses.items()
    }


def score_proxy(
    folder: Path, prompts: Prompts, responses: dict[str, list[list[int]]], config: PpoConfig, device: str
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


def summarise(prompts: Prompts, said: dict[str, Said], kl: np.ndarray, config: PpoConfig, seed: int) -> dict:
    """ppo.json: every figure of both models and their paired difference, with intervals."""
    rows = len(prompts.ids)
    counts, ones = metrics.resamples(rows, config.bootstrap, seed), np.ones(rows)
    before, after = said["sft"], said["ppo"]

    def paired(of: Callable[[Said], np.ndarray]) -> dict:
        values = {"sft": of(before), "ppo": of(after), "difference": of(after) - of(before)}
        return {name: metrics.estimate(value, ones, counts) for name, value in values.items()}

    distinct = {name: _distinct(s.responses) for name, s in said.items()}
    ratio = distinct["ppo"] / distinct["sft"] if distinct["sft"] and distinct["ppo"] is not None else None
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


def main() -> None:
    with start("evaluate_ppo", PpoConfig) as stage:
        artifacts, merged = Path("artifacts"), Path("artifacts/merged")
        folders = Folders(
            merged / "instruct", merged / "ppo", merged / "reward", merged / "gold", artifacts / "encoded/preferences"
        )
        # the very section of the scores before: those of another one would not compare
        control = typed(ForgettingConfig, section(read_yaml(Path("params.yaml")), "forgetting", ""), "forgetting")
        ledger = Ledger(
            control, artifacts / "base/decoder", Path("data/control"), artifacts / "evaluated/forgetting_base"
        )
        report = evaluate_ppo(stage.config, stage.compute, folders, ledger, artifacts / "evaluated/ppo", stage.phase)
        stage.count(tokens=report["tokens"])
        for name in ("proxy", "gold"):
            gap = report[name]["difference"]
            print(f"{name} {gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}) against SFT")
        print(f"KL {report['kl']['value']:.2f} nats a response, on {report['prompts']} prompts")


if __name__ == "__main__":
    main()
