"""ajuste/learning/text/generate.py: a batch answers as each prompt alone would, without cache or padding, whatever the
model."""

import peft
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ajuste.learning.text.generate import counts_padding, generate, pad_left
from tests.made.architectures import make

PROMPTS = [[5, 6, 7, 8, 9, 3, 4], [9], [3, 3, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [60, 2]]
LIMITS = [9, 12, 5, 8, 1]


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.5,
        )
    )


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5)
    )


def adapted(config: peft.PeftConfig) -> nn.Module:
    model = peft.get_peft_model(llama(), config)
    for name, parameter in model.named_parameters():
        if "prompt_encoder" in name:
            nn.init.normal_(parameter.data)  # far from the start, where it would do nothing
    return model


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "lora": lambda: adapted(peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)),
    "prompt": lambda: adapted(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "state space": lambda: make("jamba"),  # begins anew when several tokens follow a state
    "chunks": lambda: make("llama4"),  # counts columns, padding included
    "prefix": lambda: adapted(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
}


@torch.no_grad()
def alone(model: nn.Module, prompt: list[int], limit: int, stop_ids: list[int]) -> list[int]:
    """The whole row through the model's own forward again for every token."""
    ids, model = list(prompt), model.eval()
    while len(ids) < len(prompt) + limit:
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_answers_as_each_row_alone(kind: str) -> None:
    model = MODELS[kind]()
    whole = [alone(model, prompt, limit, []) for prompt, limit in zip(PROMPTS, LIMITS, strict=True)]
    assert [len(row) for row in whole] == LIMITS
    assert len({tuple(row) for row in whole}) == len(PROMPTS)  # the model says different things
    stop_ids = [whole[0][3], whole[3][-2]]
    ended = [alone(model, prompt, limit, stop_ids) for prompt, limit in zip(PROMPTS, LIMITS, strict=True)]
    assert len(ended[0]) <= 4 and len(ended[3]) <= 7
    for batch_rows in (1, 3, 16):
        assert generate(model, PROMPTS, LIMITS, [], pad_id=0, batch_rows=batch_rows) == whole
        assert generate(model, PROMPTS, LIMITS, stop_ids, pad_id=0, batch_rows=batch_rows) == ended


def test_it_equals_the_librarys_own_generate() -> None:
    model = llama().eval()
    ids, mask = pad_left(PROMPTS, 0)
    wanted = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert generate(model, PROMPTS, 10, [], pad_id=0) == wanted[:, ids.shape[1] :].tolist()


def test_what_the_padding_holds_does_not_matter() -> None:
    model = llama()
    assert generate(model, PROMPTS, 10, [], pad_id=0) == generate(model, PROMPTS, 10, [], pad_id=63)


def test_the_model_is_left_in_its_mode_and_can_still_be_trained() -> None:
    model = llama().train()
    generate(model, PROMPTS, 2, [], pad_id=0)
    assert model.training
    model(input_ids=torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()


LIMIT = "max_new_tokens must be at least 1, one number for all rows or one a row"


@pytest.mark.parametrize(("prompts", "limit", "said"), [
    ([[1], []], 4, "prompt 1 has no tokens: there is nothing to answer"), ([[1]], 0, LIMIT), ([[1], [2]], [3], LIMIT),
    ([[1], [2]], [3, 0], LIMIT),
])  # fmt: skip
def test_what_cannot_be_answered_is_refused(prompts: list[list[int]], limit: int | list[int], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        generate(llama(), prompts, limit, [], pad_id=0)


def test_a_failure_leaves_the_mode_too_and_evaluation_is_without_dropout() -> None:
    model = llama()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    expected = generate(model.eval(), PROMPTS, 6, [], pad_id=0)
    assert generate(model.train(), PROMPTS, 6, [], pad_id=0) == expected and model.training
    with pytest.raises(IndexError):
        generate(model, [[999]], 2, [], pad_id=0)
    assert model.training
    generate(model.eval(), [[1]], 1, [], pad_id=0)
    assert not model.training


def test_padding_stands_on_the_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_rows_that_have_ended_are_computed_no_more() -> None:
    model, widths = llama(), []
    rows = [alone(model, prompt, 6, []) for prompt in PROMPTS]
    model.register_forward_hook(lambda _, args, kwargs, out: widths.append(len(kwargs["input_ids"])), with_kwargs=True)
    answers = generate(model, PROMPTS, [6, 1, 3, 3, 2], [], pad_id=0)
    assert answers == [row[:limit] for row, limit in zip(rows, [6, 1, 3, 3, 2], strict=True)]
    assert widths == [5, 4, 3, 1, 1, 1]
    widths.clear()
    generate(model, PROMPTS, 1, [], pad_id=0, batch_rows=2)
    assert widths == [2, 2, 1]


def test_a_batch_has_sixteen_rows_where_nothing_is_said() -> None:
    model, asked = llama(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    generate(model, [[1 + n] for n in range(17)], 1, [], pad_id=0)
    assert [len(one["input_ids"]) for one in asked] == [16, 1]
    assert all(one["use_cache"] is True and one["logits_to_keep"] == 1 for one in asked)


def test_positions_count_the_real_tokens_and_the_mask_grows() -> None:
    model, asked = llama(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    generate(model, [[5, 6, 7], [8]], [2, 2], [], pad_id=0)
    assert [one["position_ids"].tolist() for one in asked] == [[[0, 1, 2], [0, 0, 0]], [[3], [1]]]
    assert [one["attention_mask"].tolist() for one in asked] == [[[1, 1, 1], [0, 0, 1]], [[1, 1, 1, 1], [0, 0, 1, 1]]]


def test_a_model_that_counts_padding_gets_none() -> None:
    model, asked = make("llama4"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    generate(model, [[5, 6], [7], [8, 9], [3], [4]], 1, [], pad_id=0)
    assert [one["input_ids"].tolist() for one in asked] == [[[5, 6], [8, 9]], [[7], [3], [4]]]
    assert counts_padding(model) and not counts_padding(make("qwen2")) and not counts_padding(nn.Linear(1, 1))
