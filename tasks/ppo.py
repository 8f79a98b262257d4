"""Stage `ppo`: the assistant learns from the reward model (the third step of RLHF), kept near where it was.

    maximise  E[ r(x, y) ] - beta KL(pi || pi_ref)        over prompts x, y drawn from the policy pi, by PPO

One frozen base in memory: artifacts/merged/instruct. The policy is a LoRA adapter on it, the reference the same base
with adapters off, the reward model its own adapter and head, the value function a head on the policy's trunk or on an
adapter of its own (ajuste/models/one_base.py). The loop is tasks/rl/loop.py, and what makes
it PPO tasks/rl/ppo.py.

The policy answers the set's prompts, prefilled with the beginning of a held-out text where the set has one, so that
the reward model reads what it was trained to read. Validation prompts are looked at every `radar_every` updates
(tasks/rl/radar.py), and the weights of the gold score's peak are kept. A peak is chosen for being high, so what it
gained is told by as many other validation prompts: they are the card's `validation`, which ranks versions.

Reads   artifacts/merged/{instruct, gold}, artifacts/adapters/reward, artifacts/encoded/preferences; with `ptx` above
        0 also artifacts/encoded/instructions
Writes  artifacts/adapters/ppo: the policy's adapter (PEFT's layout), tokenizer, ajuste.json (the card),
        value.safetensors (the value function's weights), history.jsonl, radar.json, samples.jsonl, alarms.json, flight/
Run it: `dvc repro ppo`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the papers: LoRA in place of all weights; the value function is a head on the policy's trunk by default.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow.parquet
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor

from ajuste.core import allocator, world
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json, write_lines
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.learning.layers import ragged
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.learning.rl.advantages import Options
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder, methods
from ajuste.models.folder import load_tokenizer, read_card
from ajuste.models.one_base import POLICY, OneBase, Settings
from ajuste.rows.encoded.conversations import read_conversations
from tasks.rl import loop
from tasks.rl.config import SamplesConfig
from tasks.rl.learn import Ptx
from tasks.rl.ppo import Ppo
from tasks.rl.radar import Radar, published


class PpoConfig(SamplesConfig):
    """Section `ppo`: models, rewards, advantages and losses; the loop's own keys stand in tasks/rl/config.py.

    Formulas: ajuste/learning/rl/advantages.py, ajuste/learning/rl/kl.py, ajuste/learning/rl/ppo.py.
    """

    dtype: Literal["float32", "bfloat16"] = Field(description="Of the frozen base and the products.")
    r: int = Field(ge=1, description="Rank of B A, of the policy's adapter and the value's.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    float32_head: bool = Field(description="Logits in float32, of sampler and trainer, above a bfloat16 base.")
    value: Literal["trunk", "adapter"] = Field(description="Where the value head reads: policy or own adapter.")
    value_start: Literal["zero", "reward"] = Field(description="What head and adapter of the value start as.")
    gamma: float = Field(gt=0, le=1, description="Discount of a token.")
    lam: float = Field(ge=0, le=1, description="lambda of GAE.")
    terminal: Literal["at_end", "after_end"] = Field(description="Where the score is paid: learning/rl/advantages.py.")
    missing_end: Literal["none", "subtract", "replace", "bootstrap"] = Field(
        description="What a response without its end is paid: learning/rl/advantages.py."
    )
    missing_end_penalty: float = Field(description="What `subtract` takes off and `replace` pays, negated.")
    whiten_rewards: bool = Field(description="Divide rewards by their standard deviation.")
    whiten_advantages: bool = Field(description="Mean 0 and variance 1 over the batch.")
    unbiased: bool = Field(description="The variance of the whitening: divided by n - 1, or by n.")
    clip: float = Field(gt=0, lt=1, description="The ratio counts within 1 - clip and 1 + clip.")
    dual_clip: float | None = Field(gt=1, description="A token with A < 0 costs at most -d A; null: off.")
    importance_cap: float | None = Field(
        ge=1, description="A token's loss times pi_trainer / pi_sampler, at most this; null: off."
    )
    value_clip: float | None = Field(gt=0, description="How far the value may leave the old one; null: off.")
    vf_coef: float = Field(ge=0, description="Weight of the value loss.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(description="Of the KL that rewards pay.")
    alarm_value_loss: float | None = Field(gt=0, description="A value loss above this is an alarm; null: none.")
    radar_prompts: int = Field(ge=1, description="Validation prompts that choose an update; as many others judge it.")

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        if self.value_start == "reward" and self.value == "trunk":
            raise ValueError("value_start `reward` copies the reward model's adapter: it needs value `adapter`")
        return self

    def settings(self) -> Settings:
        """What ajuste/models/one_base.py needs of this section."""
        targets = tuple(self.targets)
        return Settings(self.r, self.alpha, targets, self.value, self.value_start, self.float32_head)

    def algorithm(self) -> Ppo:
        """PPO as the loop takes it."""
        options = Options(
            self.gamma, self.lam, self.terminal, self.missing_end, self.missing_end_penalty, self.whiten_rewards,
            self.whiten_advantages, self.unbiased,
        )  # fmt: skip
        return Ppo(
            options, self.kl_estimator, self.clip, self.dual_clip, self.value_clip, self.vf_coef, self.importance_cap
        )


def ppo(config: PpoConfig, compute: Compute, artifacts: Path, out: Path, checkpoints: Path) -> dict:
    """Train the policy from the folders below `artifacts` and write `out`.

    checkpoints: an existing folder for the state; a run that finds whole checkpoints there goes on from them.
    Returns the card, with `tokens` (sampled), `seconds` (by phase) and `alarms` added. Raises UsageError, DataError.
    """
    seed_everything(compute.seed, compute.threads)
    base, reward = artifacts / "merged/instruct", artifacts / "adapters/reward"
    encoded = artifacts / "encoded/preferences"
    if decoder.is_adapter(base):
        raise UsageError(
            f"{base} holds an adapter, and PPO needs a whole model: set `instruct.method` to one that can be merged "
            f"({', '.join(sorted(methods.MERGEABLE))}) or to full"
        )
    try:
        identity = decoder.identity_of(base)
        if read_card(reward)["base"]["sha256"] != identity["sha256"]:
            raise ValueError(f"{reward} was trained on another base than {base}: run stage `reward` again")
        one = OneBase.build(base, reward, config.settings(), getattr(torch, config.dtype)).to(compute.torch_device())
        gold = _gold(artifacts / "merged/gold")
    except ValueError as error:
        raise UsageError(f"ppo: {error}") from None
    tokenizer = load_tokenizer(base)
    room = one.model.config.max_position_embeddings - config.max_new_tokens
    prompts = read_prompts(encoded, "train", room)["prompt_ids"]
    looks = [
        Radar(
            one, held_out["row_id"], held_out["prompt_ids"], held_out["prefill"], tokenizer, gold,
            config.max_new_tokens, config.temperature, config.micro_rows, compute.seed,
        )
        for held_out in halves(read_prompts(encoded, "validation", room, 2 * config.radar_prompts))
    ]  # fmt: skip
    radar, judge = looks
    before, _ = judge.look(0, None)
    ptx = _ptx(one, artifacts / "encoded/instructions", compute.seed) if config.ptx else None
    done = loop.train(
        one, config.algorithm(), prompts, one.scores, config, compute.seed, checkpoints, chat.end_of_turn(tokenizer),
        radar.look, ptx,
    )  # fmt: skip
    world.first_goes_on()
    card = {
        "kind": "decoder",
        "method": "ppo",
        "strategy": "ppo",
        "base": identity,
        "parameters": _parameters(one),
        "validation": _validation(judge.look(done.kept, before)[0]),
        "max_tokens": read_card(base)["max_tokens"],
        "dtype": config.dtype,
        "mergeable": True,
        "quantisation": None,
    }
    one.save_policy(tokenizer, out, card)
    _write(done, one, out, checkpoints)
    return {**card, "tokens": done.tokens, "seconds": done.seconds, "alarms": done.alarms, "history": done.history}


def _write(done: loop.Outcome, one: OneBase, out: Path, checkpoints: Path) -> None:
    """What stands beside the policy: the value function's weights, and what the run was like."""
    value = {name: x for name, x in one.trainable_state().items() if not name.startswith(f"{POLICY}.")}
    save_file(value, out / "value.safetensors")
    write_json(out / "radar.json", published(done.radar, done.kept))
    write_json(out / "alarms.json", done.alarms)
    write_lines(out / "samples.jsonl", done.samples)
    write_lines(out / "history.jsonl", done.history)
    if (checkpoints / "flight").is_dir():
        shutil.copytree(checkpoints / "flight", out / "flight", dirs_exist_ok=True)


