"""ajuste/models/probe/: no base is silently wrong. Each architecture here was, in a way of its own.

The truth is a model with the same weights that the project never touched, each row alone.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ajuste.core import notes
from ajuste.learning.layers import active, fused, ragged, shared_prefix
from ajuste.learning.rl import rollout
from ajuste.models import methods, reward
from ajuste.models.one_base import OneBase, Settings
from ajuste.models.probe import ways
from ajuste.models.probe.samples import answers
from ajuste.models.probe.texts import supervised
from tests.made.architectures import make, rows_of, write

# everything but attention works on single tokens: not in these
STATES = ("qwen3.5", "lfm2", "jamba", "falcon-h1")
# what an attention call is given beside the usual
ARGUMENTS = ("gpt-oss", "gemma2", "llama4")
# what stands between hidden states and logits beside one matrix
HEADS = {"phi": "exact", "cohere": "exact", "granite": "exact", "gemma2": "plain", "modernbert-decoder": "plain"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    notes.forget()


@torch.no_grad()
def log_probs(model: nn.Module, row: list[int], begin: int = 1) -> Tensor:
    logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, begin - 1 : -1]
    return ways.log_p(logits, torch.tensor(row[begin:]))


@pytest.mark.parametrize("name", [*STATES, *ARGUMENTS])
def test_supervised_rows_are_padded_where_only_that_is_right(name: str, capsys: pytest.CaptureFixture):
    model, rows = make(name), rows_of()
    way = supervised(model)
    assert way.name == "plain" and not ragged.takes_ragged(model) and way.reason
    found = ragged.row_losses(model, [(row, row) for row in rows], 4096)[:, 0]
    expected = torch.stack([-log_probs(make(name), row).sum() for row in rows])
    assert torch.allclose(found.float(), expected, rtol=1e-5)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and way.reason in said and notes.said() == [said.strip()]


@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo"])
def test_supervised_rows_go_without_padding_where_that_is_exact(name: str, capsys: pytest.CaptureFixture):
    model = methods.attach(make(name), methods.Settings("lora", r=2))
    state = torch.get_rng_state()
    assert supervised(model, training=True) == ("exact", "")
    assert ragged.takes_ragged(model) and model.training and torch.equal(torch.get_rng_state(), state)
    assert any("forward" in vars(module) for module in model.modules())  # fused
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not capsys.readouterr().out and not notes.said()


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("layer", [ragged, shared_prefix])
def test_ordinary_batches_go_through_the_attention_that_was_active(name: str, layer):
    """Bit for bit, with sinks, soft caps and chunks; and a batch of lengths is refused, not computed without them."""
    batch = ragged.padded([(row, row) for row in rows_of()], 0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    model = layer.attach(make(name))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, make(name)(**inputs).logits)
        with pytest.raises(ValueError, match="of .*Attention would be lost without padding"):
            if layer is ragged:
                ragged.row_losses(model, [(row, row) for row in rows_of()], 4096)
            else:
                shared_prefix.hidden(model, shared_prefix.collate(rows_of()))
    before = make(name).config._attn_implementation
    assert active.active(model) == before
    assert layer.detach(model).config._attn_implementation == before


def test_eager_stays_eager():
    rows = [(row, row) for row in rows_of()]
    model = make("llama")
    model.set_attn_implementation("eager")
    ragged.attach(model)
    module = model.model.layers[0].self_attn
    assert active._of_model(module, "eager").__module__ == type(module).__module__
    batch = ragged.padded(rows, 0)
    outputs = model(batch["input_ids"], batch["attention_mask"], output_attentions=True, use_cache=False)
    assert outputs.attentions[0] is not None  # SDPA gives none
    assert torch.allclose(ragged.row_losses(model, rows, 4096), ragged.row_losses(make("llama"), rows, 1), atol=1e-4)


def test_an_attention_that_cannot_stand_beside_rows_is_refused():
    model = make("llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="attention `flex_attention` cannot stand beside"):
        ragged.attach(model)


@pytest.mark.parametrize("name", [*STATES[:3], "gpt-oss", *HEADS])
def test_log_probabilities_of_a_policy_are_those_of_its_own_logits(name: str):
    """State space, sinks, and heads with a bias, a scale, a soft cap or layers of their own."""
    torch.manual_seed(0)
    one = OneBase(make(name), Settings(r=2, targets=("Wo",) if name == "modernbert-decoder" else ("q_proj",)))
    assert one.way.name == HEADS.get(name, "plain")
    prompts, length = [row[:4] for row in rows_of((9, 6, 12))], 5
    answers = [row[4 : 4 + length] for row in rows_of((9, 6, 12))]
    responses, mask = torch.zeros(3, length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.bool)
    for i, answer in enumerate(answers):
        responses[i, : len(answer)], mask[i, : len(answer)] = torch.tensor(answer), True
    expected = torch.cat([log_probs(make(name), p + a, len(p)) for p, a in zip(prompts, answers, strict=True)])
    assert torch.allclose(one.reference(prompts, responses, mask, 1.0)[mask], expected, atol=2e-5)
    assert torch.allclose(one.policy_and_values(prompts, responses, mask, 1.0)[0][mask], expected, atol=2e-5)
    found = rollout.sample(one, prompts, 4, [], 0, 0.0)
    again = one.reference(prompts, found.responses, found.mask, 1.0)
    assert torch.allclose(again, found.log_probs, atol=2e-5)  # it learns for the policy that it samples


def test_a_sampler_that_padding_disturbs_takes_rows_of_one_length():
    model = make("llama4")
    policy = answers(model)
    assert policy.form == "apart" and len(notes.said()) == 1
    prompts = [row[: 5 + i % 3] for i, row in enumerate(rows_of((20, 20, 20, 20), shared=4))]
    found = rollout.sample(policy, prompts, 6, [], 0, 0.0)
    for prompt, answer, log_p in zip(prompts, found.responses.tolist(), found.log_probs, strict=True):
        assert torch.allclose(log_probs(make("llama4"), prompt + answer, len(prompt)), log_p, atol=2e-5)
    assert answers(make("mistral")).form == answers(make("jamba")).form == "packed"


@pytest.mark.parametrize("name, way", [("qwen3", "exact"), ("jamba", "plain"), ("gpt-oss", "plain")])
def test_rewards_are_those_of_a_row_alone(name: str, way: str, tmp_path: Path):
    torch.manual_seed(0)
    model = reward.build(write(name, tmp_path / "base"), reward.Settings(r=2))
    assert reward.way(model).name == way and shared_prefix.takes_shared(model) is (way == "exact")
    rows = rows_of()
    found = reward.score(model, rows)
    inner = model.get_base_model().eval()
    with torch.no_grad():
        expected = [type(inner).forward(inner, input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


class CountsColumns(LlamaForCausalLM):
    """A model that is another one beside padding and beside neighbours."""

    def forward(self, input_ids: Tensor, **others):
        outputs = super().forward(input_ids, **others)
        outputs.logits = outputs.logits * (1 + 0.1 * input_ids.shape[1])
        return outputs


def test_where_no_way_is_right_it_is_refused():
    model = make("llama")
    model.__class__ = CountsColumns
    with pytest.raises(ValueError, match="CountsColumns cannot be used for rows of text, no way .*exact: .* plain: "):
        supervised(model)
    assert not ragged.takes_ragged(model) and not notes.said()
    with pytest.raises(ValueError, match="cannot be used for log-probabilities"):
        OneBase(model, Settings(r=2))


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_have_padded_rows_as_their_own_way(method: str):
    model = methods.attach(make("llama"), methods.Settings(method, virtual_tokens=3))
    assert supervised(model, training=True) == ("exact", "")
    assert not ragged.takes_ragged(model) and not notes.said()


def test_fused_layers_can_be_undone():
    model = methods.attach(make("llama"), methods.Settings("lora", r=2))
    assert fused.fuse(model) == 14
    fused.unfuse(model)
    assert not any("forward" in vars(module) for module in model.modules())
