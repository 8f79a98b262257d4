"""Stage `dpo`: the assistant learns from comparisons themselves, without a reward model and without sampling.

    L = -log sigma(beta h)        h = log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)          Rafailov et al. (2023)

The best policy of "reward minus beta KL" says by itself what its reward is: r(x, y) = beta log pi(y | x)/pi_ref(y | x),
but for a part that a comparison does not see. So the reward model's loss is put on that difference. `loss` names six
others; all formulas: ajuste/learning/losses/preference.py.

The policy is LoRA on artifacts/merged/instruct, the reference the same model with adapters off, whose log-probabilities
stage `reference` has computed. A ranking of K responses is one element of a batch, the mean over its pairs. What all
rows of a batch begin with goes through the model once (ajuste/models/responses.py).

Displacement: the loss asks for the difference alone, and the preferred response may become less likely too. An
evaluation where it has lost more than `alarm_displacement` nats a token on validation is an alarm (alarms.json).

    curves, a step and an evaluation (eval_*), means over comparisons of the means over their pairs:
    chosen, rejected                  log pi of the two responses, nats a token
    reward_chosen, reward_rejected    r(x, y); margin: their difference; accuracy: share of margins above 0
    displacement                      nats a token that the preferred response has lost

Last, the weights of the evaluation with the lowest validation loss order the test pairs by r (evaluation.json), and
answer validation prompts beside the reference, as PPO's do, which says whether gold (a judge that no training saw) is
better off; tasks/evaluate/policy.py draws and judges.

Reads   artifacts/merged/{instruct, gold}, artifacts/encoded/preferences, artifacts/reference
Writes  artifacts/adapters/dpo: the adapter (PEFT's layout), tokenizer, ajuste.json (the card), history.jsonl,
        alarms.json, evaluation.json, pairs.parquet (each test comparison: was it right?)
Run it: `dvc repro dpo`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the paper: LoRA in place of all weights, and the reference's word is computed once, not each step.
"""

import time
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ajuste.core import allocator, world
from ajuste.core.errors import UsageError
from ajuste.core.figures import rounded, write_json, write_lines
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.judging import pair_accuracy
from ajuste.learning.losses import preference
from ajuste.learning.losses.bradley_terry import pairs
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.learning.losses.preference import Preference, Responses
from ajuste.learning.rl import divergence
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import decoder, methods, responses
from ajuste.models.folder import load_tokenizer
from ajuste.rows.encoded.comparisons import read_comparisons
from ajuste.rows.encoded.labelled import read_encoding
from ajuste.rows.encoded.reference import Known, KnownComparisons, read_card, read_reference
from tasks.evaluate import policy
from tasks.supervised.loop import Figures, LoopConfig, best_step, train


