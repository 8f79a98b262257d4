"""What stages that learn from samples do around the loop: models, prompts, judges, and the folder that is written.

One frozen base in memory: artifacts/merged/instruct. The policy is a LoRA adapter on it, the reference the same base
with adapters off; reward model and value function are there if score and algorithm need them
(ajuste/models/one_base.py). What responses are paid for: tasks/rl/scores/kinds.py.

The policy answers the set's prompts, prefilled with the beginning of a held-out text where the set has one, so that
a reward model reads what it was trained to read. Validation prompts are looked at every `radar_every` updates
(tasks/rl/radar.py), and the weights of the gold score's peak are kept. A peak is chosen for being high, so what it
gained is told by as many other validation prompts: they are the card's `validation`, which ranks versions. For `rules`
there is no gold score, and the last weights are kept.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ajuste.core import world
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute
from ajuste.learning.layers import ragged
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder, methods
from ajuste.models.folder import load_tokenizer, read_card
from ajuste.models.one_base import POLICY, OneBase, Settings
from ajuste.rows.encoded.conversations import read_conversations
from tasks.rl import loop
from tasks.rl.algorithm import Algorithm
from tasks.rl.config import SamplesConfig
from tasks.rl.learn import Ptx
from tasks.rl.radar import Radar, published
from tasks.rl.score import Score
from tasks.rl.scores import kinds as scores
from tasks.rl.scores import practice
from tasks.rl.scores.given import MODEL, by_model

PRACTICE = Path("sources/rules")
Gold = Callable[[list[str]], Tensor]


class Made(NamedTuple):
    """A training by samples, as its section describes it."""

    config: SamplesConfig
    algorithm: Algorithm
    settings: Settings
    score: str  # tasks/rl/scores/kinds.py
    dtype: str
    radar_prompts: int

    @property
    def method(self) -> str:
        return self.algorithm.name


class _Asked(NamedTuple):
    """What is answered: token ids to train on, those of validation with ids and prefills, the judges of both."""

    prompts: list[list[int]]
    held_out: dict[str, list]
    score: Score
    gold: Gold | None


def train_policy(made: Made, compute: Compute, artifacts: Path, out: Path, checkpoints: Path) -> dict:
    """Train the policy from the folders below `artifacts` and write `out`.

    checkpoints: an existing folder for the state; a run that finds whole checkpoints there goes on from them.
    Returns the card, with `tokens` (sampled), `seconds` (by phase) and `alarms` added. Raises UsageError, DataError.
    """
    seed_everything(compute.seed, compute.threads)
    config, base = made.config, artifacts / "merged/instruct"
    try:
        one, identity = _models(made, base, artifacts / "adapters/reward", compute)
        gold = _gold(artifacts / "merged/gold") if made.score != scores.RULES else None
    except ValueError as error:
        raise UsageError(f"{made.method}: {error}") from None
    tokenizer = load_tokenizer(base)
    asked = _asked(made, one, tokenizer, artifacts / "encoded/preferences", gold)
    looks = [
        Radar(
            one, asked.score, part["row_id"], part["prompt_ids"], part["prefill"], tokenizer, asked.gold,
            config.max_new_tokens, config.temperature, config.micro_rows, compute.seed,
        )
        for part in halves(asked.held_out)
    ]  # fmt: skip
    radar, judge = looks
    before, _ = judge.look(0, None)
    ptx = ptx_loss(one, artifacts / "encoded/instructions", compute.seed) if config.ptx else None
    done = loop.train(
        one, made.algorithm, asked.prompts, asked.score, config, compute.seed, checkpoints,
        chat.end_of_turn(tokenizer), radar.look, ptx,
    )  # fmt: skip
    world.first_goes_on()
    card = {
        "kind": "decoder",
        "method": made.method,
        "strategy": made.method,
        "base": identity,
        "parameters": _parameters(one),
        "validation": _validation(judge.look(done.kept, before)[0]),
        "max_tokens": read_card(base)["max_tokens"],
        "dtype": made.dtype,
        "mergeable": True,
        "quantisation": None,
    }
    one.save_policy(tokenizer, out, card)
    _write(done, one, out, checkpoints)
    return {**card, "tokens": done.tokens, "seconds": done.seconds, "alarms": done.alarms, "history": done.history}


def _models(made: Made, base: Path, reward: Path, compute: Compute) -> tuple[OneBase, dict]:
    """The one base with what score and algorithm need, and whose it is. Raises UsageError, ValueError."""
    if decoder.is_adapter(base):
        raise UsageError(
            f"{base} holds an adapter, and {made.method.upper()} needs a whole model: set `instruct.method` to one "
            f"that can be merged ({', '.join(sorted(methods.MERGEABLE))}) or to full"
        )
    identity = decoder.identity_of(base)
    rewarded = made.score == scores.REWARD or made.settings.value_start == "reward"
    if rewarded and read_card(reward)["base"]["sha256"] != identity["sha256"]:
        raise ValueError(f"{reward} was trained on another base than {base}: run stage `reward` again")
    one = OneBase.build(base, reward if rewarded else None, made.settings, getattr(torch, made.dtype))
    return one.to(compute.torch_device()), identity


def _asked(made: Made, one: OneBase, tokenizer: PreTrainedTokenizerBase, encoded: Path, gold: Gold | None) -> _Asked:
    """Prompts and judges, as the key `score` says."""
    room = one.model.config.max_position_embeddings - made.config.max_new_tokens
    looked = 2 * made.radar_prompts
    if made.score == scores.RULES:
        splits = {split: practice.read(PRACTICE, split) for split in ("train", "validation")}
        ids = {split: [chat.prompt_ids(tokenizer, [{"role": "user", "content": row.prompt}]) for row in some]
               for split, some in splits.items()}  # fmt: skip
        held_out = {"row_id": [row.id for row in splits["validation"]], "prompt_ids": ids["validation"],
                    "prefill": [""] * len(ids["validation"])}  # fmt: skip
        score = scores.by_rules(splits["train"] + splits["validation"], ids["train"] + ids["validation"], tokenizer)
        return _Asked(ids["train"], {name: rows[:looked] for name, rows in held_out.items()}, score, None)
    prompts = read_prompts(encoded, "train", room, method=made.method)["prompt_ids"]
    held_out = read_prompts(encoded, "validation", room, looked, made.method)
    if made.score == scores.REWARD:
        score = one.scores
    elif made.score.startswith(MODEL):
        score = by_model(made.score, tokenizer, getattr(torch, made.dtype), one.model.device)
    else:
        score = scores.own(made.score, tokenizer)
    return _Asked(prompts, held_out, score, gold)


def _write(done: loop.Outcome, one: OneBase, out: Path, checkpoints: Path) -> None:
    """What stands beside the policy: the value function's weights if there is one, and what the run was like."""
    value = {name: x for name, x in one.trainable_state().items() if not name.startswith(f"{POLICY}.")}
    if value:
        save_file(value, out / "value.safetensors")
    write_json(out / "radar.json", published(done.radar, done.kept))
    write_json(out / "alarms.json", done.alarms)
    write_lines(out / "samples.jsonl", done.samples)
    write_lines(out / "history.jsonl", done.history)
    if (checkpoints / "flight").is_dir():
        shutil.copytree(checkpoints / "flight", out / "flight", dirs_exist_ok=True)


