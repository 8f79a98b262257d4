"""The HTTP server as a client meets it."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from starlette.testclient import TestClient

from ajuste.models import classifier
from ajuste.serving.app import make_app
from ajuste.serving.pages import labels
from tests.made.tiny_classifiers import LABELS, TEXTS

torch.set_num_threads(1)
JSON = {"content-type": "application/json"}


@pytest.fixture
def client(models):
    with TestClient(make_app(models), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def expected(path, base=None):
    loaded = classifier.load_adapter(base, path) if base else classifier.load(path)
    return classifier.predict(*loaded, TEXTS)


def test_texts_in_labels_with_probabilities_out_and_who_answered(client, folders):
    answer = client.post("/classify", json={"texts": TEXTS})
    assert answer.status_code == 200
    body = answer.json()
    results = body.pop("results")
    assert body == {"model": "reviews-classifier", "version": "2", "alias": "challenger", "strategy": "lora"}
    for row, result in zip(expected(folders["merged"]), results, strict=True):
        assert list(result["probabilities"]) == LABELS
        assert torch.allclose(torch.tensor(list(result["probabilities"].values())), row, atol=1e-6)
        assert result["label"] == LABELS[row.argmax()]
        assert result["probability"] == max(result["probabilities"].values())
    assert len({result["label"] for result in results}) == 2, "one label for all texts: this test could not fail"


def test_one_text_is_the_batch_of_one(client):
    single = [client.post("/classify", json={"text": text}).json()["results"][0] for text in TEXTS]
    batch = client.post("/classify", json={"texts": TEXTS}).json()["results"]
    for one, other in zip(single, batch, strict=True):
        assert one["label"] == other["label"] and one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_the_request_picks_the_model(client, folders):
    wanted = {
        "reviews-classifier@challenger": ("2", "challenger", expected(folders["merged"])),
        "reviews-classifier/1": ("1", None, expected(folders["full"])),
        "reviews-classifier-adapter/1": ("1", None, expected(folders["adapter"], folders["base"])),
        "reviews-classifier-adapter/2": ("2", None, expected(folders["adapter3"], folders["base"])),
        "reviews-classifier-adapter/3": ("3", None, expected(folders["adapter_mean"], folders["base"])),
    }
    for reference, (version, alias, rows) in wanted.items():
        body = client.post("/classify", json={"model": reference, "texts": TEXTS}).json()
        assert (body["version"], body["alias"]) == (version, alias)
        found = torch.tensor([list(result["probabilities"].values()) for result in body["results"]])
        assert torch.allclose(found, rows, atol=1e-6), reference


def test_many_at_once_each_get_their_own_models_answer(client, folders):
    """Adapters of one base asked at the same time from many threads: no answer is another one's."""
    right = {f"reviews-classifier-adapter/{n}": expected(folders[name], folders["base"])
             for n, name in ((1, "adapter"), (2, "adapter3"), (3, "adapter_mean"))}
    right["reviews-classifier/1"] = expected(folders["full"])
    asked = [(list(right)[i % 4], i % len(TEXTS)) for i in range(120)]

    def ask(what):
        reference, i = what
        return client.post("/classify", json={"model": reference, "text": TEXTS[i]})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, asked))
    for (reference, i), answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200
        body = answer.json()
        assert reference == f"{body['model']}/{body['version']}"
        found = torch.tensor(list(body["results"][0]["probabilities"].values()))
        assert torch.allclose(found, right[reference][i], atol=1e-6)


def test_health_and_models(client):
    assert client.get("/health").json() == {"status": "ok", "loaded": [], "refused": {}, "generating": 0,
                                           "waiting": 0, "queue": {"requests": 0, "tokens": 0}, "request_log": None,
                                           "filtered": None}
    client.post("/classify", json={"text": "warm"})
    assert client.get("/health").json()["loaded"] == ["reviews-classifier/2"]
    body = client.get("/models").json()
    assert body["default"] == {"classifier": "reviews-classifier"}
    assert body["names"] == ["reviews-classifier", "reviews-classifier-adapter"]
    assert body["loaded"] == [{"model": "reviews-classifier", "version": "2", "alias": "challenger", "strategy": "lora",
                               "kind": "classifier", "labels": LABELS, "max_tokens": 32, "base": "tiny"}]


