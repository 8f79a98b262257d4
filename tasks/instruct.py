"""Stage `instruct`: a pretrained decoder learns to follow instructions, by one of nine methods; or came knowing it.

    L(theta) = -sum_t log p(y_t | y_<t, x; theta) / N      over the N response tokens of a whole optimiser step

Only the responses' tokens count, each with its end of turn; prompts are read and not learnt. `method` says which
weights learn: ajuste/models/methods.py. Batches hold rows of similar length, laid end to end without padding
(ajuste/learning/layers/ragged.py), where that is exact for the architecture (ajuste/models/probe/); prefix and prompt
tuning put tokens of their own before each row and take padded ones. Method `none` is for a base that follows
instructions already: no weight is trained, the loss is measured, and the model goes on as it came.

`l2_to_w0` adds (l2/2) |W - W0|^2 to the loss of full fine-tuning: the weights are drawn back to where they started, so
that less is forgotten (Li et al., 2018). The logged loss holds the penalty, the held-out loss does not.

Reads   artifacts/base/decoder, artifacts/encoded/instructions
Writes  artifacts/adapters/instruct: an adapter (PEFT's layout, or ajuste/learning/layers/bottleneck.py's) or, for
        `full`, the whole model in float32; with the tokenizer, ajuste.json (the card) and history.jsonl. The weights
        are those of the evaluation with the lowest held-out loss on the validation split.
Run it: `dvc repro instruct`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the paper (Dettmers et al., 2023): adapters train in float32 beside a bfloat16 or 4-bit base.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ajuste.core import allocator, world
from ajuste.core.errors import UsageError
from ajuste.core.figures import write_lines
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.learning.layers import ragged
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.learning.seeds import seed_everything
from ajuste.models import decoder, experts, methods
from ajuste.models.folder import load_tokenizer
from ajuste.models.probe.texts import supervised
from ajuste.rows.encoded.conversations import check_fits, read_conversations
from ajuste.rows.encoded.labelled import autocast, read_encoding
from tasks.supervised.loop import LoopConfig, Loss, best_step, train


class InstructConfig(LoopConfig):
    """Section `instruct`. A key that the method does not use may stay."""

    method: Literal[
        "full", "lora", "rslora", "dora", "qlora", "qlora8", "prefix", "prompt", "bottleneck", "none"
    ] = Field(description="Which weights learn; none: the base follows instructions already.")
    r: int = Field(ge=1, description="Rank of B A (the lora kinds).")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r, for rslora by alpha/sqrt(r).")
    lora_dropout: float = Field(ge=0, lt=1, description="Dropout on x before A (the lora kinds).")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    virtual_tokens: int = Field(ge=1, description="Of prefix and prompt.")
    bottleneck_width: int = Field(ge=1, description="Of bottleneck: rows of W_down.")
    dtype: Literal["float32", "bfloat16"] = Field(description="Of the frozen weights and the products.")
    l2_to_w0: float = Field(ge=0, description="Penalty (l2/2) |W - W0|^2 of full fine-tuning; 0: none.")

    @model_validator(mode="after")
    def _fits(self) -> "InstructConfig":
        if self.l2_to_w0 and self.method != "full":
            raise ValueError(
                f"l2_to_w0 draws all weights to W0, but method `{self.method}` leaves them there: set it to 0"
            )
        return self

    def settings(self) -> methods.Settings:
        """What ajuste/models/methods.py needs of this section."""
        names = methods.Settings._fields
        return methods.Settings(**{name: getattr(self, name) for name in names})._replace(targets=tuple(self.targets))


EVALUATION_TOKENS = 4096  # tokens of one batch on validation


def instruct(config: InstructConfig, compute: Compute, encoded: Path, base: Path, out: Path, checkpoints: Path) -> dict:
    """Fine-tune the decoder at `base` on the encoded conversations and write the adapter or model folder `out`.

    checkpoints: an existing folder for history.jsonl and checkpoints; a run that finds whole ones there goes on from
    them. Returns the card, with `tokens` (trained) and `train_seconds` added. Raises UsageError and DataError.
    """
    if config.method == "none":
        return _as_it_came(config, compute, encoded, base, out)
    seed_everything(compute.seed, compute.threads)
    rows, validation = (read_conversations(encoded, split) for split in ("train", "validation"))
    dtype = getattr(torch, config.dtype)
    try:
        identity = decoder.identity_of(base)
        model = methods.load_base(base, config.method, dtype)
        check_fits({"train": rows, "validation": validation}, encoded, model.config, _virtual_tokens(config))
        model = methods.attach(model, config.settings())
        about_experts = experts.told(model)
        supervised(model, training=True)
    except ValueError as error:
        raise UsageError(f"instruct: {error}") from None
    tokenizer = load_tokenizer(base)
    collate = ragged.collate if ragged.takes_ragged(model) else partial(ragged.padded, pad_id=tokenizer.pad_token_id)
    precision = compute.model_copy(update={"dtype": config.dtype if config.method == "full" else "float32"})
    began = time.monotonic()
    history = train(
        model.to(compute.torch_device()),
        rows,
        rows.lengths(),
        collate,
        _loss(model, config, precision),
        lambda current: _held_out(current, list(validation), precision),
        "loss",
        config,
        compute.model_copy(update={"dtype": "float32"}),  # Trainer's own autocast would turn all logits to float32
        checkpoints,
    )
    seconds = time.monotonic() - began
    world.first_goes_on()
    best = next(row for row in history if row["step"] == best_step(history, "loss") and "eval_loss" in row)
    found = {name: best[f"eval_{name}"] for name in ("loss", "perplexity")}
    card = {**_card(config, identity, model, found, encoded), **about_experts}
    save = decoder.save_whole if config.method == "full" else decoder.save_adapter
    save(model, tokenizer, out, card)
    write_lines(out / "history.jsonl", history)
    trained = sum(int((labels[1:] != IGNORED).sum()) for labels in rows.labels)
    passes = min(history[-1]["step"] * config.batch_rows / len(rows), config.epochs)
    return {**card, "tokens": round(trained * passes), "train_seconds": seconds}


def _card(config: InstructConfig, identity: dict, model: nn.Module, validation: dict, encoded: Path) -> dict:
    """ajuste.json: which base, which weights learnt, and how well."""
    return {
        "kind": "decoder",
        "method": config.method,
        "strategy": config.method,
        "base": identity,
        "parameters": methods.count_parameters(model),
        "validation": validation,
        "max_tokens": read_encoding(encoded)["max_tokens"],
        "dtype": config.dtype,
        "mergeable": config.method in methods.MERGEABLE,
        "quantisation": methods.QUANTISATION.get(config.method),
    }


def _as_it_came(config: InstructConfig, compute: Compute, encoded: Path, base: Path, out: Path) -> dict:
    """The base itself as the whole model that others are made from, with its held-out loss; as `instruct` returns."""
    seed_everything(compute.seed, compute.threads)
    validation = read_conversations(encoded, "validation")
    try:
        identity = decoder.identity_of(base)
        model = decoder.load_base(base)[0].requires_grad_(False)
        check_fits({"validation": validation}, encoded, model.config, 0)
        supervised(model)
    except ValueError as error:
        raise UsageError(f"instruct: {error}") from None
    precision = compute.model_copy(update={"dtype": config.dtype})
    found = _held_out(model.to(compute.torch_device()).eval(), list(validation), precision)
    card = _card(config, identity, model, found, encoded)
    decoder.save_whole(model, load_tokenizer(base), out, card)
    write_lines(out / "history.jsonl", [{"step": 0, **{f"eval_{name}": value for name, value in found.items()}}])
    return {**card, "tokens": 0, "train_seconds": 0.0}


def _virtual_tokens(config: InstructConfig) -> int:
    return config.virtual_tokens if config.method in methods.VIRTUAL else 0


def _loss(model: nn.Module, config: InstructConfig, precision: Compute) -> Loss:
    """The training loss as a function of (model, batch, items): the responses', and the penalty where there is one."""
    W0 = [p.detach().clone() for p in model.parameters()] if config.l2_to_w0 else []

    def loss(current: nn.Module, batch: dict[str, Tensor], items: Tensor | int | None) -> Tensor:
        with autocast(precision):
            value = ragged.response_loss(current, batch, items)
        if W0:
            # each piece of a step brings its share of the one penalty
            share = (batch["labels"][:, 1:] != IGNORED).sum() / items
            distance = sum(
                (W - start.to(W.device)).pow(2).sum() for W, start in zip(model.parameters(), W0, strict=True)
            )
            value = value + config.l2_to_w0 / 2 * share * distance
        return value

    return loss


def _held_out(model: nn.Module, rows: list, precision: Compute) -> dict[str, float]:
    """Mean loss of a response token and its exponential."""
    with autocast(precision):
        nll, tokens = ragged.row_losses(model, rows, EVALUATION_TOKENS).sum(0).tolist()
    loss = nll / tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def main() -> None:
    with start("instruct", InstructConfig, together=True) as stage:
        allocator.keep_memory()
        done = instruct(
            stage.config,
            stage.compute,
            Path("artifacts/encoded/instructions"),
            Path("artifacts/base/decoder"),
            Path("artifacts/adapters/instruct"),
            stage.checkpoints,
        )
        stage.count(tokens=done["tokens"])
        stage.phases["train"] = done["train_seconds"]
        parameters, validation = done["parameters"], done["validation"]
        print(
            f"{done['method']}: {parameters['trainable']:,} of {parameters['total']:,} weights trained "
            f"({parameters['share']:.2%}), held-out loss {validation['loss']:.4f}, "
            f"perplexity {validation['perplexity']:.3f}"
        )


if __name__ == "__main__":
    main()