def read_prompts(encoded: Path, split: str, room: int, number: int | None = None) -> dict[str, list]:
    """{"row_id", "prompt_ids", "prefill"} of a split's prompts of at most `room` tokens, by row id, the first `number`.

    Raises UsageError for a missing file, DataError when no prompt is left.
    """
    path = encoded / f"prompts_{split}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `encode_preferences`")
    table = pyarrow.parquet.read_table(path, columns=["row_id", "prompt_ids", "prefill"]).sort_by("row_id")
    rows = [row for row in table.to_pylist() if 0 < len(row["prompt_ids"]) <= room][:number]
    if not rows:
        raise DataError(
            f"{path}: none of its {table.num_rows} prompts is left, each has to fit {room} tokens beside a response: "
            "add shorter prompts to the set, or make `ppo.max_new_tokens` smaller"
        )
    return {name: [row[name] for row in rows] for name in ("row_id", "prompt_ids", "prefill")}


def halves(prompts: dict[str, list]) -> tuple[dict[str, list], dict[str, list]]:
    """The first half, which chooses an update, and the second, which judges it. A prompt alone does both."""
    middle = (len(prompts["row_id"]) + 1) // 2
    first, second = ({name: rows[part] for name, rows in prompts.items()}
                     for part in (slice(middle), slice(middle, None)))  # fmt: skip
    return first, second if second["row_id"] else first


