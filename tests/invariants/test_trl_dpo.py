"""Losses and gradients of DPO are those of TRL's DPOTrainer on the same weights and pairs.

TRL is no dependency. What its 1.16 gave for this model is written down here, and where TRL can be imported the tests
below run it: `PYTHONPATH=<folder with trl> python -m pytest tests/invariants/test_trl_dpo.py`. TRL 1.16 has no cDPO
(its `sigmoid` knows no label_smoothing), and its ORPO and SimPO are experimental: these three are compared with a brute
force in tests/learning/test_preference.py, the experimental ones also here, as functions of log-probabilities.
"""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ajuste.learning.losses import preference
from ajuste.learning.losses.preference import Preference, Responses
from ajuste.models import decoder, experts, responses
from ajuste.models.responses import Settings
from ajuste.rows.encoded.comparisons import read_comparisons
from tests.made.tiny_rlhf import whole
from tests.tasks.test_reward import comparisons

TOLERANCE = 1e-6
BETA, SMOOTH = 0.3, 0.1
SETTINGS = Settings(r=4, alpha=8.0)
# TRL 1.16.0, transformers 5.23.0, peft 0.21.2, torch 2.13.0, one thread, float64: losses of the four
# pairs
RECORDED = {"sigmoid": 0.5377689003944397, "ipo": 2.406655788421631, "hinge": 0.6594418287277222,
            "robust": 0.4951990842819214}  # fmt: skip
WITH_TRL = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """A whole model and its first four pairs."""
    folder = tmp_path_factory.mktemp("trl")
    sft = whole(base, folder / "instruct", 3)
    rows = read_comparisons(comparisons(sft, folder / "encoded"), "train", decoder.load_base(sft)[0].config)
    return sft, [rows[i] for i in range(4)]


def with_B(model: nn.Module) -> nn.Module:
    """B drawn, so that the policy is not its reference; the same for the same layers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted((n, p) for n, p in model.named_parameters() if "lora_" in n):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def ours(made: tuple[Path, list], loss: str) -> tuple[float, dict[str, Tensor]]:
    sft, pairs = made
    model = with_B(responses.build(sft, SETTINGS).double())
    rows = [row for one in pairs for row in one.rows]
    lengths = [length for one in pairs for length in one.lengths]
    batch = responses.collate(model, responses.rows(rows, lengths))
    with torch.no_grad(), model.disable_adapter():
        before = responses.log_probs(model, batch)
    found = Responses(responses.log_probs(model, batch), before, batch["tokens"])
    value = preference.comparison_loss(Preference(loss, BETA, SMOOTH), found, torch.full((len(pairs),), 2))
    value.backward()
    return value.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def theirs(made: tuple[Path, list], loss: str, folder: Path) -> tuple[float, dict[str, Tensor]]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    sft, pairs = made
    base, tokenizer = decoder.load_base(sft)
    targets = experts.targets_of(base, ("all-linear",), fused=False).modules
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets)
    args = DPOConfig(
        output_dir=str(folder), loss_type=[loss], beta=BETA, label_smoothing=SMOOTH if loss == "robust" else 0.0,
        bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    words = Dataset.from_list([{"prompt": "Is it good?", "chosen": " It is.", "rejected": " It is not."}])
    trainer = DPOTrainer(model=base, args=args, train_dataset=words, processing_class=tokenizer, peft_config=lora)
    model = with_B(trainer.model.double())
    asked = [{"prompt_ids": one.rows[0][: -one.lengths[0]], "chosen_ids": one.rows[0][-one.lengths[0] :],
              "rejected_ids": one.rows[1][-one.lengths[1] :]} for one in pairs]  # fmt: skip
    value = trainer._compute_loss(model.train(), trainer.data_collator(asked), False)
    value.backward()
    return value.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust"])
def test_losses_are_what_trl_gave(made, loss: str) -> None:
    assert ours(made, loss)[0] == pytest.approx(RECORDED[loss], abs=TOLERANCE)


@WITH_TRL
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust"])
def test_loss_and_every_gradient_are_what_trl_gives(made, loss: str, tmp_path: Path) -> None:
    (value, gradients), (other, others) = ours(made, loss), theirs(made, loss, tmp_path)
    assert value == pytest.approx(other, abs=TOLERANCE) and gradients.keys() == others.keys() and len(others) == 56
    for name, found in others.items():
        assert torch.allclose(gradients[name], found, rtol=0, atol=TOLERANCE), name
    assert other == pytest.approx(RECORDED[loss], abs=TOLERANCE)


@WITH_TRL
def test_odds_ratio_and_simpo_are_those_of_trls_experiments() -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([3, 9, 4, 5])
    means = -(0.1 + 3 * torch.rand(4, generator=generator, dtype=torch.float64))
    found = Responses(means * tokens, torch.zeros(4), tokens)
    fake = SimpleNamespace(beta=BETA, simpo_gamma=0.5, loss_type="simpo", label_smoothing=0.0, alpha=0.0,
                           accelerator=SimpleNamespace(device="cpu"))  # fmt: skip
    chosen, rejected = means[::2], means[1::2]
    simpo = CPOTrainer.cpo_loss(fake, chosen, rejected)[0].mean().item()
    sizes = torch.tensor([2, 2])
    assert preference.comparison_loss(Preference("simpo", BETA, 0.0, 0.5), found, sizes).item() == pytest.approx(simpo)
    ratio = -ORPOTrainer.odds_ratio_loss(fake, chosen, rejected)[0].mean().item()
    nll = -chosen.mean().item()
    value = preference.comparison_loss(Preference("orpo", BETA), found, sizes).item()
    assert value == pytest.approx(nll + ratio, abs=TOLERANCE)
