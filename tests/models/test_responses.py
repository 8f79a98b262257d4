"""ajuste/models/responses.py: log pi(y | x) against torch's own log-softmax, row by row; gradients; the reference."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ajuste.learning.layers import active, shared_prefix
from ajuste.models import decoder, responses
from ajuste.models.responses import Row, Settings
from tests.made.tiny_rlhf import whole

PROMPT = [4, 9, 12, 7, 30]
ROWS = [  # one prompt, some responses that begin alike, one that is a single token
    Row([*PROMPT, 11, 13, 2], 5), Row([*PROMPT, 11, 13, 40, 41, 42, 2], 5), Row([*PROMPT, 2], 5),
    Row([*PROMPT, 50, 51, 2], 5),
]  # fmt: skip
OTHERS = [*ROWS[:2], Row([4, 9, 60, 61, 2], 3), Row([4, 80, 2], 1)]  # of other prompts too


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(base, tmp_path_factory.mktemp("sft") / "instruct", 3)


def moved(sft: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A policy whose B is not zero, so that it is not its reference."""
    torch.manual_seed(0)
    model = responses.build(sft, Settings(r=4, alpha=8.0), dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def plainly(model: nn.Module, row: Row) -> torch.Tensor:
    """log pi(y | x) of one row: the whole logits, torch's log-softmax, a sum."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, row.prompt - 1 : -1]
    return F.log_softmax(logits.double(), -1).gather(1, torch.tensor(row.ids[row.prompt :])[:, None]).sum()


@pytest.mark.parametrize("rows", [ROWS, OTHERS, ROWS[:1]], ids=["one prompt", "other prompts", "one row"])
@pytest.mark.parametrize("padded", [False, True], ids=["behind a prefix", "padded"])
def test_values_and_gradients_are_those_of_plain_rows(rows, padded, sft: Path) -> None:
    model = moved(sft)
    if padded:
        model.get_base_model().set_attn_implementation("sdpa")
    weights = torch.linspace(-1, 2, len(rows))
    found = responses.log_probs(model, responses.collate(model, rows))
    (found * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = torch.stack([plainly(model, row) for row in rows])
    (expected * weights).sum().backward()
    assert found.dtype == torch.float32 and torch.allclose(found.double(), expected, rtol=0, atol=1e-4)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(ours[name], p.grad, rtol=1e-3, atol=1e-4), name


def test_what_is_trained_is_the_adapter_alone_and_batches_change_nothing(sft: Path) -> None:
    model = moved(sft).train()
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert active.attached(model.get_base_model(), shared_prefix.NAME)
    many = responses.score(model, OTHERS)
    one_by_one = torch.cat([responses.score(model, [row]) for row in OTHERS])
    assert torch.allclose(many, one_by_one, atol=1e-4) and torch.allclose(
        many, responses.score(model, OTHERS, tokens_per_batch=9), atol=1e-4)
    assert model.training, "scoring leaves the mode as it was"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_policy_with_its_adapter_off_bit_for_bit(dtype: torch.dtype, sft: Path) -> None:
    policy, reference = moved(sft, dtype), responses.load_reference(sft, dtype)
    said = responses.score(reference, OTHERS)
    with policy.disable_adapter():
        assert torch.equal(responses.score(policy, OTHERS), said)
    assert not torch.equal(responses.score(policy, OTHERS), said)
    torch.manual_seed(1)
    fresh = responses.build(sft, Settings(r=4, alpha=8.0), dtype)  # B = 0
    assert torch.equal(responses.score(fresh, OTHERS), said), "a policy that has not learnt is its reference"


def test_rows_without_prompt_or_response_and_adapters_are_refused(sft: Path, base: Path, tmp_path: Path) -> None:
    model = responses.load_reference(sft)
    for row in (Row([4, 5], 0), Row([4, 5], 2)):
        with pytest.raises(ValueError, match="every row a prompt and a response"):
            responses.collate(model, [row])
    with pytest.raises(ValueError, match="is missing"):
        responses.build(tmp_path, Settings())
    assert decoder.identity_of(sft)["id"] == "tiny+instruct"
