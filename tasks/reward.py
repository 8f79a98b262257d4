"""Stage `reward`: a decoder learns from human comparisons which of two responses is the better one.

    L = -log sigmoid(r(x, y_w) - r(x, y_l) - m)          Bradley-Terry, ajuste/learning/losses/bradley_terry.py
    r(x, y) = w . h + b                                  at the last real token of prompt + response,
                                                         ajuste/models/reward.py

The base is the merged SFT model, so the reward model reads prompt and response in the form that the policy writes; LoRA
and the head w learn. A ranking of K responses is one element of a batch. `margin` asks the better response to win by
that many times the difference of the human ratings; `soft_labels` takes the share of people who agree for certainty.

Then r is centred and scaled: mean 0 and deviation 1 on `samples` responses that the base itself, the reference policy
of PPO, gives to training prompts that no comparison uses. No pair changes its winner. Last, the test split:
evaluation.json (ajuste/judging/pair_accuracy.py).

Reads   artifacts/merged/instruct, artifacts/encoded/preferences
Writes  artifacts/adapters/reward: PEFT's layout with the head, tokenizer, ajuste.json (the card), history.jsonl,
        evaluation.json, pairs.parquet (each test comparison: was it right?). The weights are those of the evaluation
        with the lowest validation loss.
Run it: `dvc repro reward`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the papers: LoRA instead of all weights; one epoch as in Stiennon et al. (2020), more overfits.
"""

import time
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ajuste.core import allocator, world
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded, write_json, write_lines
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.judging import pair_accuracy
from ajuste.learning.layers import fused
from ajuste.learning.losses.bradley_terry import comparison_loss
from ajuste.learning.rl import rollout
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.models import decoder, experts, layers, reward
from ajuste.models.folder import load_tokenizer
from ajuste.models.probe import samples
from ajuste.rows.encoded.comparisons import Comparison, Comparisons, read_comparisons, read_prompts
from ajuste.rows.encoded.labelled import read_encoding
from tasks.supervised.loop import LoopConfig, best_step, train


