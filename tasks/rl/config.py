"""What the loop of learning from samples reads of a section of params.yaml, whatever the algorithm.

A stage's own config adds what its algorithm needs. Formulas: ajuste/learning/rl/kl.py (beta) and
ajuste/learning/rl/steps.py (order, learning rate, Adam).
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from ajuste.core.params import Config


class SamplesConfig(Config):
    """A key that another one switches off may stay."""

    updates: int = Field(ge=1, description="Times that the policy samples and learns.")
    batch_rows: int = Field(ge=1, description="Episodes of an update, of all processes together.")
    minibatches: int = Field(ge=1, description="Optimiser steps of an epoch.")
    micro_rows: int = Field(ge=1, description="Episodes that pass the model at once; no effect but memory.")
    epochs: int = Field(ge=1, description="Passes over an update's episodes.")
    max_new_tokens: int = Field(ge=1, description="Longest response, in tokens; a longer one is cut there.")
    temperature: float = Field(gt=0, description="Of the sampling, and inside every log-probability.")
    kl_control: Literal["fixed", "ziegler", "hold"] = Field(description="How beta moves: ajuste/learning/rl/kl.py.")
    beta: float = Field(ge=0, description="Price of a nat; the first one where it moves.")
    kl_target: float = Field(gt=0, description="KL that beta aims at, in nats a response (ziegler, hold).")
    kl_horizon: int = Field(ge=1, description="Episodes over which beta follows the KL (ziegler).")
    lr: float = Field(gt=0, description="Learning rate of the first update; it falls to 0.")
    lr_schedule: Literal["linear", "cosine"] = Field(description="The curve along which the learning rate falls to 0.")
    adam_eps: float = Field(gt=0, description="Adam's epsilon.")
    adam_eps_mode: Literal["torch", "tf"] = Field(description="Where epsilon stands: ajuste/learning/rl/steps.py.")
    max_grad_norm: float | None = Field(gt=0, description="Longer gradients are cut to this norm; null: none is.")
    ptx: float = Field(ge=0, description="Weight of the loss on instruction rows; 0: off.")
    ptx_rows: int = Field(ge=1, description="Instruction rows in an optimiser step.")
    alarm_kl: float | None = Field(gt=0, description="A KL above this, in nats a response, is an alarm; null: none.")
    alarm_ratio: float | None = Field(gt=1, description="A token's ratio above this is an alarm; null: none.")
    alarm_entropy: float | None = Field(gt=0, description="An entropy below this, in nats a token; null: no alarm.")
    alarm_repeats: float | None = Field(gt=0, lt=1, description="A share of repeated bigrams above this; null: none.")
    alarm_sampler_gap: float | None = Field(
        gt=0, description="A mean gap between sampler and trainer above this, in nats a token; null: no alarm."
    )
    checkpoint_every: int = Field(ge=1, description="Updates between two checkpoints of the whole state.")
    record: list[int] = Field(description="Updates that the flight recorder keeps.")
    radar_every: int = Field(ge=1, description="Updates between two looks at the validation prompts.")
    keep: Literal["gold", "last"] = Field(description="Whose weights are kept: the gold score's peak, or the last.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.minibatches > self.batch_rows:
            raise ValueError(f"batch_rows {self.batch_rows} cannot make {self.minibatches} minibatches")
        if self.kl_control != "fixed" and self.beta == 0:
            raise ValueError(f"beta 0 stays 0 under kl_control `{self.kl_control}`: start above it, or set `fixed`")
        return self