def read_prompts(
    encoded: Path, split: str, room: int, number: int | None = None, method: str = "ppo"
) -> dict[str, list]:
    """{"row_id", "prompt_ids", "prefill"} of a split's prompts of at most `room` tokens, by row id, the first `number`.

    method: whose section a message names. Raises UsageError for a missing file, DataError when no prompt is left.
    """
    path = encoded / f"prompts_{split}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `encode_preferences`")
    table = pyarrow.parquet.read_table(path, columns=["row_id", "prompt_ids", "prefill"]).sort_by("row_id")
    rows = [row for row in table.to_pylist() if 0 < len(row["prompt_ids"]) <= room][:number]
    if not rows:
        raise DataError(
            f"{path}: none of its {table.num_rows} prompts is left, each has to fit {room} tokens beside a response: "
            f"add shorter prompts to the set, or make `{method}.max_new_tokens` smaller"
        )
    return {name: [row[name] for row in rows] for name in ("row_id", "prompt_ids", "prefill")}


def halves(prompts: dict[str, list]) -> tuple[dict[str, list], dict[str, list]]:
    """The first half, which chooses an update, and the second, which judges it. A prompt alone does both."""
    middle = (len(prompts["row_id"]) + 1) // 2
    first, second = ({name: rows[part] for name, rows in prompts.items()}
                     for part in (slice(middle), slice(middle, None)))  # fmt: skip
    return first, second if second["row_id"] else first


def _gold(folder: Path) -> Gold:
    """texts -> P(positive) [N] of the gold classifier."""
    model, tokenizer, card = classifier.load(folder)
    column = card["labels"].index("positive") if "positive" in card["labels"] else -1
    return lambda texts: classifier.predict(model, tokenizer, card, texts)[:, column]


def ptx_loss(one: OneBase, encoded: Path, seed: int) -> Ptx:
    """The supervised loss of the policy on instruction rows, at positions of an endless stream."""
    rows = read_conversations(encoded, "train")
    device = next(one.parameters()).device

    def loss(positions: range) -> tuple[Tensor, int]:
        chosen = []
        for position in positions:
            turn, place = divmod(position, len(rows))
            chosen.append(rows[int(np.random.default_rng([seed, turn]).permutation(len(rows))[place])])
        batch = {name: tensor.to(device) for name, tensor in ragged.padded(chosen, pad_id=0).items()}
        with one.using(POLICY):
            return ragged.response_loss(one.model, batch, 1), int((batch["labels"][:, 1:] != IGNORED).sum())

    return loss


def _parameters(one: OneBase) -> dict:
    """Of the policy: base and adapter, without value and reward."""
    trainable = sum(p.numel() for p in one.policy_parameters())
    total = trainable + sum(p.numel() for name, p in one.model.named_parameters() if "lora_" not in name)
    return {"total": total, "trainable": trainable, "share": trainable / total}


def _validation(row: dict) -> dict[str, float]:
    """The kept update on validation prompts that did not choose it, and what it gained over update 0, flat."""
    found = {"update": row["update"], "kl": row["kl"]}
    for name in (judge for judge in ("proxy", "gold") if judge in row):
        found[name] = row[name]["value"]
        for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            found[f"{name}_gain{suffix}"] = row[f"{name}_gain"][key]
    return found


def said(done: dict) -> str:
    """The run in one line."""
    found, updates = done["validation"], len(done["history"])
    gains = ", ".join(
        f"{name} {found[f'{name}_gain']:+.3f} [{found[f'{name}_gain_low']:+.3f}, {found[f'{name}_gain_high']:+.3f}]"
        for name in ("proxy", "gold") if name in found
    )  # fmt: skip
    return (
        f"{updates} updates, kept {found['update']}: on validation prompts {gains}, "
        f"KL {found['kl']:.2f} nats a response, {len(done['alarms'])} alarms"
    )
