"""What OpenAI's client sends unasked, log-probabilities, several choices, and what is refused: on a real server."""

import http.client
import json

import openai
import pytest
import torch

from ajuste.learning.text import chat
from ajuste.models import decoder
from ajuste.serving.tokens import bytes_of, letters
from ajuste.serving.v1 import completions
from tests.made.tiny_decoders import ASKED
from tests.serving.test_completions import wait_for
from tests.serving.test_generation import right, user

LONE = "\ud800"
NEUTRAL = {
    "tools": [], "parallel_tool_calls": False, "service_tier": "auto", "modalities": ["text"], "tool_choice": "none",
    "metadata": {"run": "a"}, "store": False, "reasoning_effort": None, "response_format": {"type": "text"}, "n": 1,
    "top_logprobs": 0, "logprobs": False, "stream_options": {"include_usage": False, "include_obfuscation": False},
    "functions": [], "function_call": "none", "logit_bias": {}, "frequency_penalty": 0, "user": "me",
    "prediction": None, "audio": None, "stop": [], "prompt_cache_key": "k", "safety_identifier": "s",
}  # fmt: skip
GREEDY = {"model": "assistant", "max_tokens": 12, "temperature": 0}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def merged(speakers):
    return decoder.load(speakers["merged"])[:2]


def post(address, path, body):
    """Status and JSON; the body goes out as it is written, escapes and all."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_what_asks_for_nothing_changes_nothing(client, server, merged):
    turns = [{"role": "system", "content": "Be brief."}, *user("A film."), {"role": "assistant", "content": "Yes."},
             *user(ASKED[0])]
    wanted = right(*merged, turns, 12)[0]
    turns[0] |= {"role": "developer"}
    turns[1] |= {"name": "ana"}
    turns[2] |= {"tool_calls": [], "annotations": [], "refusal": None, "audio": None, "function_call": None}
    body = GREEDY | {"messages": turns} | NEUTRAL
    for name, value in NEUTRAL.items():
        status, answer = post(server[0], "/v1/chat/completions", GREEDY | {"messages": turns, name: value})
        assert status == 200 and answer["choices"][0]["message"]["content"] == wanted, name
    status, answer = post(server[0], "/v1/chat/completions", body)
    assert status == 200 and answer["choices"][0]["message"]["content"] == wanted
    said = client.chat.completions.create(**GREEDY, messages=turns, metadata={"a": "b"}, parallel_tool_calls=False)
    assert said.choices[0].message.content == wanted and said.choices[0].logprobs is None
    again = client.chat.completions.create(**GREEDY, messages=[*turns, said.choices[0].message.model_dump(),
                                                               *user("And?")])
    assert again.choices[0].message.content, "an answer goes back as the client has it"


@pytest.mark.parametrize("more, param, said", [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "calls no tools"),
    ({"response_format": {"type": "json_object"}}, "response_format", "does not constrain the answer to JSON"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format", "or a schema"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "leave it out"),
    ({"service_tier": "flex"}, "service_tier", "leave it out"),
    ({"modalities": ["text", "audio"]}, "modalities", "leave it out"),
    ({"store": True}, "store", "stores no answers"),
    ({"top_logprobs": 3}, None, "needs `logprobs: true`"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "False"),
    ({"typical_p": 0.9}, "typical_p", "no such parameter"),
    ({"messages": [*user("a"), {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}]},
     "messages.1.tool_calls", "has no tools"),
    ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages.0.weight", "no such parameter"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages.0.role", "developer"),
    ({"messages": [*user("a"), *user("b")]}, "messages", "user and assistant take turns"),
    ({"messages": [*user("a"), {"role": "system", "content": "b"}]}, "messages", "after a system message"),
    ({"messages": [{"role": "assistant", "content": "a"}, *user("b")]}, "messages", "the user first"),
    ({"messages": [*user("a"), {"role": "assistant", "content": "b"}]}, "messages", "nothing to answer"),
])
def test_what_is_not_done_is_refused_by_name(server, more, param, said):
    status, answer = post(server[0], "/v1/chat/completions", GREEDY | {"messages": user("a")} | more)
    error = answer["error"]
    assert status == 400 and said in error["message"] and error["param"] == param, error
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]


@pytest.mark.parametrize("body", [
    {"messages": user(f"a{LONE}")}, {"messages": user("a"), "stop": [LONE]}, {"messages": user("a"), "model": LONE},
    {"messages": user("a"), LONE: 1}, {"messages": [{"role": LONE, "content": "a"}]},
    {"messages": [{"role": "user", "content": "a", LONE: 2}]}, {"messages": [{"role": "user", "content": LONE,
                                                                              "name": LONE}]},
])
def test_half_a_surrogate_pair_is_a_fault_of_the_request(server, body):
    status, answer = post(server[0], "/v1/chat/completions", {"max_tokens": 2} | body)
    assert status in (400, 404) and answer["error"]["type"] == "invalid_request_error", answer
    for path, wrong in (("/v1/completions", {"prompt": LONE}), ("/classify", {"text": f"a{LONE}"}),
                        ("/classify", {"text": "a", LONE: 1}), ("/classify", {"text": "a", "model": LONE})):
        assert post(server[0], path, wrong)[0] in (400, 404, 422), (path, wrong)


def test_models_are_found_by_each_of_their_names(client):
    for name in ("assistant", "assistant@champion", "assistant/1", "assistant-adapter/1"):
        found = client.models.retrieve(name)
        assert (found.id, found.object) == (name, "model")
    for name in ("gpt-5", "assistant/9", "reviews-classifier", "../x"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code in ("model_not_found", "not_found")


def test_temperature_near_0_is_greedy(client, merged):
    wanted = right(*merged, user(ASKED[1]), 12)[0]
    for temperature in (1e-308, 5e-324, 1e-20, 1e-6):
        said = client.chat.completions.create(**GREEDY | {"temperature": temperature}, messages=user(ASKED[1]))
        assert said.choices[0].message.content == wanted, temperature


@torch.inference_mode()
def logp_of(merged, prompt, count):
    """Greedy tokens of the row alone, with log softmax of their logits [T, V], by plain forward passes."""
    model, tokenizer = merged
    ids = chat.prompt_ids(tokenizer, prompt) if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]
    rows = []
    for _ in range(count):
        rows.append(torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1))
        ids = [*ids, int(rows[-1].argmax())]
    return ids[-count:], torch.stack(rows)


def test_log_probabilities_of_a_chat_are_those_of_the_model(client, merged):
    tokens, logp = logp_of(merged, user(ASKED[0]), 8)
    best, _ = logp.topk(3)
    asked = {"messages": user(ASKED[0]), "logprobs": True, "top_logprobs": 3, **GREEDY | {"max_tokens": 8}}
    whole = client.chat.completions.create(**asked).choices[0]
    content = whole.logprobs.content
    right_ones = [float(logp[i, t]) for i, t in enumerate(tokens)]
    assert [one.logprob for one in content] == pytest.approx(right_ones, abs=1e-3)
    assert [[top.logprob for top in one.top_logprobs] for one in content] == [
        pytest.approx(row.tolist(), abs=1e-3) for row in best]
    assert all(one.token == one.top_logprobs[0].token for one in content)
    assert bytes(sum((one.bytes for one in content), [])).decode("utf-8", "replace") == whole.message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [one for chunk in chunks for choice in chunk.choices if choice.logprobs
                for one in choice.logprobs.content]
    assert streamed == content
    hot = client.chat.completions.create(**asked | {"temperature": 1.7, "seed": 3, "top_logprobs": 0}).choices[0]
    assert all(one.top_logprobs == [] and one.logprob <= 0 for one in hot.logprobs.content)
    assert any(one.token != first.token for one, first in zip(hot.logprobs.content, content, strict=True))


def test_log_probabilities_of_a_text(client, merged):
    tokens, logp = logp_of(merged, ASKED[1], 8)
    asked = {"prompt": ASKED[1], "logprobs": 2, **GREEDY | {"max_tokens": 8}}
    whole = client.completions.create(**asked).choices[0]
    found = whole.logprobs
    assert found.token_logprobs == pytest.approx([float(logp[i, t]) for i, t in enumerate(tokens)], abs=1e-3)
    assert [len(top) for top in found.top_logprobs] == [2] * 8
    for offset, token in zip(found.text_offset, found.tokens, strict=True):
        assert token.startswith("bytes:") or whole.text[offset:].startswith(token)
    streamed = [choice.logprobs for chunk in client.completions.create(**asked, stream=True)
                for choice in chunk.choices if choice.logprobs]
    assert sum((one.token_logprobs for one in streamed), []) == found.token_logprobs
    assert sum((one.text_offset for one in streamed), []) == found.text_offset
    assert client.completions.create(**asked | {"logprobs": 0}).choices[0].logprobs.tokens == found.tokens


def test_several_choices_each_with_a_seed_of_its_own(client, server):
    asked = {"model": "assistant", "max_tokens": 10, "temperature": 1.5, "messages": user(ASKED[2])}
    alone = [client.chat.completions.create(**asked, seed=seed) for seed in (7, 8, 9)]
    texts = [one.choices[0].message.content for one in alone]
    many = client.chat.completions.create(**asked, seed=7, n=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert [choice.message.content for choice in many.choices] == texts and len(set(texts)) == 3
    assert many.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert many.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    said, ends = ["", "", ""], []
    for chunk in client.chat.completions.create(**asked, seed=7, n=3, stream=True, logprobs=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert said == texts and sorted(ends) == [0, 1, 2]
    asked = {"model": "assistant", "max_tokens": 10, "temperature": 1.5, "prompt": "A warm", "seed": 7}
    texts = [choice.text for choice in client.completions.create(**asked, n=2).choices]
    said = ["", ""]
    for chunk in client.completions.create(**asked, n=2, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert said == texts
    wait_for(lambda: not server[1].active())


def test_several_prompts_are_answered_in_their_order(client, merged):
    wanted = [right(*merged, prompt, 12)[0] for prompt in ASKED[:3]]
    many = client.completions.create(**GREEDY, prompt=ASKED[:3], n=2)
    assert [choice.text for choice in many.choices] == [text for text in wanted for _ in range(2)]
    alone = [client.completions.create(**GREEDY, prompt=[prompt]) for prompt in ASKED[:3]]
    assert [one.choices[0].text for one in alone] == wanted
    assert many.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    said = ["", "", ""]
    for chunk in client.completions.create(**GREEDY, prompt=ASKED[:3], stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert said == wanted


def test_frames_of_a_stream_hold_no_line_separator_but_their_own():
    content = {"text": "a\u2028b\u2029c\x85d\r\ne\x0bf\x1cg é"}
    frame = completions._event(content)
    assert len(frame.splitlines()) == 2 and frame.endswith("\n\n") and json.loads(frame[6:]) == content


def test_the_bytes_that_a_token_stands_for():
    back = {byte: letter for letter, byte in letters().items()}
    assert len(back) == 256
    for text in (" the", "é", "\n", "日"):
        assert bytes_of("".join(back[byte] for byte in text.encode()), True).decode() == text
    assert bytes_of("<0xE6>", False) == b"\xe6" and bytes_of("\u2581the", False) == b" the"
