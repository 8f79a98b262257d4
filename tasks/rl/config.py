"""Section `ppo` of params.yaml. Formulas behind the keys: ajuste/learning/rl/advantages.py, ajuste/learning/rl/kl.py,
ajuste/learning/rl/ppo.py."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ajuste.core.params import Config


class PpoConfig(Config):
    """Section `ppo`. A key that another one switches off may stay."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Of the frozen base and the products.")
    r: int = Field(ge=1, description="Rank of B A, of the policy's adapter and the value's.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    value: Literal["trunk", "adapter"] = Field(description="Where the value head reads: policy or own adapter.")
    value_start: Literal["zero", "reward"] = Field(description="What head and adapter of the value start as.")
    updates: int = Field(ge=1, description="Times that the policy samples and learns.")
    batch_rows: int = Field(ge=1, description="Episodes of an update, of all processes together.")
    minibatches: int = Field(ge=1, description="Optimiser steps of an epoch.")
    micro_rows: int = Field(ge=1, description="Episodes that pass the model at once; no effect but memory.")
    epochs: int = Field(ge=1, description="Passes over an update's episodes.")
    max_new_tokens: int = Field(ge=1, description="Of a response.")
    temperature: float = Field(gt=0, description="Of the sampling, and inside every log-probability.")
    gamma: float = Field(gt=0, le=1, description="Discount of a token.")
    lam: float = Field(ge=0, le=1, description="lambda of GAE.")
    terminal: Literal["at_end", "after_end"] = Field(description="Where the score is paid: learning/rl/advantages.py.")
    missing_end: Literal["none", "subtract", "replace", "bootstrap"] = Field(description="Responses without an end.")
    missing_end_penalty: float = Field(description="Of subtract and replace.")
    whiten_rewards: bool = Field(description="Divide rewards by their standard deviation.")
    whiten_advantages: bool = Field(description="Mean 0 and variance 1 over the batch.")
    unbiased: bool = Field(description="The variance of the whitening: n - 1 or n.")
    clip: float = Field(gt=0, lt=1, description="Of the ratio.")
    dual_clip: float | None = Field(gt=1, description="A token with A < 0 costs at most -d A; null: off.")
    value_clip: float | None = Field(gt=0, description="Of the value around the old one; null: off.")
    vf_coef: float = Field(ge=0, description="Weight of the value loss.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(description="Of the KL that rewards pay.")
    kl_control: Literal["fixed", "ziegler", "hold"] = Field(description="How beta moves: ajuste/learning/rl/kl.py.")
    beta: float = Field(ge=0, description="Price of a nat; the first one where it moves.")
    kl_target: float = Field(gt=0, description="Nats a response (ziegler, hold).")
    kl_horizon: int = Field(ge=1, description="Episodes (ziegler).")
    lr: float = Field(gt=0, description="Of the first update; it falls to 0.")
    lr_schedule: Literal["linear", "cosine"] = Field(description="Along what.")
    adam_eps: float = Field(gt=0, description="Adam's epsilon.")
    adam_eps_mode: Literal["torch", "tf"] = Field(description="Where epsilon stands: ajuste/learning/rl/ppo.py.")
    max_grad_norm: float | None = Field(gt=0, description="Longer gradients are cut to this norm; null: none is.")
    ptx: float = Field(ge=0, description="Weight of the loss on instruction rows; 0: off.")
    ptx_rows: int = Field(ge=1, description="Of those rows in an optimiser step.")
    alarm_kl: float | None = Field(gt=0, description="Nats a response, above; null: no such alarm.")
    alarm_ratio: float | None = Field(gt=1, description="Largest ratio of a token, above.")
    alarm_entropy: float | None = Field(gt=0, description="Nats a token, below.")
    alarm_value_loss: float | None = Field(gt=0, description="Above.")
    alarm_repeats: float | None = Field(gt=0, lt=1, description="Share of repeated bigrams, above.")
    checkpoint_every: int = Field(ge=1, description="Updates between two checkpoints of the whole state.")
    record: list[int] = Field(description="Updates that the flight recorder keeps.")
    radar_every: int = Field(ge=1, description="Updates between two looks at the validation prompts.")
    radar_prompts: int = Field(ge=1, description="Validation prompts, the lowest row ids.")
    keep: Literal["gold", "last"] = Field(description="Whose weights are kept: the gold score's peak, or the last.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.minibatches > self.batch_rows:
            raise ValueError(f"batch_rows {self.batch_rows} cannot make {self.minibatches} minibatches")
        if self.value_start == "reward" and self.value == "trunk":
            raise ValueError("value_start `reward` copies the reward model's adapter: it needs value `adapter`")
        if self.kl_control != "fixed" and self.beta == 0:
            raise ValueError(f"beta 0 stays 0 under kl_control `{self.kl_control}`: start above it, or set `fixed`")
        return self