@pytest.mark.parametrize("content, status, message", [
    (b'{"text": "a"', 400, "no valid JSON"),
    (b"", 422, "body"),
    (b'{"text": "\xff"}', 400, "parsing the body"),
    (b"[" * 100_000, 400, "parsing the body"),
    (b"[]", 422, "dictionary"),
    (b"{}", 422, 'either "text" or "texts"'),
    (b'{"text": "a", "texts": ["b"]}', 422, 'either "text" or "texts"'),
    (b'{"text": 3}', 422, "text: Input should be a valid string"),
    (b'{"texts": ["a", null]}', 422, "texts.1: Input should be a valid string"),
    (b'{"texts": []}', 422, "at least 1 item"),
    (b'{"texts": ["good", "  \\n"]}', 422, "text 1 is empty"),
    (b'{"text": "\\ud800"}', 422, "half of a surrogate pair"),
    (b'{"text": "a", "modell": "x"}', 422, "modell: Extra inputs are not permitted"),
    (b'{"text": "a", "model": "other"}', 404, "there is reviews-classifier, reviews-classifier-adapter"),
    (b'{"text": "a", "model": "reviews-classifier/77"}', 404, "no version 77"),
    (b'{"text": "a", "model": "../../etc/passwd"}', 404, "no model `../../etc/passwd` here"),
])
def test_what_is_wrong_with_a_request_is_one_json_line(client, content, status, message):
    answer = client.post("/classify", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and message in answer.json()["error"]
    assert "Traceback" not in answer.text and "\n" not in answer.json()["error"]
    assert client.post("/classify", json={"text": "good"}).status_code == 200       # it still answers


def test_limits_on_rows_length_and_size(client):
    assert client.post("/classify", json={"texts": ["good"] * labels.MAX_TEXTS}).status_code == 200
    too_many = client.post("/classify", json={"texts": ["good"] * (labels.MAX_TEXTS + 1)})
    assert too_many.status_code == 422 and "at most 256 items" in too_many.json()["error"]
    assert client.post("/classify", json={"text": "g" * labels.MAX_CHARS}).status_code == 200
    too_long = client.post("/classify", json={"text": "g" * (labels.MAX_CHARS + 1)})
    assert too_long.status_code == 422 and "at most 20000 characters" in too_long.json()["error"]
    body = json.dumps({"texts": ["g" * 20_000] * 250}).encode()
    declared = client.post("/classify", content=body, headers=JSON)
    chunked = client.post("/classify", content=iter([body[:3_000_000], body[3_000_000:]]), headers=JSON)
    for answer in (declared, chunked):
        assert answer.status_code == 413 and "in several requests" in answer.json()["error"]


def test_another_path_method_or_host_is_refused(client):
    assert client.get("/").status_code == 404 and "POST /classify" in client.get("/").json()["error"]
    form = client.post("/classify", content=b'{"text": "good"}', headers={"content-type": "text/plain"})
    assert form.status_code == 415 and "application/json" in form.json()["error"]
    assert client.get("/classify").status_code == 405
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        refused = client.get("/health", headers={"host": host})
        assert refused.status_code == 400 and "does not answer for host" in refused.json()["error"]
    for host in ("localhost", "localhost:8000", "127.0.0.1:1"):
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_a_damaged_model_is_503_and_a_fault_of_ours_500_without_a_word_of_the_text(client, models, folders, caplog,
                                                                                   monkeypatch):
    models._resolve.__self__.sha256[folders["full"]] = "0" * 64
    answer = client.post("/classify", json={"model": "reviews-classifier/1", "text": "good"})
    assert answer.status_code == 503 and "not loaded" in answer.json()["error"]

    def broken(*_):
        raise ZeroDivisionError("at SECRET")

    assert client.post("/classify", json={"text": "good"}).status_code == 200       # loaded, and its smoke request made
    monkeypatch.setattr(classifier, "logits_of", broken)
    with caplog.at_level(logging.DEBUG):
        answer = client.post("/classify", json={"text": "SECRET"})
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]
    assert "SECRET" not in answer.text
    assert "SECRET" not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("ajuste"))


def test_the_page_describes_itself_without_a_network(client):
    assert "/classify" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 404           # its page would fetch scripts from outside