class RewardConfig(LoopConfig):
    """Section `reward`. Rows are comparisons."""

    r: int = Field(ge=1, description="Rank of B A.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    lora_dropout: float = Field(ge=0, lt=1, description="Dropout on x before A.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    dtype: Literal["float32", "bfloat16"] = Field(description="Of the frozen weights and the products.")
    margin: float = Field(ge=0, description="Times the difference of the human ratings that a pair is won by; 0: none.")
    soft_labels: bool = Field(description="The share of people who agree is the label, where it is known; else 1.")
    samples: int = Field(ge=2, description="Responses of the reference policy that give mean 0 and deviation 1.")
    new_tokens: int = Field(ge=1, description="Most tokens of such a response.")
    temperature: float = Field(gt=0, description="That it is sampled at.")

    def settings(self) -> reward.Settings:
        """What ajuste/models/reward.py needs of this section."""
        return reward.Settings(self.r, self.alpha, self.lora_dropout, tuple(self.targets))


SAMPLED_ROWS = 64  # prompts that are answered at once


def train_reward_model(
    config: RewardConfig, compute: Compute, encoded: Path, base: Path, out: Path, checkpoints: Path
) -> dict:
    """Train on the comparisons at `encoded`, from the whole decoder at `base`, and write the adapter folder `out`.

    checkpoints: an existing folder for history.jsonl and checkpoints; a run that finds whole ones there goes on from
    them. Returns the card, with `test` (evaluation.json's), `tokens` and the seconds of each part added.
    Raises UsageError and DataError.
    """
    seed_everything(compute.seed, compute.threads)
    try:
        identity = decoder.identity_of(base)
        model = reward.build(base, config.settings(), getattr(torch, config.dtype))
        fused.fuse(model)
    except ValueError as error:
        raise UsageError(f"reward: {error}") from None
    splits = {split: read_comparisons(encoded, split, model.config) for split in ("train", "validation", "test")}
    rows, began = splits["train"], time.monotonic()
    history = train(
        model.to(compute.torch_device()),
        rows,
        rows.tokens(),
        lambda chosen: _collate(model, chosen, config),
        _loss,
        lambda current: _held_out(current, splits["validation"], config),
        "loss",
        config,
        compute.model_copy(update={"dtype": "float32"}),  # the base's own dtype is that of the products
        checkpoints,
    )
    trained = time.monotonic()
    world.first_goes_on()
    tokenizer = load_tokenizer(base)
    normalisation = _normalise(config, compute, model, tokenizer, encoded, base)
    normalised = time.monotonic()
    scores = reward.score(model, splits["test"].rows()).numpy()
    test = pair_accuracy.evaluate(scores, splits["test"], normalisation["gain"])
    best = next(row for row in history if row["step"] == best_step(history, "loss") and "eval_loss" in row)
    encoding = read_encoding(encoded)
    card = {
        **{"kind": "reward", "method": "lora", "base": identity},
        "normalisation": normalisation,
        "validation": {name: best[f"eval_{name}"] for name in ("accuracy", "loss")},
        "max_tokens": encoding["max_tokens"],
        "dtype": config.dtype,
        "parameters": layers.count_parameters(model),
        "set": encoding["set"],
        "pad_id": model.config.pad_token_id,
        **experts.told(model),
    }
    reward.save(model, tokenizer, out, card)
    write_lines(out / "history.jsonl", history)
    pair_accuracy.write_pairs(out / "pairs.parquet", scores, splits["test"])
    write_json(out / "evaluation.json", {"test": test})
    passes = min(history[-1]["step"] * config.batch_rows / len(rows), config.epochs)
    seconds = {"train": trained - began, "normalise": normalised - trained, "evaluate": time.monotonic() - normalised}
    return {**card, "test": test, "tokens": round(sum(rows.tokens()) * passes), "seconds": seconds}


def _collate(model: nn.Module, chosen: list[Comparison], config: RewardConfig) -> dict[str, Tensor]:
    """The batch of ajuste/models/reward.py with the targets, and `labels`, which Trainer counts the items of a step
    by."""
    batch = reward.collate(model, [row for one in chosen for row in one.rows])
    return {**batch, **_targets(chosen, config), "labels": torch.zeros(len(chosen), dtype=torch.int64)}


def _targets(chosen: list[Comparison], config: RewardConfig) -> dict[str, Tensor]:
    """Per comparison, [N] each: sizes (its responses), margin and agreement, as the loss takes them."""
    soft = [one.agreement if config.soft_labels and one.agreement is not None else 1.0 for one in chosen]
    return {
        "sizes": torch.tensor([len(one.rows) for one in chosen]),
        "margin": torch.tensor([config.margin * (one.margin or 0.0) for one in chosen], dtype=torch.float32),
        "agreement": torch.tensor(soft, dtype=torch.float32),
    }


def _loss(model: nn.Module, batch: dict[str, Tensor], items: Tensor | int | None) -> Tensor:
    rewards = reward.rewards(model, batch)
    return comparison_loss(rewards, batch["sizes"].cpu(), batch["margin"], batch["agreement"], items)


def _held_out(model: nn.Module, comparisons: Comparisons, config: RewardConfig) -> dict[str, float]:
    """Mean loss of a comparison, as it is trained, and the share of pairs in the right order."""
    rewards = reward.score(model, comparisons.rows())
    loss = comparison_loss(rewards.double(), **_targets(list(comparisons), config))
    report = pair_accuracy.evaluate(rewards.numpy(), comparisons, gain=1.0)
    return {"loss": loss.item(), "accuracy": report["accuracy"]["value"]}


def _normalise(
    config: RewardConfig, compute: Compute, model: nn.Module, tokenizer: object, encoded: Path, base: Path
) -> dict:
    """Give `model` mean 0 and deviation 1 on responses of the reference policy, and say what that did.

    Prompts of the training split decide; as many of the validation split show how well it holds for others.
    """
    policy, _ = decoder.load_base(base, getattr(torch, config.dtype))
    try:
        answers = samples.answers(policy.to(compute.torch_device()))
    except ValueError as error:
        raise UsageError(f"reward: {error}") from None
    generator = torch.Generator().manual_seed(compute.seed)
    before = []
    for split in ("train", "validation"):
        prompts = read_prompts(encoded, split, config.samples, model.config)
        rows = _sampled(config, answers, tokenizer, prompts, generator)
        before.append(reward.score(model, rows).double())
    own, others = before
    mean, deviation = own.mean().item(), own.std(unbiased=False).item()
    if not deviation > 0:
        raise DataError(
            f"all {config.samples} sampled responses got the reward {mean:.3g}: it cannot be scaled; train longer, or "
            "raise `temperature` or `new_tokens`"
        )
    gain, shift = 1 / deviation, -mean / deviation
    reward.rescale(model, gain, shift)
    return {
        "gain": gain,
        "shift": shift,
        "samples": config.samples,
        "temperature": config.temperature,
        "new_tokens": config.new_tokens,
        "raw_mean": mean,
        "raw_std": deviation,
        "held_out_mean": rounded(gain * others.mean().item() + shift),
        "held_out_std": rounded(gain * others.std(unbiased=False).item()),
    }


def _sampled(
    config: RewardConfig, policy: rollout.Policy, tokenizer: object, prompts: list[list[int]],
    generator: torch.Generator,
) -> list[list[int]]:  # fmt: skip
    """Each prompt with the policy's response, up to its end."""
    stop, pad_id = chat.end_of_turn(tokenizer), reward.padding_id(tokenizer)
    rows = []
    for begin in range(0, len(prompts), SAMPLED_ROWS):
        asked = prompts[begin : begin + SAMPLED_ROWS]
        answer = rollout.sample(policy, asked, config.new_tokens, stop, pad_id, config.temperature, generator)
        for prompt, response, mask in zip(asked, answer.responses, answer.mask, strict=True):
            rows.append(prompt + response[mask].tolist())
    return rows


def main() -> None:
    with start("reward", RewardConfig, together=True) as stage:
        allocator.keep_memory()
        done = train_reward_model(
            stage.config,
            stage.compute,
            Path("artifacts/encoded/preferences"),
            Path("artifacts/merged/instruct"),
            Path("artifacts/adapters/reward"),
            stage.checkpoints,
        )
        stage.count(tokens=done["tokens"])
        stage.phases.update(done["seconds"])
        print(said(done["test"]))
        if stage.config.epochs > 1:
            print(f"reward: {stage.config.epochs} epochs: compare with one, a reward model overfits after it")


def said(test: dict) -> str:
    """The evaluation in one line."""
    shares = [("all", test)] + [(f"margin >= {row['margin']}", row) for row in test["by_margin"]]
    parts = [f"{name} {row['accuracy']['value']:.1%} of {row['pairs']}" for name, row in shares if row["accuracy"]]
    error = test["calibration"]["error"]
    return f"pairs of the test split in the right order: {', '.join(parts)}; calibration error {error['value']:.3f}"


if __name__ == "__main__":
    main()