class DpoConfig(LoopConfig):
    """Section `dpo`. Rows are comparisons; a key that the loss does not use may stay."""

    r: int = Field(ge=1, description="Rank of B A.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    lora_dropout: float = Field(ge=0, lt=1, description="Dropout on x before A.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    loss: Literal["sigmoid", "ipo", "cdpo", "robust", "hinge", "orpo", "simpo"] = Field(
        description="Formulas: ajuste/learning/losses/preference.py."
    )
    beta: float = Field(gt=0, description="Reward of a nat; the smaller, the further the policy goes.")
    label_smoothing: float = Field(ge=0, lt=0.5, description="Share of wrong labels that cdpo and robust expect.")
    gamma: float = Field(ge=0, description="Margin that simpo asks of the better response.")
    alarm_displacement: float | None = Field(
        gt=0, description="Nats a token that preferred responses may lose on validation; above it an alarm; null: none."
    )
    samples: int = Field(ge=2, description="Validation prompts that it answers at the end, the lowest row ids.")
    new_tokens: int = Field(ge=1, description="Most tokens of such an answer; as in evaluate.dpo.")
    temperature: float = Field(gt=0, description="Of these answers and of both models in their KL; as in evaluate.dpo.")

    @model_validator(mode="after")
    def _smooth(self) -> Self:
        if self.loss in ("cdpo", "robust") and not self.label_smoothing:
            raise ValueError(f"loss `{self.loss}` with label_smoothing 0 is `sigmoid`: name the share of wrong labels")
        return self

    def settings(self) -> responses.Settings:
        """What ajuste/models/responses.py needs of this section."""
        return responses.Settings(self.r, self.alpha, self.lora_dropout, tuple(self.targets))

    def preference(self) -> Preference:
        """The loss and its constants."""
        return Preference(self.loss, self.beta, self.label_smoothing, self.gamma)


RESAMPLES = 1000  # of the validation prompts, as PPO's radar has


class Folders(NamedTuple):
    """What the stage reads."""

    encoded: Path
    base: Path
    reference: Path
    gold: Path


def dpo(config: DpoConfig, compute: Compute, folders: Folders, out: Path, checkpoints: Path) -> dict:
    """Train on the comparisons, from the whole decoder at `folders.base`, and write the adapter folder `out`.

    checkpoints: an existing folder for history.jsonl and checkpoints; a run that finds whole ones there goes on from
    them. Returns the card, with `test` (evaluation.json's), `alarms`, `tokens` and the seconds of each part added.
    Raises UsageError and DataError.
    """
    seed_everything(compute.seed, compute.threads)
    known = read_card(folders.reference)
    dtype = getattr(torch, known["dtype"])  # the same arithmetic, or policy and reference would not begin as one
    try:
        identity = decoder.identity_of(folders.base)
        if known["base"] != identity:
            raise ValueError(f"{folders.reference} is of another model than {folders.base}: run `reference` again")
        model = responses.build(folders.base, config.settings(), dtype).to(compute.torch_device())
    except ValueError as error:
        raise UsageError(f"dpo: {error}") from None
    splits = {
        split: read_reference(folders.reference, split, read_comparisons(folders.encoded, split, model.config))
        for split in ("train", "validation", "test")
    }
    rows, began = splits["train"], time.monotonic()
    history = train(
        model,
        rows,
        rows.comparisons.tokens(),
        lambda chosen: _collate(model, chosen),
        lambda current, batch, items: _loss(current, batch, items, config.preference()),
        lambda current: _held_out(current, splits["validation"], config.preference()),
        "loss",
        config,
        compute.model_copy(update={"dtype": "float32"}),  # the base's own dtype is that of the products
        checkpoints,
    )
    world.first_goes_on()
    trained = time.monotonic()
    test, rewards = _test(model, splits["test"], config.preference())
    evaluated = time.monotonic()
    best = next(row for row in history if row["step"] == best_step(history, "loss") and "eval_loss" in row)
    validation = {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")}
    validation |= _answered(config, compute, model, folders, dtype)
    card = _card(config, model, identity, validation, known["dtype"], read_encoding(folders.encoded))
    alarms = alarms_of(history, config.alarm_displacement, best["step"])
    decoder.save_adapter(model, load_tokenizer(folders.base), out, card)
    write_lines(out / "history.jsonl", history)
    write_json(out / "alarms.json", alarms)
    write_json(out / "evaluation.json", {"test": test})
    pair_accuracy.write_pairs(out / "pairs.parquet", rewards, splits["test"].comparisons)
    passes = min(history[-1]["step"] * config.batch_rows / len(rows), config.epochs)
    seconds = {"train": trained - began, "test": evaluated - trained, "answers": time.monotonic() - evaluated}
    tokens = round(sum(rows.comparisons.tokens()) * passes)
    return {**card, "test": test, "alarms": alarms, "tokens": tokens, "seconds": seconds}


def _card(config: DpoConfig, model: nn.Module, base: dict, validation: dict, dtype: str, encoding: dict) -> dict:
    """ajuste.json: what every assistant's says, and which loss it was."""
    return {
        "kind": "decoder",
        "method": "dpo",
        "strategy": "dpo",
        "base": base,
        "parameters": methods.count_parameters(model),
        "validation": validation,
        "max_tokens": encoding["max_tokens"],
        "dtype": dtype,
        "mergeable": True,
        "quantisation": None,
        "set": encoding["set"],
        "loss": config.loss,
        "beta": config.beta,
    }


# --- the objective ----------------------------------------------------------------------------------------------------


def _collate(model: nn.Module, chosen: list[Known]) -> dict[str, Tensor]:
    """The batch of ajuste/models/responses.py with the reference's word [M] and the comparisons' sizes [N], and
    `labels`, which Trainer counts the items of a step by: of a causal language model without the first."""
    whole = [row for one in chosen for row in one.comparison.rows]
    lengths = [length for one in chosen for length in one.comparison.lengths]
    return {
        **responses.collate(model, responses.rows(whole, lengths)),
        "reference": torch.tensor([value for one in chosen for value in one.log_probs]),
        "sizes": torch.tensor([len(one.log_probs) for one in chosen]),
        "labels": torch.tensor([IGNORED] + [0] * len(chosen)),
    }


def _loss(
    model: nn.Module, batch: dict[str, Tensor], items: Tensor | int | None, wanted: Preference
) -> tuple[Tensor, Figures]:
    found = Responses(responses.log_probs(model, batch), batch["reference"], batch["tokens"])
    loss = preference.comparison_loss(wanted, found, batch["sizes"], items)
    with torch.no_grad():
        figures = _figures(wanted, found, batch["sizes"], len(batch["sizes"]) if items is None else items)
    return loss, figures


def _figures(wanted: Preference, found: Responses, sizes: Tensor, items: Tensor | int) -> Figures:
    """The curves of the top: sums over the comparisons / items."""
    better, worse, owner = (places.to(found.log_probs.device) for places in pairs(sizes.cpu()))
    rewards, a_token = preference.rewards(wanted, found), found.log_probs / found.tokens
    margin = rewards[better] - rewards[worse]
    values = {
        "chosen": a_token[better],
        "rejected": a_token[worse],
        "reward_chosen": rewards[better],
        "reward_rejected": rewards[worse],
        "margin": margin,
        "accuracy": (margin > 0) + 0.5 * (margin == 0),
        "displacement": preference.displacement(found)[better],
    }
    sizes = sizes.to(owner.device)
    return {name: preference.over_comparisons(value, owner, sizes) / items for name, value in values.items()}


def _scored(model: nn.Module, known: KnownComparisons) -> Responses:
    """What policy and reference say of every response of a split."""
    lengths = [length for one in known.comparisons for length in one.lengths]
    reference = [value for one in known.found for value in one.log_probs]
    scored = responses.score(model, responses.rows(known.comparisons.rows(), lengths))
    return Responses(scored, torch.tensor(reference), torch.tensor(lengths))


def _held_out(model: nn.Module, known: KnownComparisons, wanted: Preference) -> dict[str, float]:
    """Loss and curves on a split."""
    found, sizes = _scored(model, known), known.comparisons.sizes()
    found = Responses(found.log_probs.double(), found.reference.double(), found.tokens)
    values = {"loss": preference.comparison_loss(wanted, found, sizes), **_figures(wanted, found, sizes, len(sizes))}
    return {name: value.item() for name, value in values.items()}


def _test(model: nn.Module, known: KnownComparisons, wanted: Preference) -> tuple[dict, np.ndarray]:
    """How the implicit reward orders pairs that it never saw, and these rewards; a margin of 1 means odds of e."""
    rewards = preference.rewards(wanted, _scored(model, known)).numpy()
    return pair_accuracy.evaluate(rewards, known.comparisons, gain=1.0), rewards


# --- alarms and answers -----------------------------------------------------------------------------------------------


def alarms_of(history: list[dict], limit: float | None, kept: int) -> list[dict]:
    """alarms.json: each evaluation where preferred responses have lost more than `limit`. kept: the step whose weights
    are kept."""
    found = []
    for row in history:
        lost = row.get("eval_displacement", 0.0)
        if limit is not None and lost > limit:
            words = "of the weights that are kept" if row["step"] == kept else "of weights that are not kept"
            said = (
                f"step {row['step']}: preferred responses have lost {lost:.3g} nats a token on validation, {words}; "
                f"the limit `alarm_displacement` is {limit:g}"
            )
            found.append({"step": row["step"], "alarm": "alarm_displacement", "figure": "displacement", "value": lost,
                          "limit": limit, "kept": row["step"] == kept, "said": said})  # fmt: skip
    return found


def _answered(config: DpoConfig, compute: Compute, model: nn.Module, folders: Folders, dtype: torch.dtype) -> dict:
    """The policy beside its reference on the same validation prompts and noise: gold, its gain, and KL."""
    tokenizer, device = load_tokenizer(folders.base), compute.torch_device()
    stop, pad = chat.end_of_turn(tokenizer), tokenizer.pad_token_id
    prompts = policy.read_prompts(folders.encoded, "validation", config.samples)
    reference = decoder.load_base(folders.base, dtype)[0].to(device)
    asked = policy.Sampling(config.new_tokens, config.temperature)
    model.eval()
    said = {
        "before": policy.respond(reference, prompts.ids, asked, stop, pad, compute.seed),
        "after": policy.respond(model, prompts.ids, asked, stop, pad, compute.seed, "default"),
    }
    kl = divergence.distribution_kl(model, reference, prompts.ids, said["after"], config.temperature, pad)
    texts = {name: policy.texts_of(prompts, rows, tokenizer) for name, rows in said.items()}
    try:
        gold = policy.score_gold(folders.gold, texts, asked.batch_rows, device)
    except ValueError as error:
        raise UsageError(f"dpo: {error}") from None
    counts, ones = metrics.resamples(len(prompts.ids), RESAMPLES, compute.seed), np.ones(len(prompts.ids))
    gain = metrics.estimate(gold["after"] - gold["before"], ones, counts)
    found = {f"gold_gain{suffix}": gain[key] for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))}
    return rounded({"gold": float(gold["after"].mean()), **found, "kl": kl.mean().item()})