def _gold(folder: Path) -> Callable[[list[str]], Tensor]:
    """texts -> P(positive) [N] of the gold classifier."""
    model, tokenizer, card = classifier.load(folder)
    column = card["labels"].index("positive") if "positive" in card["labels"] else -1
    return lambda texts: classifier.predict(model, tokenizer, card, texts)[:, column]


def _ptx(one: OneBase, encoded: Path, seed: int) -> Ptx:
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
    for name in ("proxy", "gold"):
        found[name] = row[name]["value"]
        for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            found[f"{name}_gain{suffix}"] = row[f"{name}_gain"][key]
    return found


def main() -> None:
    with start("ppo", PpoConfig, together=True) as stage:
        allocator.keep_memory()
        artifacts = Path("artifacts")
        done = ppo(stage.config, stage.compute, artifacts, artifacts / "adapters/ppo", stage.checkpoints)
        stage.count(tokens=done["tokens"])
        stage.phases.update(done["seconds"])
        print(said(done))


def said(done: dict) -> str:
    """The run in one line."""
    found, updates = done["validation"], len(done["history"])
    proxy, gold = (
        f"{name} {found[f'{name}_gain']:+.3f} [{found[f'{name}_gain_low']:+.3f}, {found[f'{name}_gain_high']:+.3f}]"
        for name in ("proxy", "gold")
    )
    return (
        f"{updates} updates, kept {found['update']}: on validation prompts {proxy}, {gold}, "
        f"KL {found['kl']:.2f} nats a response, {len(done['alarms'])} alarms"
    )


if __name__ == "__main__":
    main()
