"""Rows that join and leave a batch are computed as if each were alone; what is drawn follows the distribution."""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from ajuste.learning.layers import one_token
from ajuste.models import decoder
from ajuste.serving import decoding
from ajuste.serving.decoding import Batch, pick
from tests.made import tiny_decoders

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "initializer_range": 0.4}


def model_of(family):
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2))
    elif family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=256,
                                           initializer_range=0.4))
    else:
        model = MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=6))
    return model.eval()


def prompts_of(*lengths, vocabulary=97):
    draw = random.Random(1)
    return [[draw.randrange(3, vocabulary) for _ in range(n)] for n in lengths]


@torch.no_grad()
def alone(model, ids):
    """The logits after these ids, by one plain forward without any cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def follow(model, prompts, arrivals, lengths):
    """Join as `arrivals` {step: rows} says, leave after lengths[row] tokens; every step's logits are checked."""
    batch, live, told, step, widths = Batch(model), [], {i: list(p) for i, p in enumerate(prompts)}, 0, set()
    while live or step <= max(arrivals):
        if step in arrivals:
            batch.join([prompts[i] for i in arrivals[step]])
            live += arrivals[step]
        if live:
            logits = batch.step()
            widths.add(len(live))
            for place, row in enumerate(live):
                torch.testing.assert_close(logits[place], alone(model, told[row]), atol=2e-4, rtol=1e-4)
                batch.tokens[place] = int(logits[place].argmax())
                told[row].append(batch.tokens[place])
            stay = [k for k, row in enumerate(live) if len(told[row]) < len(prompts[row]) + lengths[row]]
            live = [live[k] for k in batch.keep(stay)]
        step += 1
    assert len(batch) == 0
    return [told[i][len(prompts[i]):] for i in range(len(prompts))], widths


@pytest.mark.parametrize("quick", [False, True], ids=["its own attention", "one token"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "sliding"])
def test_a_row_among_others_has_the_logits_of_a_row_alone(family, quick):
    model, prompts = model_of(family), prompts_of(1, 9, 30, 2, 17, 1)
    if quick:
        decoding.quicken(model)
        assert one_token.attached(model)
    answers, widths = follow(model, prompts, {0: [0, 1], 2: [2], 3: [3, 4], 25: [5]}, [12, 8, 20, 9, 1, 4])
    assert len({token for answer in answers for token in answer}) > 15, "too monotonous to tell rows apart"
    assert max(widths) == 5 and [len(answer) for answer in answers] == [12, 8, 20, 9, 1, 4]


def test_the_order_of_the_batch_is_free_and_a_long_row_may_leave():
    model, prompts = model_of("llama"), prompts_of(40, 3, 8)
    batch = Batch(model)
    batch.join(prompts)
    batch.step()
    batch.tokens, told = [5, 6, 7], [[*prompt, token] for prompt, token in zip(prompts, (5, 6, 7), strict=True)]
    assert batch.keep([2, 1]) == [2, 1]                     # the last takes the first's place
    assert batch._layers[0].keys.shape == (2, 2, 8, 8)      # as narrow as the longest that is left
    logits = batch.step()
    for place, row in enumerate((2, 1)):
        torch.testing.assert_close(logits[place], alone(model, told[row]), atol=2e-4, rtol=1e-4)


def test_a_row_outgrows_the_spare_columns(monkeypatch):
    model, prompts = model_of("llama"), prompts_of(3, 5)
    monkeypatch.setattr(decoding, "SPARE", 16)
    answers, _ = follow(model, prompts, {0: [0], 20: [1]}, [39, 5])
    assert len(answers[0]) == 39


def test_a_row_that_comes_or_goes_leaves_the_others_where_they_are():
    """What made a full batch slow: all keys and values were copied for each row that joined or left."""
    batch = Batch(model_of("llama"))
    batch.join(prompts_of(9, 5, 7))
    room = batch._layers[0].room_k
    batch.keep([0, 2])
    batch.join(prompts_of(4, 6))
    batch.keep([1, 3])
    batch.step()
    assert batch._layers[0].room_k is room
    batch.join(prompts_of(40))                              # longer than all before
    assert batch._layers[0].room_k is not room and len(batch) == 3


def test_what_a_row_leaves_behind_reaches_nobody():
    """A NaN in masked columns would come through the softmax's zeros."""
    model, prompts = model_of("llama"), prompts_of(30, 4, 5)
    batch = Batch(model)
    batch.join(prompts[:2])
    with torch.inference_mode():
        for layer in batch._layers:
            layer.room_k[0], layer.room_v[0] = float("nan"), float("nan")
    batch.keep([1])
    batch.join(prompts[2:])
    torch.testing.assert_close(batch.step()[1], alone(model, prompts[2]), atol=2e-4, rtol=1e-4)


def test_an_attention_that_would_change_the_answers_is_left_alone(monkeypatch):
    model = model_of("llama")
    monkeypatch.setattr(one_token, "attention", lambda q, *_: torch.zeros(len(q), 1, q.shape[1], q.shape[3]))
    decoding.quicken(model)
    assert not one_token.attached(model) and model.config._attn_implementation == "sdpa"


def test_a_model_with_another_kind_of_memory_is_refused():
    from transformers import Lfm2Config

    config = Lfm2Config(hidden_size=32, num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(ValueError, match="keeps a state besides keys and values"):
        decoding.check(SimpleNamespace(config=config))
    for family in ("llama", "gpt2", "sliding"):
        decoding.check(model_of(family))


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_a_learned_prefix_stands_before_every_row(method, tmp_path):
    """Against PEFT's own forward over the whole row."""
    base = tiny_decoders.tiny_base(tmp_path / "base")
    model, _, _ = decoder.load(tiny_decoders.tiny_adapter(base, tmp_path / method, method), base)
    prompts = prompts_of(1, 7, 12, vocabulary=1500)
    answers, _ = follow(model, prompts, {0: [1], 2: [0, 2]}, [4, 5, 3])
    plain = decoder.load_base(base)[0]
    assert any(not torch.allclose(alone(model, p), alone(plain, p), atol=1e-2) for p in prompts), "no effect"
    assert [len(answer) for answer in answers] == [4, 5, 3]


def test_drawn_tokens_follow_the_distribution():
    torch.manual_seed(3)
    logits, temperature, top_p = torch.randn(60), 0.8, 0.7
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits[None]))
    p = torch.softmax(warped, -1)[0].double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([pick(logits, temperature, top_p, generator) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=60).double()
    assert counts[p == 0].sum() == 0 and 3 < (p > 0).sum() < 40
    chi = ((counts - 4000 * p)[p > 0] ** 2 / (4000 * p[p > 0])).sum()
    assert chi < 2.5 * (p > 0).sum()                            # the mean of chi^2 is its degrees of freedom


def test_nothing_is_cut_unasked_and_temperature_0_is_greedy():
    flat = torch.zeros(200)
    generator = torch.Generator().manual_seed(0)
    assert len({pick(flat, 1.0, 1.0, generator) for _ in range(3000)}) == 200          # top_k=50 would leave 50
    peak = torch.tensor([0.1, 3.0, 2.9])
    assert {pick(peak, 0, 1.0, generator) for _ in range(20)} == {1}
    assert {pick(peak, 1.0, 1e-9, generator) for _ in range(20)} == {1}                # the most probable always stays
    assert {pick(peak, 1e-4, 1.0, generator) for _ in range(20)} == {1}
