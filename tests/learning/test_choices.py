"""ajuste/learning/text/choices.py against the model's own forward on each row alone, and against closed forms."""

import math

import pytest
import torch
from torch import nn

from ajuste.learning.text import choices
from ajuste.learning.text.choices import _batches, log_likelihoods
from tests.learning.test_generate import MODELS, llama

QUESTIONS = [
    ([5, 6, 7, 8, 9], [[4], [3]]),
    ([9], [[1, 2, 3, 4], [60], [7, 7]]),
    (list(range(1, 13)), [[20, 21], [20, 22, 23]]),
]


@torch.no_grad()
def alone(model: nn.Module, prompt: list[int], choice: list[int]) -> float:
    """Prompt and choice through the model as one row, without padding and cache."""
    logits = model.eval()(input_ids=torch.tensor([[*prompt, *choice]]), use_cache=False).logits[0]
    log_p = torch.log_softmax(logits[-len(choice) - 1 : -1].double(), dim=-1)
    return float(log_p.gather(1, torch.tensor(choice)[:, None]).sum())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("tokens_per_batch", [1, 1000])
def test_it_equals_each_row_alone(kind: str, tokens_per_batch: int) -> None:
    model = MODELS[kind]()
    found = log_likelihoods(model, QUESTIONS, pad_id=0, tokens_per_batch=tokens_per_batch)
    wanted = [[alone(model, prompt, choice) for choice in choices] for prompt, choices in QUESTIONS]
    for row, right in zip(found, wanted, strict=True):
        assert row == pytest.approx(right, abs=1e-4)
    assert len({round(value, 3) for row in wanted for value in row}) == 7  # seven different answers


def test_a_uniform_model_gives_every_token_the_same_share() -> None:
    model = llama()
    nn.init.zeros_(model.lm_head.weight)
    found = log_likelihoods(model, QUESTIONS, pad_id=0)
    for row, (_, some) in zip(found, QUESTIONS, strict=True):
        assert row == pytest.approx([-len(choice) * math.log(64) for choice in some], rel=1e-6)


def test_the_shares_of_all_tokens_sum_to_one() -> None:
    found = log_likelihoods(llama(), [([5, 6, 7], [[token] for token in range(64)])], pad_id=0)
    assert sum(map(math.exp, found[0])) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("question", [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_an_empty_part_is_refused(question: tuple) -> None:
    with pytest.raises(ValueError, match="^question 1 has an empty prompt, no choices or an empty one$"):
        log_likelihoods(llama(), [QUESTIONS[0], question], pad_id=0)


def test_batches_hold_their_tokens_with_padding_and_begin_with_the_longest() -> None:
    """Prompts of 5, 3 and 3 tokens, two choices of at most 2: nine, then as wide as the first (5 + 4), then 3 + 4."""
    questions = [([1] * 3, [[1], [2, 2]]), ([1] * 5, [[1, 1], [2]]), ([1] * 3, [[1, 1], [2]])]
    assert _batches(questions, 27, False) == [[1, 0, 2]]
    assert _batches(questions, 26, False) == [[1, 0], [2]]
    assert _batches(questions, 18, False) == [[1, 0], [2]]
    assert _batches(questions, 17, False) == [[1], [0, 2]]
    assert _batches(questions, 14, False) == [[1], [0, 2]]  # the second batch is as wide as its own first: 7 and 7
    assert _batches(questions, 13, False) == [[1], [0], [2]] == _batches(questions, 1, False)
    assert _batches(questions, 1000, True) == [[1], [0, 2]]  # prompts of one length each


def test_the_model_is_left_in_its_mode() -> None:
    model = llama().train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    wanted = log_likelihoods(model, QUESTIONS, pad_id=0)
    assert model.training and wanted == log_likelihoods(model.eval(), QUESTIONS, pad_id=0)
    assert not model.training
    with pytest.raises(IndexError):
        log_likelihoods(model.train(), [([999], [[1]])], pad_id=0)
    assert model.training


def test_token_0_in_a_choice_is_a_token() -> None:
    model, some = llama(), [[4, 0, 9, 3], [0, 0, 7], [5, 6]]
    (found,) = log_likelihoods(model, [([5, 6, 7], some)], pad_id=0)
    assert found == pytest.approx([alone(model, [5, 6, 7], choice) for choice in some], abs=1e-4)


def test_what_the_padding_holds_does_not_matter() -> None:
    found = [log_likelihoods(llama(), QUESTIONS, pad_id=pad) for pad in (0, 63)]
    assert found[0] == found[1]


def test_a_batch_holds_4096_tokens_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(choices, "_batches", lambda questions, *more: asked.append(more) or [[0, 1, 2]])
    log_likelihoods(llama(), QUESTIONS, pad_id=0)
    assert asked == [(4096, False)]


def test_what_the_model_is_asked() -> None:
    """The prompts once, with one column of logits; then the choices behind them, less their first and last tokens."""
    model, asked = llama(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    log_likelihoods(model, [([5, 6, 7], [[1], [2, 3]]), ([8], [[4, 9, 10]])], pad_id=0)
    first, rest = asked
    assert first["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]] and first["logits_to_keep"] == 1
    assert first["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert first["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert rest["input_ids"].tolist() == [[2, 0], [4, 9]]
    assert rest["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert rest["position_ids"].tolist() == [[3, 3], [1, 2]]
    assert first["use_cache"] is rest["use_cache"] is True
