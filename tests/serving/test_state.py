"""Who looks after the server: /livez, /readyz, /metrics, request ids, JSON logs, and what /openapi.json promises."""

import io
import json
import logging
import threading

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ajuste.serving.app import make_app
from ajuste.serving.door import first_loads, ledger
from ajuste.serving.pages import state
from tests.serving.test_generation import user
from tests.serving.test_patience import until


@pytest.fixture
def client(both):
    with TestClient(make_app(both), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def metrics(client):
    """Every sample, by its name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {(sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text) for sample in family.samples}


def able(client, path):
    answer = client.get(path)
    assert set(answer.json()) == {"status"} and (answer.status_code == 200) == (answer.json()["status"] == "ok")
    return answer.status_code, answer.json()["status"]


def test_ready_is_who_has_a_model_and_alive_is_who_answers(client):
    assert able(client, "/livez") == (200, "ok") and able(client, "/readyz") == (503, "no model is loaded")
    client.post("/classify", json={"text": "warm"})
    assert able(client, "/readyz") == (200, "ok")
    client.app.parts.ending = True
    assert able(client, "/readyz") == (503, "the server is ending") and able(client, "/livez")[0] == 200


def test_a_stuck_inference_thread_is_seen_while_health_goes_on(client, held, monkeypatch):
    held.go.release()
    client.post("/classify", json={"text": "warm"})
    asking = threading.Thread(target=lambda: client.post("/classify", json={"text": "dull"}))
    asking.start()
    held.entered.acquire(timeout=20)
    assert held.entered.acquire(timeout=20)
    assert able(client, "/readyz")[0] == able(client, "/livez")[0] == 200          # at its work, not long
    monkeypatch.setattr(state, "BEHIND_SECONDS", 0.0)
    assert able(client, "/readyz")[0] == 503 and able(client, "/livez")[0] == 200
    monkeypatch.setattr(state, "STUCK_SECONDS", 0.0)
    status, why = able(client, "/livez")
    assert status == 503 and "at one piece of work" in why and client.get("/health").status_code == 200
    held.free()
    asking.join(20)
    until(lambda: able(client, "/livez")[0] == 200)  # the answer leaves before the thread lays its work down


def test_an_inference_thread_that_ended_is_dead(client, monkeypatch):
    batcher = client.app.parts.batcher
    monkeypatch.setattr(batcher, "_slice", lambda: exec("raise SystemExit"))
    job = batcher.open("m", 1)
    batcher.submit(job, [[1]])
    batcher._thread.join(20)
    assert able(client, "/livez") == (503, "the inference thread has ended")


def test_metrics_count_what_was_asked_by_page_and_status(client):
    client.post("/classify", json={"texts": ["a warm film", "a dull one"]})
    client.post("/classify", json={"text": "warm", "model": "reviews-classifier/9"})
    client.get("/nothing/secret")
    client.request("BREW", "/classify")
    client.post("/v1/chat/completions", json={"messages": user("Is it?"), "max_tokens": 3, "temperature": 0})
    found = metrics(client)

    def requests(path, status, method="POST"):
        return found.get(("ajuste_requests_total", ("method", method), ("path", path), ("status", str(status))))

    assert requests("/classify", 200) == requests("/classify", 404) == requests("/v1/chat/completions", 200) == 1
    assert requests("other", 404, "GET") == 1 and requests("other", 405, "other") or requests("/classify", 405, "other")
    assert found["ajuste_request_seconds_count", ("path", "/classify")] >= 2
    assert found["ajuste_tokens_total", ("kind", "labelled")] > 4 and found["ajuste_generated_tokens_total",] == 3
    assert found["ajuste_models_loaded",] == 2 and found["ajuste_models_bytes",] > 10_000
    assert found["ajuste_queue_tokens",] == found["ajuste_slow_clients_total",] == 0
    assert found["ajuste_busy_seconds",] >= 0  # how long it has been at work: of a clock, which may still run
    assert "secret" not in client.get("/metrics").text


def test_every_answer_has_an_id_its_own_or_the_requests(client):
    ids = {client.get("/health").headers["x-request-id"], client.get("/nothing").headers["x-request-id"],
           client.post("/classify", content=b"{").headers["x-request-id"]}
    assert len(ids) == 3 and all(len(one) == 32 for one in ids)
    assert client.get("/health", headers={"x-request-id": "mine-1.2"}).headers["x-request-id"] == "mine-1.2"
    assert client.get("/health", headers={"host": "evil.example"}).headers["x-request-id"]
    for bad in ("a b", "x" * 65, "a\tb", "é".encode()):
        assert len(client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]) == 32


@pytest.fixture
def logged():
    """JSON lines; the loggers as they were afterwards."""
    names = ("ajuste.serving", "uvicorn", "ajuste.serving.requests")
    before = [(one := logging.getLogger(name), one.handlers, one.propagate, one.level) for name in names]
    stream = io.StringIO()
    ledger.log_json(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_json_lines_say_who_asked_what_and_hold_no_text(client, logged, monkeypatch):
    client.post("/classify?key=SECRET", json={"text": "SECRET"}, headers={"x-request-id": "one"})
    client.get("/SECRET")
    monkeypatch.setattr("ajuste.serving.pages.labels.answers", lambda *_: {}["SECRET"])
    client.post("/classify", json={"text": "SECRET"}, headers={"x-request-id": "two"})
    lines = logged()
    assert "SECRET" not in json.dumps(lines)
    one, other, fault = [line for line in lines if line["logger"] == "ajuste.serving.requests"]
    assert (one["request"], one["method"], one["path"], one["status"]) == ("one", "POST", "/classify", 200)
    assert one["message"] == "POST /classify 200" and one["seconds"] >= 0 and one["client"] and one["time"][-1] == "Z"
    assert (other["path"], other["status"]) == ("other", 404) and fault["status"] == 500
    assert [line["request"] for line in lines if line["message"] == "KeyError while answering"] == ["two"]


def test_without_being_asked_no_line_is_written(client, caplog):
    client.post("/classify", json={"text": "warm"})
    assert [record for record in caplog.records if record.name.startswith("ajuste.serving.requests")] == []


# --- what /openapi.json promises --------------------------------------------------------------------------------------


def promised(document, path, method, answer, content_type="application/json"):
    """The schema of that answer, with all that it names."""
    responses = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, f"{answer.status_code} of {method} {path} is not in /openapi.json"
    schema = responses[str(answer.status_code)]["content"][content_type]["schema"]
    return schema | {"components": document["components"]}


@pytest.mark.parametrize("path, body", [
    ("/classify", {"text": "warm"}), ("/classify", {"text": "warm", "model": "other"}), ("/classify", {}),
    ("/classify", None), ("/v1/score", {"input": [{"prompt": "a", "response": "b"}]}),
    ("/v1/chat/completions", {"messages": user("Is it?"), "max_tokens": 3, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": user("Is it?"), "max_tokens": 3, "n": 2}),
    ("/v1/chat/completions", {"messages": user("Is it?"), "max_tokens": 600}), ("/v1/chat/completions", {"n": 1}),
    ("/v1/completions", {"prompt": "warm", "max_tokens": 3, "logprobs": 2}),
    ("/v1/completions", {"prompt": "warm", "max_tokens": 3}), ("/v1/completions", {"prompt": "a", "model": "other"}),
], ids=str)
def test_each_status_is_promised_and_comes_with_its_schema(client, path, body):
    document = client.get("/openapi.json").json()
    answer = client.post(path, **({"json": body} if body is not None else {"content": b"{"}))
    jsonschema.validate(answer.json(), promised(document, path, "post", answer))
    assert answer.json() != {}


@pytest.mark.parametrize("path", ["/models", "/health", "/livez", "/readyz", "/v1/models"])
def test_so_it_is_with_the_pages_that_are_read(client, path):
    document = client.get("/openapi.json").json()
    answer = client.get(path)
    jsonschema.validate(answer.json(), promised(document, path, "get", answer))


def test_no_page_promises_what_fastapi_would_have_said(client):
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(document)
    assert "422" in document["paths"]["/classify"]["post"]["responses"]
    assert "422" not in document["paths"]["/v1/score"]["post"]["responses"]
    for path in ("/classify", "/v1/score", "/v1/chat/completions", "/v1/completions"):
        assert {"400", "404", "413", "415", "429", "500", "503", "504"} <= set(
            document["paths"][path]["post"]["responses"])


# --- versions that nobody serves --------------------------------------------------------------------------------------


def test_a_client_may_have_so_many_unserved_versions_loaded_and_no_more(models, monkeypatch):
    monkeypatch.setattr(first_loads, "MAX_LOADS", 2)
    now = [1000.0]
    monkeypatch.setattr(first_loads.time, "monotonic", lambda: now[0])
    with TestClient(make_app(models), base_url="http://127.0.0.1") as client:
        def ask(reference):
            return client.post("/classify", json={"text": "warm", "model": reference})

        for _ in range(3):
            assert ask("reviews-classifier-adapter/9").status_code == 404       # what does not exist costs nothing
        assert ask("reviews-classifier").status_code == 200                     # what is served costs nothing
        assert ask("reviews-classifier/2").status_code == 200                   # nor does its number
        assert ask("reviews-classifier/1").status_code == ask("reviews-classifier-adapter/1").status_code == 200
        refused = ask("reviews-classifier-adapter/2")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "61", refused.text
        assert "2 versions that nobody serves" in refused.json()["error"]
        assert ask("reviews-classifier/1").status_code == ask("reviews-classifier").status_code == 200
        now[0] += 61
        assert ask("reviews-classifier-adapter/2").status_code == 200
