"""Deadlines, clients that go away, a full queue, and where texts are tokenized; chat templates too."""

import http.client
import json
import threading
import time

import pytest
from starlette.testclient import TestClient

from ajuste.learning.text import chat
from ajuste.serving import batches, generation
from ajuste.serving.app import make_app
from ajuste.serving.batches import Batcher
from ajuste.serving.door import patience
from ajuste.serving.loading import Served
from ajuste.serving.models import Models
from tests.made import tiny_rlhf
from tests.serving.conftest import FakeRegistry, running
from tests.serving.test_generation import user

JSON = {"content-type": "application/json"}
CLASSIFY = "/classify", {"texts": ["a warm film", "a dull one"]}
SCORE = "/v1/score", {"input": [{"prompt": tiny_rlhf.ASKED, "response": "It is."}] * 2}


@pytest.fixture
def every(folders, speakers, judges):
    """Models of each kind."""
    registry = FakeRegistry(
        {"assistant": [speakers["merged"]], "ratings-reward": [judges["merged"]],
         "reviews-classifier": [folders["merged"]]},
        {"assistant": {"champion": 1}, "ratings-reward": {"champion": 1}, "reviews-classifier": {"champion": 1}})
    return Models(registry.resolve, list(registry.folders), folders["base"], speakers["base"])


@pytest.fixture
def client(every):
    with TestClient(make_app(every), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def message(answer):
    error = answer.json()["error"]
    return error["message"] if isinstance(error, dict) else error


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("asked", [CLASSIFY, SCORE], ids=["classify", "score"])
def test_past_the_deadline_the_answer_is_504_and_the_rest_is_not_computed(client, every, held, monkeypatch, asked):
    path, body = asked
    held.go.release()
    assert client.post(path, json=body).status_code == 200              # loaded
    monkeypatch.setattr(patience, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(batches, "FIRST_TOKENS", 1)
    monkeypatch.setattr(Batcher, "_learn", lambda *_: None)
    client.app.parts.batcher._budgets.clear()
    held.sizes.clear()
    answer = client.post(path, json=body)
    assert answer.status_code == 504 and "no answer within" in message(answer), answer.text
    if path.startswith("/v1/"):
        assert answer.json()["error"]["code"] == "timeout"
    assert client.app.parts.batcher.load() == {"requests": 0, "tokens": 0}
    held.free()
    monkeypatch.setattr(patience, "MAX_SECONDS", 20)
    assert client.post(path, json=body).status_code == 200
    assert held.sizes == [1, 1, 1], "the late request's second row was computed for nobody"


def test_a_client_that_goes_away_costs_no_more_than_the_slice_under_way(every, held, monkeypatch):
    monkeypatch.setattr(batches, "FIRST_TOKENS", 1)
    monkeypatch.setattr(Batcher, "_learn", lambda *_: None)
    every.get("reviews-classifier")
    app = make_app(every)
    with running(app) as address:
        def connection():
            return http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)

        leaves, stays = connection(), connection()
        leaves.request("POST", "/classify", json.dumps({"texts": ["a warm film"] * 100}), JSON)
        assert held.entered.acquire(timeout=20)
        leaves.close()
        queue = app.parts.batcher
        until(lambda: queue.load()["requests"] == 0)
        stays.request("POST", "/classify", json.dumps({"text": "a dull one"}), JSON)
        until(lambda: queue.load()["requests"] == 1)
        held.free()
        assert stays.getresponse().status == 200 and held.sizes == [1, 1]
        stays.close()


@pytest.mark.parametrize("asked", [CLASSIFY, SCORE], ids=["classify", "score"])
def test_a_full_queue_is_429_and_says_when_to_come_again(client, held, asked):
    path, body = asked
    queue = client.app.parts.batcher
    queue._max_tokens = 100
    place = queue.open("somebody", 80)
    place.tokens = queue._tokens = 100
    answer = client.post(path, json=body)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1, answer.text
    assert "100 tokens are waiting" in message(answer) and held.sizes == []
    queue.drop(place)


def test_texts_templates_and_rows_are_made_outside_of_the_inference_thread(client, monkeypatch):
    """Nor on the event loop, which all requests share: a thread of its own does it."""
    threads = []

    def seen(plain):
        def call(*arguments, **how):
            threads.append((plain.__name__, threading.current_thread().name))
            return plain(*arguments, **how)
        return call

    for path, body in (CLASSIFY, SCORE):
        assert client.post(path, json=body).status_code == 200          # loads, with its smoke request
    assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
    monkeypatch.setattr(Served, "token_ids", seen(Served.token_ids))
    monkeypatch.setattr(chat, "_render", seen(chat._render))
    monkeypatch.setattr(generation, "prompt_of", seen(generation.prompt_of))
    for path, body in (CLASSIFY, SCORE, ("/v1/chat/completions", {"messages": user("Is it?"), "max_tokens": 3})):
        assert client.post(path, json=body).status_code == 200
    assert {name for name, _ in threads} == {"token_ids", "_render", "prompt_of"}
    assert {thread.rpartition("_")[0] for _, thread in threads} == {"tokenizing"}


def test_a_long_text_is_tokenized_in_turns_with_the_others(client, monkeypatch):
    monkeypatch.setattr(patience, "SLICE_CHARS", 30)
    parts, plain = [], Served.token_ids

    def token_ids(served, texts):
        parts.append(list(texts))
        return plain(served, texts)

    monkeypatch.setattr(Served, "token_ids", token_ids)
    texts = ["a warm film", "a dull one", "a film of forty characters or a few more", "warm", "dull"]
    whole = client.post("/classify", json={"texts": texts}).json()["results"]
    assert parts == [texts[:2], texts[2:3], texts[3:]]
    alone = [client.post("/classify", json={"text": text}).json()["results"][0] for text in texts]
    for one, other in zip(whole, alone, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_a_prompt_longer_than_any_context_is_refused_before_it_is_tokenized(client, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    for path, body in (SCORE, ("/v1/completions", {"prompt": "a", "max_tokens": 1})):
        assert client.post(path, json=body).status_code == 200          # loaded
    monkeypatch.setattr(chat, "_check", never)
    long = [turn for _ in range(2) for turn in (*user("g" * 70_000), {"role": "assistant", "content": "Yes."})]
    for path, body, param in (("/v1/chat/completions", {"messages": long[:-1]}, "messages"),
                              ("/v1/score", {"input": [{"messages": long}]}, "input.0")):
        error = client.post(path, json=body).json()["error"]
        assert (error["param"], error["code"]) == (param, "context_length_exceeded"), error
        assert "14000" in error["message"] and "characters" in error["message"]


def test_many_encode_while_the_inference_thread_decodes(every):
    """One tokenizer, two threads: neither meets the other's settings (`Already borrowed`)."""
    tokenizer, ended, wrong = every.get("assistant").tokenizer, threading.Event(), []
    ids = tokenizer("a warm film about people")["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)

    def decode():
        while not ended.is_set():
            try:
                if tokenizer.decode(ids, skip_special_tokens=True) != text:
                    wrong.append("text")
            except RuntimeError as error:
                wrong.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    for _ in range(300):
        chat.prompt_ids(tokenizer, user("a warm film about people"))
        tokenizer("a warm film " * 50)
    ended.set()
    thread.join(20)
    assert wrong == []
