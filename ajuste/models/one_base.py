"""One frozen base, many small adapters: the policy, its reference, the value function and the reward model.

    policy       pi(y_t | x, y_<t)          the base with adapter `policy`, which learns
    reference    pi_ref                     the base with all adapters off: bit for bit the base, and no copy of it
    value        V(s_t) = w . h_t + b       a head on the policy's own trunk, or on adapter `value` of its own, or none
    reward       r(x, y) = w_r . h + b_r    the base with adapter `reward`, frozen, at the last real token

Four models in the memory of one: adapters are float32 and a few per cent of the base, which keeps its own dtype. `h_t`
is the hidden state of the last layer (after its norm) at the token before y_t, so that V(s_t) knows x and y_<t alone.

    one = OneBase.build(Path("artifacts/merged/instruct"), Path("artifacts/adapters/reward"), Settings(), dtype)
    log_probs, entropy, values = one.policy_and_values(prompts, responses, mask, temperature)

Every row goes through the model without padding, and what all rows begin with only once
(ajuste/learning/layers/shared_prefix.py), where that is exact for the architecture, else padded (`way` says why); the
output layer runs on the response alone. With and without gradients the
same code runs and gives the same bits, so the ratio of the first minibatch of an update is exactly 1. All dropout is
off, in training mode too. A batch may be cut into micro-batches of rows in any way: sums over rows do not change but
for rounding.

An algorithm that needs no value function has none (value: none): no head, no adapter, no pass for it. The reward model
is there only if its folder is given. A value head starts at zero (Ziegler et al., 2019). Adapter `value` starts as a
fresh LoRA, which changes nothing yet, or as a copy of the reward model, head and bias included (Huang et al., 2024).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ajuste.learning.layers import float32_head, fused, shared_prefix
from ajuste.learning.rl import rollout
from ajuste.learning.rl.token_log_probs import log_probs_of_logits, token_log_probs
from ajuste.models import decoder, experts, passes
from ajuste.models.folder import quiet, read_card
from ajuste.models.layers import without_noise
from ajuste.models.probe import policies, samples

POLICY, VALUE, REWARD = "policy", "value", "reward"
WEIGHTS = "adapter_model.safetensors"
SCORE = "base_model.model.score."  # the reward head's place in PEFT's file


class Settings(NamedTuple):
    """The policy's adapter (and the value adapter's), and where the value function sits."""

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
    value: str = "trunk"  # or "adapter", or "none"
    value_start: str = "zero"  # or "reward": a copy of the reward model, for an adapter of its own
    float32_head: bool = False  # logits in float32, of sampler and trainer: ajuste/learning/layers/float32_head.py


class OneBase(nn.Module):
    """prompts: token ids a row. responses [B, R] int64 and mask [B, R] bool: True for each token of a response, which
    stands at the left. All results are float32 and 0 where the mask is False; values are [B, R + 1]."""

    def __init__(self, model: nn.Module, settings: Settings, reward: Path | None = None) -> None:
        """model: a causal language model of transformers, changed in place. Draws A from torch's generator: seed it.

        Raises ValueError for settings that do not fit together and for a reward folder that does not fit the model.
        """
        super().__init__()
        import peft  # takes seconds

        if settings.value not in ("trunk", "adapter", "none") or settings.value_start not in ("zero", "reward"):
            raise ValueError("value must be trunk or adapter or none, and value_start zero or reward")
        if settings.value_start == "reward" and (reward is None or settings.value != "adapter"):
            raise ValueError("value_start: reward needs a reward model and value: adapter")
        self.settings = settings
        self.answers: rollout.Answers | None = None  # the base as a rollout reads it, made by the first one
        if settings.float32_head:
            float32_head.attach(model)
        targets = experts.targets_of(model, settings.targets, fused=True)
        config = {"task_type": "CAUSAL_LM", "r": settings.r, "lora_alpha": settings.alpha}
        config |= {"target_modules": targets.modules, "target_parameters": targets.parameters or None}
        config["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in model.modules())
        with quiet():
            self.model = peft.get_peft_model(model.eval(), peft.LoraConfig(**config), adapter_name=POLICY)
            if settings.value == "adapter" and settings.value_start == "zero":
                self.model.add_adapter(VALUE, peft.LoraConfig(**config))
            self.value_head: nn.Linear | None = None
            if settings.value != "none":
                self.value_head = nn.Linear(model.config.hidden_size, 1).to(model.device)
                nn.init.zeros_(self.value_head.weight)
                nn.init.zeros_(self.value_head.bias)
            self.register_buffer("reward_head", None, persistent=False)  # moves with the rest
            if reward is not None:
                self._load_reward(reward)
        without_noise(self.model)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("value_head.") or f".{POLICY}." in name or f".{VALUE}." in name)
        self.form: passes.Form = "shared"
        self.way = policies.policy(self)  # takes the form that is right for this architecture

    @classmethod
    def build(cls, base: Path, reward: Path | None, settings: Settings, dtype: torch.dtype) -> "OneBase":
        """From a folder with a whole model (its weights in `dtype`) and, if there is one, a reward model's adapter."""
        one = cls(decoder.load_base(base, dtype)[0], settings, reward)
        experts.told(one.model)
        return one

    # --- what the loop asks -------------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> rollout.Run:
        """A run of the policy, for ajuste/learning/rl/rollout.py: outside of `using` its adapter is the active one."""
        if self.answers is None:
            self.answers = samples.answers(self.model, POLICY)
        return self.answers.begin(prompts, max_new_tokens)

    def policy_and_values(
        self, prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """log pi(y_t) at the temperature [B, R], the entropy of pi in nats [B, R] without gradient, and V [B, R + 1].

        values[:, t] = V(state before token t); values[b, L_b] = V after the last token of row b, then zeros. Without a
        value function it is None.
        """
        with self.using(POLICY):
            found = self._passed(prompts, responses, mask)
        log_probs, entropy = self._log_probs(found, responses, mask, temperature)
        if self.value_head is None:
            return log_probs, entropy, None
        if self.valuing == VALUE:
            with self.using(VALUE):
                found = self._passed(prompts, responses, mask)
        after = passes.after(mask).to(found.hidden.device)
        values = self.value_head(found.hidden.float()).squeeze(1)
        return log_probs, entropy, values.new_zeros(after.shape).masked_scatter(after, values)

    forward = policy_and_values

    @torch.no_grad()
    def reference(
        self, prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor, temperature: float
    ) -> Tensor:
        """log pi_ref(y_t) at the temperature [B, R]: the base's own."""
        with self.using(None):
            found = self._passed(prompts, responses, mask)
        return self._log_probs(found, responses, mask, temperature)[0]

    @torch.no_grad()
    def scores(self, prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor) -> Tensor:
        """The reward of each row at its last real token [B]. Raises ValueError when there is no reward model."""
        if self.reward_head is None:
            raise ValueError("there is no reward model: build OneBase with its folder")
        with self.using(REWARD):
            states = self._passed(prompts, responses, mask).hidden
        last = passes.after(mask).sum(1).cumsum(0) - 1
        return states[last].float() @ self.reward_head + self.reward_bias

    # --- weights ------------------------------------------------------------------------------------------------------

    def policy_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self._trainable() if name.startswith(POLICY)]

    def value_parameters(self) -> list[nn.Parameter]:
        """The value head's, and those of adapter `value` if there is one; none without a value function."""
        return [parameter for name, parameter in self._trainable() if not name.startswith(POLICY)]

    def trainable_state(self) -> dict[str, Tensor]:
        """A copy of all that learns: names begin with `policy.`, `value.` (adapter) or `value_head.`."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._trainable()}

    @torch.no_grad()
    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for names or shapes that are not those of `trainable_state`."""
        own = dict(self._trainable())
        if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in state.items()}:
            raise ValueError(f"the state does not fit: {len(state)} tensors, {len(own)} places for them")
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def save_policy(self, tokenizer: PreTrainedTokenizerBase, out: Path, card: dict) -> None:
        """The policy's adapter in PEFT's own layout, with its card, as ajuste.models.decoder.save_adapter writes
        one."""
        decoder.save_adapter(self.model, tokenizer, out, card, POLICY)

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                adapter = next((part for part in name.split(".") if part in (POLICY, VALUE)), None)
                yield (f"{adapter}.{name.removeprefix('model.')}" if adapter else name), parameter

    def _load_reward(self, folder: Path) -> None:
        """Adapter `reward`, and its head, from the folder of a reward model; also as the value function's start."""
        import peft

        try:
            config = peft.LoraConfig.from_pretrained(folder)
            weights = load_file(folder / WEIGHTS)
            score = weights[f"{SCORE}weight"].float()
            bias = float(read_card(folder).get("bias", 0.0))
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{folder} holds no reward model ({error}): run stage `reward`") from None
        config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(SCORE)}
        names = [REWARD] + [VALUE] * (self.settings.value_start == "reward")
        for name in names:
            self.model.add_adapter(name, config)
            found = peft.set_peft_model_state_dict(self.model, weights, adapter_name=name)
            if found.unexpected_keys or score.shape != (1, self.model.config.hidden_size):
                raise ValueError(f"reward model {folder} does not fit this base: {found.unexpected_keys[:3]}")
        self.reward_head, self.reward_bias = score[0].to(self.model.device), bias
        if self.settings.value_start == "reward":
            with torch.no_grad():
                self.value_head.weight.copy_(score)
                self.value_head.bias.fill_(bias)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def valuing(self) -> str:
        """The adapter behind whose states the value head reads."""
        return VALUE if self.settings.value == "adapter" else POLICY

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """The model with one adapter, or as the bare base. PEFT's own switch would also change what is trained."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer._disable_adapters = adapter is None
            layer._active_adapter = [adapter or POLICY]
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters, layer._active_adapter = False, [POLICY]

    def _passed(self, prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor) -> passes.Passed:
        """What stands before each response token and after the last, row by row: N + B places for N tokens."""
        rows = [[*p, *row[keep].tolist()] for p, row, keep in zip(prompts, responses, mask, strict=True)]
        row, column = passes.after(mask).nonzero(as_tuple=True)
        starts = torch.tensor([len(p) - 1 for p in prompts], device=mask.device)
        return passes.passed(self.model, self.form, rows, row, starts[row] + column)

    def _log_probs(
        self, found: passes.Passed, responses: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Each [B, R]: what the states before the tokens say of them."""
        responses, mask = responses.to(found.hidden.device), mask.to(found.hidden.device)
        predicting = torch.cat([mask, mask.new_zeros(len(mask), 1)], dim=1)[passes.after(mask)]
        if found.logits is None:
            head = passes.head_of(self.model)
            states = found.hidden[predicting].to(head.weight.dtype)
            log_p, entropy = token_log_probs(states, head, responses[mask], temperature)
        else:
            log_p, entropy = log_probs_of_logits(found.logits[predicting], responses[mask], temperature)
        empty = log_p.new_zeros(mask.shape)
        return empty.masked_scatter(mask, log_p), empty.masked_scatter(mask, entropy)

    def take(self, form: passes.Form) -> None:
        """Let rows go through in that form from now on."""
        self.form = form
        fused.fuse(self.model)
        (shared_prefix.attach if form == "shared" else shared_prefix.detach)(self.model)
