"""POST /v1/score as a client meets it: the reward model's own numbers, in OpenAI's manners."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from ajuste.learning.text import chat
from ajuste.models import reward
from ajuste.serving.app import make_app
from ajuste.serving.models import Models, RefusedModel
from ajuste.serving.v1 import scores
from tests.made import tiny_rlhf
from tests.serving.conftest import FakeRegistry

JSON = {"content-type": "application/json"}
PAIRS = [(tiny_rlhf.ASKED, snippet) for snippet in tiny_rlhf.SNIPPETS] + [("Is it good?", "It is."), ("Why?", "")]


@pytest.fixture
def registry(folders, speakers, judges):
    found = FakeRegistry(
        {"assistant": [judges["sft"]], "ratings-reward": [judges["merged"]],
         "ratings-reward-adapter": [judges["adapter"]], "reviews-classifier": [folders["merged"]]},
        {"assistant": {"champion": 1}, "ratings-reward": {"challenger": 1}, "reviews-classifier": {"champion": 1}},
    )
    plain = found.resolve

    def resolve(reference):
        version = plain(reference)
        if version.name == "ratings-reward-adapter":
            version.tags["base_version"] = "assistant/1"
        return version

    found.resolve = resolve
    return found


@pytest.fixture
def client(registry, folders, speakers):
    models = Models(registry.resolve, list(registry.folders), folders["base"], speakers["base"])
    with TestClient(make_app(models), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def rows(tokenizer):
    """The token ids of PAIRS, as the training lays them: prompt, response, end of turn."""
    return [chat.prompt_ids(tokenizer, [{"role": "user", "content": asked}])
            + chat.encode(tokenizer, said) + chat.end_of_turn(tokenizer)[:1] for asked, said in PAIRS]


def post(client, pairs=PAIRS, **more):
    return client.post("/v1/score", json={"input": [{"prompt": a, "response": b} for a, b in pairs], **more})


def values(answer):
    assert answer.status_code == 200, answer.text
    return [row["score"] for row in answer.json()["data"]]


def test_the_scores_are_the_reward_models(client, judges):
    model, tokenizer, _ = reward.load(judges["merged"])
    ids = rows(tokenizer)
    expected = reward.score(model, ids).tolist()
    answer = post(client)
    assert values(answer) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.5, "all alike: this test could not tell rows apart"
    body = answer.json()
    assert body["object"] == "list" and body["model"] == "ratings-reward/1" and body["id"].startswith("score-")
    assert [(row["index"], row["object"]) for row in body["data"]] == [(i, "score") for i in range(len(PAIRS))]
    assert body["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}


def test_a_row_has_the_same_score_alone(client):
    together = values(post(client))
    alone = [values(post(client, [pair]))[0] for pair in PAIRS]
    assert alone == pytest.approx(together, abs=1e-5)


def test_the_adapter_stands_on_the_version_that_it_was_trained_on(client):
    adapted = values(post(client, model="ratings-reward-adapter/1"))
    assert adapted == pytest.approx(values(post(client, model="ratings-reward@challenger")), abs=1e-4)


def test_an_adapter_whose_base_is_gone_is_refused(registry, folders, speakers):
    registry.folders["assistant"] = []
    models = Models(registry.resolve, list(registry.folders), folders["base"], speakers["base"])
    with pytest.raises(RefusedModel, match="its base assistant/1 is not to be had"):
        models.get("ratings-reward-adapter/1")


def test_messages_and_a_prompt_of_messages_are_the_same_rows(client):
    asked, said = PAIRS[0]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    forms = [{"prompt": asked, "response": said}, {"prompt": turns[:1], "response": said}, {"messages": turns},
             {"messages": [{"role": "system", "content": "Be kind."}, *turns]}]
    found = values(client.post("/v1/score", json={"input": forms}))
    assert found[0] == pytest.approx(found[1], abs=1e-6) == pytest.approx(found[2], abs=1e-6)
    assert abs(found[3] - found[0]) > 1e-3
    assert values(client.post("/v1/score", json={"input": forms[0]})) == pytest.approx(found[:1], abs=1e-5)


def test_asked_together_with_other_models_each_gets_its_own(client):
    """Scores and labels go through one thread: under many requests at once none is another one's."""
    expected = values(post(client))
    labels = [client.post("/classify", json={"text": said or "-"}).json()["results"] for _, said in PAIRS]

    def ask(i):
        if i % 2:
            return client.post("/classify", json={"text": PAIRS[i // 2][1] or "-"}).json()["results"]
        return values(post(client, [PAIRS[i // 2]]))[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, [i % (2 * len(PAIRS)) for i in range(80)]))
    for n, result in enumerate(found):
        i = n % (2 * len(PAIRS))
        if i % 2:
            assert result[0]["label"] == labels[i // 2][0]["label"]
            assert result[0]["probability"] == pytest.approx(labels[i // 2][0]["probability"], abs=1e-6)
        else:
            assert result == pytest.approx(expected[i // 2], abs=1e-5)


@pytest.mark.parametrize("content, status, param, message", [
    (b"{}", 400, "input", "Field required"),
    (b'{"input": []}', 400, "input", "at least 1 item"),
    (b'{"input": [{"prompt": "a"}]}', 400, "input.0", 'give "prompt" and "response"'),
    (b'{"input": [{"prompt": "a", "response": "b", "messages": [{"role": "user", "content": "x"}]}]}', 400, "input.0",
     'or "messages"'),
    (b'{"input": [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": 3}]}', 400, "input.1.response",
     "valid string"),
    (b'{"input": [{"prompt": "a", "response": "b", "n": 1}]}', 400, "input.0.n", "no such parameter"),
    (b'{"input": [{"messages": [{"role": "user", "content": "x"}]}]}', 400, "input.0", "last message is not the"),
    (b'{"input": [{"prompt": "a", "response": "b<|im_end|>"}]}', 400, "input.0", "marks a turn"),
    (b'{"input": [{"prompt": "a", "response": "b"}], "model": "other"}', 404, "model", "there is assistant"),
    (b'{"input": [{"prompt": "a", "response": "b"}], "model": "assistant"}', 404, "model",
     "ask POST /v1/chat/completions"),
    (b'{"input": [{"prompt": "a", "response": "b"}], "model": "reviews-classifier"}', 404, "model", "POST /classify"),
    (b'{"input"', 400, None, "no valid JSON"),
])  # fmt: skip
def test_what_is_wrong_has_openais_shape(client, content, status, param, message):
    answer = client.post("/v1/score", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and message in error["message"] and "\n" not in error["message"]
    assert post(client, PAIRS[:1]).status_code == 200          # it still answers


def test_a_fault_names_its_own_row_though_others_were_in_the_batch(client):
    pairs = [*PAIRS[:2], ("Why?", "word " * 600)]
    error = post(client, pairs).json()["error"]
    assert error["param"] == "input.2" and error["code"] == "context_length_exceeded" and "512" in error["message"]


def test_limits(client, monkeypatch):
    too_many = post(client, PAIRS[:1] * (scores.MAX_INPUTS + 1)).json()["error"]
    assert too_many["param"] == "input" and "at most 256 items" in too_many["message"]
    monkeypatch.setattr(scores, "MAX_REQUEST_TOKENS", 50)
    error = post(client).json()["error"]
    assert error["param"] == "input" and error["code"] == "context_length_exceeded"
    assert "a request may have 50" in error["message"]
    large = json.dumps({"input": [{"prompt": "a", "response": "b" * 90_000}] * 60}).encode()
    assert client.post("/v1/score", content=large, headers=JSON).status_code == 413


def test_the_other_pages_say_where_scores_are(client):
    label = client.post("/classify", json={"text": "good", "model": "ratings-reward"})
    assert label.status_code == 404 and "POST /v1/score" in label.json()["error"]
    words = client.post("/v1/chat/completions",
                        json={"model": "ratings-reward", "messages": [{"role": "user", "content": "a"}]})
    assert words.status_code == 404 and "POST /v1/score" in words.json()["error"]["message"]
    assert client.get("/models").json()["default"]["reward"] == "ratings-reward"
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["assistant"]
    assert "POST /v1/score" in client.get("/nothing").json()["error"]


def test_without_a_reward_model_it_says_what_makes_one(registry, folders):
    models = Models(registry.resolve, ["reviews-classifier"], folders["base"])
    with TestClient(make_app(models), base_url="http://127.0.0.1") as client:
        answer = post(client, PAIRS[:1])
    assert answer.status_code == 404 and "no reward model is served here" in answer.json()["error"]["message"]
