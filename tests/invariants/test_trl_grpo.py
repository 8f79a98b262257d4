"""Losses and gradients of GRPO and RLOO are those of TRL's GRPOTrainer and RLOOTrainer on the same weights and batch.

TRL is no dependency. What its 1.16 gave for this model is written down here, and where TRL can be imported the tests
below run it: `PYTHONPATH=<folder with trl> python -m pytest tests/invariants/test_trl_grpo.py`. The policy has moved
since it sampled, so ratios stand on both sides of both bounds, and its reference is the base. TRL's default multiplies
the KL of a token by its ratio (DeepSeek-V3.2); here, as in GRPO's paper, it is not.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ajuste.learning.rl import group as groups
from ajuste.models import decoder, experts
from ajuste.models.one_base import OneBase, Settings
from tasks.rl.algorithm import Items, Now
from tasks.rl.episodes import Episodes
from tasks.rl.group import Group
from tests.made.tiny_rlhf import whole

TOLERANCE = 1e-6
BETA, LOW, HIGH, TEMPERATURE, LONGEST, GROUP = 0.3, 0.2, 0.28, 0.7, 9, 4
MEANS = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}  # TRL's loss_type -> ours
# TRL 1.16.0, transformers 5.23.0, peft 0.21.2, torch 2.13.0, one thread, float64
RECORDED = {"grpo": 0.07855732240340181, "bnpo": 0.024602549960055356, "dapo": 0.024602549960055356,
            "dr_grpo": -0.0011330544936564374, "rloo": 0.13130639486256035}  # fmt: skip
WITH_TRL = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(base, tmp_path_factory.mktemp("trl") / "instruct", 3)


def episodes() -> Episodes:
    """Two groups of four responses of unequal length, their scores, and how far the policy has moved at each token."""
    generator = torch.Generator().manual_seed(5)
    prompts = [[5, 9, 30, 7]] * GROUP + [[5, 11, 8]] * GROUP
    responses = torch.randint(4, 60, (8, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 5, 2, 6, 4, 6])[:, None]
    moved = 0.4 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    scores = torch.randn(8, generator=generator, dtype=torch.float64)
    return Episodes(prompts, responses * mask, mask, mask[:, -1], drawn=moved * mask, scores=scores)


def with_weights(model: nn.Module) -> nn.Module:
    """A and B drawn, so that the policy is not its reference; the same for the same layers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted((n, p) for n, p in model.named_parameters() if "lora_" in n):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def advantages(method: str, scores: Tensor) -> Tensor:
    if method == "rloo":
        return groups.leave_one_out(scores, GROUP)
    return groups.group_advantages(scores, GROUP, "none" if method == "dr_grpo" else "std")


def ours(sft: Path, method: str) -> tuple[float, dict[str, Tensor]]:
    """What the stage's algorithm makes of the batch: the loss, and its gradients by layer."""
    one = OneBase(decoder.load_base(sft)[0], Settings(r=4, alpha=8.0, value="none"))
    one.model = with_weights(one.model.double())
    some = episodes()
    with torch.no_grad():
        before = one.policy_and_values(*some.batch(), TEMPERATURE)[0] - some.drawn
        reference = one.reference(*some.batch(), TEMPERATURE)
    A = advantages(method, some.scores)[:, None] * some.mask
    part = Episodes(some.prompts, some.responses, some.mask, some.ended, log_probs=before * some.mask,
                    reference=reference, advantages=A, betas=torch.full((8,), BETA))  # fmt: skip
    if method == "rloo":
        algorithm = Group("rloo", GROUP, "others", "none", "sequence", "sequence", LOW, HIGH, "reward", LONGEST)
    else:
        scale = "none" if method == "dr_grpo" else "std"
        algorithm = Group("grpo", GROUP, "mean", scale, "token", MEANS[method], LOW, HIGH, "loss", LONGEST)
    now = Now(*one.policy_and_values(*some.batch(), TEMPERATURE))
    terms = algorithm.losses(now, part, Items(8, int(some.mask.sum()), 0)).terms
    loss = sum(weight * term for weight, term in terms.values())
    loss.backward()
    found = {name.removeprefix("model.").replace(".policy.", ".default."): p.grad for name, p in one.named_parameters()}
    return loss.item(), {name: gradient for name, gradient in found.items() if gradient is not None}


def trainer_of(sft: Path, method: str, folder: Path):
    """TRL's trainer on the same model, and its policy in float64."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    base, tokenizer = decoder.load_base(sft)
    targets = experts.targets_of(base, ("all-linear",), fused=False).modules
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets)
    shared = {"output_dir": str(folder), "beta": BETA, "epsilon": LOW, "epsilon_high": HIGH, "num_generations": GROUP,
              "per_device_train_batch_size": 8, "max_completion_length": LONGEST, "temperature": TEMPERATURE,
              "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}  # fmt: skip
    kind, args = RLOOTrainer, RLOOConfig(**shared) if method == "rloo" else None
    if args is None:
        scale = "none" if method == "dr_grpo" else "group"
        kind, args = GRPOTrainer, GRPOConfig(**shared, loss_type=method, scale_rewards=scale,
                                       use_bias_correction_kl=False)  # fmt: skip
    asked = Dataset.from_list([{"prompt": "Is it good?"}] * 8)
    trainer = kind(model=base, args=args, train_dataset=asked, processing_class=tokenizer, peft_config=lora,
                   reward_funcs=lambda completions, **_: [0.0] * len(completions))  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer, with_weights(trainer.model.double())


def theirs(sft: Path, method: str, folder: Path) -> tuple[float, dict[str, Tensor]]:
    trainer, model = trainer_of(sft, method, folder)
    some, width = episodes(), 4
    prompt_ids = torch.tensor([[0] * (width - len(p)) + p for p in some.prompts])
    prompt_mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some.prompts])
    mask = some.mask.long()
    rows = torch.cat([prompt_ids, some.responses], 1), torch.cat([prompt_mask, mask], 1)
    with torch.no_grad():
        now = trainer._get_per_token_logps_and_entropies(model, *rows, 6)[0]
        with model.disable_adapter():
            reference = trainer._get_per_token_logps_and_entropies(model, *rows, 6)[0]
    before = now - some.drawn
    inputs = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": some.responses,
              "completion_mask": mask, "advantages": advantages(method, some.scores), "old_per_token_logps": before,
              "old_logps": (before * mask).sum(1), "ref_per_token_logps": reference,
              "num_items_in_batch": mask.sum()}  # fmt: skip
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", [*MEANS, "rloo"])
def test_losses_are_what_trl_gave(sft: Path, method: str) -> None:
    assert ours(sft, method)[0] == pytest.approx(RECORDED[method], abs=TOLERANCE)


@WITH_TRL
@pytest.mark.parametrize("method", [*MEANS, "rloo"])
def test_loss_and_every_gradient_are_what_trl_gives(sft: Path, method: str, tmp_path: Path) -> None:
    (value, gradients), (other, others) = ours(sft, method), theirs(sft, method, tmp_path)
    print(method, value, other, max(float((gradients[name] - found).abs().max()) for name, found in others.items()))
    assert value == pytest.approx(other, abs=TOLERANCE) and gradients.keys() == others.keys() and len(others) == 56
    for name, found in others.items():
        # TRL's log-probs are float32; RLOO's ratio has the sum of their rounding over a response
        close = TOLERANCE * (4 if method == "rloo" else 1)
        assert torch.allclose(gradients[name].double(), found.double(), rtol=0, atol=close), name
    assert other == pytest.approx(RECORDED[method], abs=TOLERANCE)