def said(done: dict) -> list[str]:
    """The run in two lines."""
    test, found = done["test"], done["validation"]
    shares = [("all", test)] + [(f"margin >= {row['margin']}", row) for row in test["by_margin"]]
    parts = [f"{name} {row['accuracy']['value']:.1%} of {row['pairs']}" for name, row in shares if row["accuracy"]]
    return [
        f"implicit rewards put test pairs in the right order: {', '.join(parts)}",
        f"validation: loss {found['loss']:.4f}, margin {found['margin']:.3f}, preferred responses lost "
        f"{found['displacement']:+.3f} nats a token, gold {found['gold_gain']:+.3f} [{found['gold_gain_low']:+.3f}, "
        f"{found['gold_gain_high']:+.3f}], KL {found['kl']:.2f} nats a response, {len(done['alarms'])} alarms",
    ]


def main() -> None:
    with start("dpo", DpoConfig, together=True) as stage:
        allocator.keep_memory()
        artifacts = Path("artifacts")
        folders = Folders(
            artifacts / "encoded/preferences", artifacts / "merged/instruct", artifacts / "reference",
            artifacts / "merged/gold",
        )  # fmt: skip
        done = dpo(stage.config, stage.compute, folders, artifacts / "adapters/dpo", stage.checkpoints)
        stage.count(tokens=done["tokens"])
        stage.phases.update(done["seconds"])
        print(*said(done), sep="\n")


if __name__ == "__main__":
    main()
