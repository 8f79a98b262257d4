"""Chat and completions as OpenAI's own client meets them, against a real server."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from starlette.testclient import TestClient

from ajuste.models import decoder
from ajuste.serving import app as serving_app
from ajuste.serving import generation as engine
from ajuste.serving.app import make_app
from tests.made.tiny_decoders import ASKED
from tests.serving.test_generation import right, user

JSON = {"content-type": "application/json"}


def client_of(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def client(server):
    with client_of(server[0]) as client:
        yield client


@pytest.fixture
def web(both):
    with TestClient(make_app(both), base_url="http://127.0.0.1", raise_server_exceptions=False) as web:
        yield web


@pytest.fixture(scope="module")
def merged(speakers):
    return decoder.load(speakers["merged"])[:2]


def test_a_chat_whole_and_in_pieces(client, merged):
    text, count = right(*merged, user(ASKED[0]))
    asked = {"model": "assistant", "messages": user(ASKED[0]), "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, "length")
    assert (whole.object, whole.model, whole.usage.completion_tokens) == ("chat.completion", "assistant/2", count)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + count and abs(whole.created - time.time()) < 60

    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage and len(chunks) > 6
    assert all(chunk.object == "chat.completion.chunk" and chunk.model == "assistant/2" for chunk in chunks)


def test_a_text_whole_and_in_pieces(client, merged):
    text, count = right(*merged, ASKED[1])
    asked = {"model": "assistant@champion", "prompt": ASKED[1], "max_tokens": 16, "temperature": 0}
    whole = client.completions.create(**asked)
    assert (whole.choices[0].text, whole.choices[0].finish_reason, whole.object) == (text, "length", "text_completion")
    assert whole.usage.completion_tokens == count
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_names_aliases_versions_and_adapters(client, speakers, merged):
    assert [model.id for model in client.models.list()] == ["assistant", "assistant-adapter"]
    full = decoder.load(speakers["full"])[:2]
    said = {}
    for model, loaded in {"assistant": merged, "assistant@champion": merged, "assistant/2": merged,
                          "assistant-adapter/1": merged, "assistant@challenger": full, "assistant/1": full}.items():
        said[model] = client.chat.completions.create(model=model, messages=user(ASKED[2]), max_tokens=12, temperature=0)
        assert said[model].choices[0].message.content == right(*loaded, user(ASKED[2]), 12)[0]
    assert said["assistant-adapter/1"].model == "assistant-adapter/1"
    assert said["assistant"].choices[0].message.content != said["assistant/1"].choices[0].message.content


def test_a_conversation_parts_of_text_and_nulls_are_taken(client, merged):
    turns = [{"role": "system", "content": "Be brief."}, *user("A film."), {"role": "assistant", "content": "Yes."},
             *user("Is the plot good?")]
    parts = [*turns[:-1], {"role": "user", "content": [{"type": "text", "text": "Is the plot "},
                                                       {"type": "text", "text": "good?"}]}]
    wanted = right(*merged, turns, 8)[0]
    for messages, more in ((turns, {}), (parts, {"seed": None, "stop": None, "n": 1, "presence_penalty": 0.0,
                                                 "logprobs": False, "user": "somebody"})):
        answer = client.chat.completions.create(model="assistant", messages=messages, max_completion_tokens=8,
                                                temperature=0, **more)
        assert answer.choices[0].message.content == wanted


def test_seeds_and_stop_strings(client):
    asked = {"model": "assistant", "messages": user(ASKED[3]), "max_tokens": 16, "temperature": 1.5}
    said = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert said[0] == said[1] != said[2]
    stop = said[0][5:8]
    cut = client.chat.completions.create(**asked, seed=7, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (said[0][: said[0].index(stop)], "stop")
    pieces = client.chat.completions.create(**asked, seed=7, stop=["never said", stop], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == cut.message.content


def test_characters_spread_over_tokens_arrive_whole(client):
    """Random bytes: what is streamed is what is said at once, and no event cuts a character."""
    asked = {"model": "assistant", "prompt": "日本語 🎬 é", "max_tokens": 120, "temperature": 2.0, "seed": 5}
    whole = client.completions.create(**asked).choices[0].text
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole and any(ord(c) > 127 for c in whole)


@pytest.mark.slow
def test_200_requests_of_20_clients_are_all_answered_rightly(server, speakers, merged):
    """Chats and texts, of a merged model and its adapter, whole and streamed, while texts are labelled beside them."""
    address, generation = server
    prompts = [f"{ASKED[i % 6]} {'very ' * (i // 6)}warm" for i in range(40)]
    wanted = {i: right(*merged, prompts[i] if i % 2 else user(prompts[i]))[0] for i in range(40)}

    def ask(number):
        i, stream = number % 40, number % 3 == 0
        how = {"model": ("assistant", "assistant-adapter/1")[number % 2], "max_tokens": 16, "temperature": 0,
               "stream": stream}
        with client_of(address) as client:
            if i % 2:
                said = client.completions.create(prompt=prompts[i], **how)
                return i, "".join(one.choices[0].text for one in said) if stream else said.choices[0].text
            said = client.chat.completions.create(messages=user(prompts[i]), **how)
            if stream:
                return i, "".join(one.choices[0].delta.content or "" for one in said)
            return i, said.choices[0].message.content

    def label(_):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
        connection.request("POST", "/classify", json.dumps({"texts": ["a warm film"]}), JSON)
        return json.loads(connection.getresponse().read())["results"][0]["probability"]

    with ThreadPoolExecutor(20) as pool, ThreadPoolExecutor(2) as beside:
        labels = [beside.submit(label, i) for i in range(10)]
        answers = list(pool.map(ask, range(200)))
        found = [future.result() for future in labels]
        assert found == pytest.approx([found[0]] * len(found), abs=1e-5)  # sums of another batch round in another way
    assert len(answers) == 200 and len(set(wanted.values())) > 15
    for i, text in answers:
        assert text == wanted[i], prompts[i]
    assert generation.counts["finished"] == 200
    assert generation.counts["tokens"] > 2 * generation.counts["steps"], "they were not answered together"


def wait_for(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def slow_down(generation, seconds, monkeypatch):
    """Every step of the generation takes that much longer."""
    step = generation.step

    def slow():
        time.sleep(seconds)
        step()

    monkeypatch.setattr(generation, "step", slow)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_generation(server, stream, monkeypatch):
    address, generation = server
    slow_down(generation, 0.005, monkeypatch)
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    body = {"prompt": "A warm", "max_tokens": 480, "temperature": 0, "stream": stream}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    if stream:
        assert connection.getresponse().read(20).startswith(b"data: {")
    wait_for(lambda: generation.counts["tokens"] > 3)
    connection.close()
    wait_for(lambda: not generation.active())
    assert generation.counts["cancelled"] == 1 and generation.counts["finished"] == 0
    assert generation.counts["tokens"] < 400


def test_the_seconds_of_a_request_are_limited(server, monkeypatch):
    monkeypatch.setattr(engine, "MAX_SECONDS", 0.3)
    address, generation = server
    slow_down(generation, 0.02, monkeypatch)
    with client_of(address) as client:
        client.completions.create(model="assistant", prompt="a", max_tokens=1)          # loads the model
        answer = client.completions.create(model="assistant", prompt="A warm", max_tokens=480, temperature=0)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens < 100


def test_errors_are_the_clients_own_kinds(client):
    asked = {"model": "assistant", "messages": user("a"), "max_tokens": 4}
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**asked | {"model": "gpt-5"})
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert "there is assistant, assistant-adapter" in caught.value.message
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked | {"messages": user("warm " * 600)}, stream=stream)
        assert caught.value.code == "context_length_exceeded" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked, presence_penalty=0.5)
    assert (caught.value.param, caught.value.code) == ("presence_penalty", "unsupported_parameter")


def test_a_fault_in_the_middle_of_a_stream_is_an_error_for_the_client(client, both, server):
    model = both.get("assistant").model
    pieces = client.completions.create(model="assistant", prompt="A warm", max_tokens=400, temperature=0, stream=True)
    next(iter(pieces))

    def fail(*_, **__):
        raise ZeroDivisionError("SECRET")

    model.forward = fail
    with pytest.raises(openai.APIError, match="ZeroDivisionError") as caught:
        list(pieces)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("path, content, status, param, code, message", [
    ("chat/completions", b'{"messages": [', 400, None, "invalid_json", "no valid JSON"),
    ("chat/completions", b"[]", 400, None, None, "dictionary"),
    ("chat/completions", b"", 400, None, None, "required"),
    ("chat/completions", b"{}", 400, "messages", None, "Field required"),
    ("chat/completions", b'{"messages": []}', 400, "messages", None, "at least 1 item"),
    ("chat/completions", b'{"messages": [{"role": "tool", "content": "a"}]}', 400, "messages.0.role", None, "'user'"),
    ("chat/completions", b'{"messages": [{"role": "user"}]}', 400, "messages.0.content", None, "required"),
    ("completions", b'{"prompt": "a", "tools": [{"type": "x"}]}', 400, "tools", "unsupported_parameter", "leave"),
    ("completions", b'{"prompt": "a", "logprobs": 6}', 400, "logprobs", None, "less than or equal to 5"),
    ("completions", b'{"prompt": "a", "n": 17}', 400, "n", None, "less than or equal to 16"),
    ("completions", b'{"prompt": "a", "best_of": 3}', 400, "best_of", "unsupported_parameter", "cannot do that"),
    ("completions", b'{"prompt": "a", "top_k": 50}', 400, "top_k", "unsupported_parameter", "no such parameter"),
    ("completions", b'{"prompt": [1, 2]}', 400, "prompt.0", None, "valid string"),
    ("completions", b'{"prompt": []}', 400, "prompt", None, "at least 1 item"),
    ("completions", b'{"prompt": ["a", "b", "c"], "n": 6}', 400, None, None, "more than 16 answers"),
    ("completions", b'{"prompt": ""}', 400, "prompt", None, "at least 1 character"),
    ("completions", b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens", None, "greater than or equal to 1"),
    ("completions", b'{"prompt": "a", "temperature": NaN}', 400, "temperature", None, "finite"),
    ("completions", b'{"prompt": "a", "temperature": 3}', 400, "temperature", None, "less than or equal to 2"),
    ("completions", b'{"prompt": "a", "top_p": 0}', 400, "top_p", None, "greater than 0"),
    ("completions", b'{"prompt": "a", "stop": ["a", ""]}', 400, "stop.1", None, "at least 1 character"),
    ("completions", b'{"prompt": "a", "stream": "yes"}', 400, "stream", None, "valid boolean"),
    ("completions", b'{"prompt": "a", "seed": 1e400}', 400, "seed", None, "integer"),
    ("completions", b'{"prompt": "a", "model": "../x"}', 404, "model", "model_not_found", "no model `../x` here"),
    ("completions", b'{"prompt": "a", "model": "reviews-classifier"}', 404, "model", "model_not_found", "/classify"),
    ("nothing", b"{}", 404, None, "not_found", "POST /v1/chat/completions"),
])
def test_what_is_wrong_is_one_error_in_openais_shape(web, path, content, status, param, code, message):
    answer = web.post(f"/v1/{path}", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and message in error["message"]
    assert error["code"] == code and (error["param"] == param or str(error["param"]).startswith(f"{param}."))
    assert "\n" not in error["message"] and "Traceback" not in answer.text


def test_bodies_hosts_methods_and_content_types(web, monkeypatch):
    large = json.dumps({"prompt": "g" * serving_app.MAX_BODY_BYTES}).encode()
    for content in (large, iter([large[:3_000_000], large[3_000_000:]])):
        answer = web.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    long = web.post("/v1/completions", json={"prompt": "g" * 100_001})
    assert long.status_code == 400 and "100000 characters" in long.json()["error"]["message"]
    assert web.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert web.get("/v1/completions").status_code == 405
    evil = web.get("/v1/models", headers={"host": "evil.example"})
    assert evil.status_code == 400 and "does not answer for host" in evil.json()["error"]["message"]
    monkeypatch.setattr(engine, "MAX_WAITING", 0)
    busy = web.post("/v1/completions", json={"prompt": "a"})
    assert busy.status_code == 429 and busy.headers["retry-after"] == "2"
    assert (busy.json()["error"]["type"], busy.json()["error"]["code"]) == ("rate_limit_error", "busy")
    wrong = web.post("/classify", json={"text": "a", "model": "assistant"})
    assert wrong.status_code == 404 and "POST /v1/chat/completions" in wrong.json()["error"]


def test_both_kinds_are_served_side_by_side(web):
    assert web.post("/classify", json={"text": "a warm film"}).json()["model"] == "reviews-classifier"
    assert web.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).json()["model"] == "assistant/2"
    body = web.get("/models").json()
    assert body["default"] == {"classifier": "reviews-classifier", "decoder": "assistant"}
    assert [(one["model"], one["kind"]) for one in body["loaded"]] == [
        ("reviews-classifier", "classifier"), ("assistant", "decoder")]
    assert "labels" not in body["loaded"][1]
