"""The log of requests: what stands in it, that it is capped and private, and that it is never in the way."""

import json
import os
import stat
import threading
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from ajuste.serving.app import make_app
from ajuste.serving.log import requests as request_log
from ajuste.serving.log.requests import RequestLog
from tests.made.tiny_classifiers import TEXTS

SERVED = SimpleNamespace(name="reviews-classifier", version="3", kind="classifier")


def lines(folder, name="reviews-classifier.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def test_a_line_says_what_the_drift_check_reads(tmp_path):
    log = RequestLog(tmp_path / "requests")
    log.add(SERVED, "Write to a@b.org, it is schön 🙂", "good", 0.75)
    log.add(SimpleNamespace(name="assistant", version="1", kind="decoder"), "hello")
    log.close()
    (line,) = lines(tmp_path / "requests")
    assert line.pop("time")[-1] == "Z"
    assert line == {"name": "reviews-classifier", "version": "3", "kind": "classifier", "label": "good",
                    "text": "Write to <EMAIL>, it is schön 🙂", "probability": 0.75}
    (other,) = lines(tmp_path / "requests", "assistant.jsonl")
    assert (other["text"], other["label"], other["probability"]) == ("hello", None, None)
    assert log.counts() == {"written": 2, "dropped": 0}


def test_the_files_are_for_their_owner_alone(tmp_path):
    folder = tmp_path / "requests"
    before = os.umask(0)
    try:
        log = RequestLog(folder)
        log.add(SERVED, "x")
        log.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "reviews-classifier.jsonl").stat().st_mode) == 0o600


def test_bytes_are_capped_by_one_rotation(tmp_path):
    log = RequestLog(tmp_path, max_bytes=2000)
    for number in range(100):
        log.add(SERVED, f"text {number}")
    log.close()
    new, old = lines(tmp_path), lines(tmp_path, "reviews-classifier.jsonl.1")
    kept = [line["text"] for line in old + new]
    assert kept == [f"text {number}" for number in range(100 - len(kept), 100)] and len(old) > 5
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 2
    assert log.counts() == {"written": 100, "dropped": 0}


@pytest.mark.parametrize("shift", range(0, 24, 4))
def test_a_long_text_is_cut_and_no_half_of_a_secret_shows(tmp_path, shift):
    card = "4111 1111 1111 1111"
    for edge in (request_log.MAX_CHARS, request_log.MAX_CHARS + 2 * request_log.EDGE):
        text = "word " * ((edge - shift) // 5) + " " * ((edge - shift) % 5) + card + " and more" * 100
        (found,) = [json.loads(request_log.line(request_log.datetime.now(), "m", "1", "classifier", part, None, None))
                    for part in [text[: request_log.MAX_CHARS + 2 * request_log.EDGE + 1]]]
        assert len(found["text"]) <= request_log.MAX_CHARS and "411" not in found["text"]
        assert len(found["text"]) > request_log.MAX_CHARS - 2 * request_log.EDGE


def test_a_full_queue_drops_and_counts_and_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "MAX_QUEUED", 5)
    stuck, going = threading.Event(), threading.Event()

    def slow(text):
        stuck.set()
        going.wait(20)
        return text

    monkeypatch.setattr(request_log, "redact", slow)
    log = RequestLog(tmp_path)
    log.add(SERVED, "first")
    assert stuck.wait(20)
    for number in range(8):
        log.add(SERVED, f"text {number}")       # the writer is stuck: these return all the same
    assert log.counts() == {"written": 0, "dropped": 3}
    going.set()
    log.close()
    assert log.counts() == {"written": 6, "dropped": 3}


@pytest.mark.parametrize("fault", ["no folder", "full disk", "half a line", "redaction"])
def test_what_cannot_be_written_is_counted_said_once_and_harms_nothing(tmp_path, monkeypatch, caplog, fault):
    folder, write = tmp_path / "requests", os.write
    broken = [True]
    if fault == "no folder":
        folder.write_text("a file is in the way")

    def failing(file, content):
        if broken[0] and fault == "full disk":
            raise OSError(28, "No space left on device")
        return write(file, content[: len(content) // 2] if broken[0] and fault == "half a line" else content)

    def wrong(text):
        if broken[0] and fault == "redaction":
            raise ZeroDivisionError(text)
        return text

    monkeypatch.setattr(request_log.os, "write", failing)
    monkeypatch.setattr(request_log, "redact", wrong)
    log = RequestLog(folder)
    for number in range(3):
        log.add(SERVED, f"lost {number}")
        while log.counts()["dropped"] <= number:
            assert log._thread.is_alive()
    assert "SECRET" not in caplog.text and "lost" not in caplog.text
    if fault != "redaction":
        assert len(caplog.records) == 1, caplog.text
    broken[0] = False
    if fault == "no folder":
        folder.unlink()
    log.add(SERVED, "kept")
    log.close()
    assert [line["text"] for line in lines(folder)] == ["kept"]
    assert log.counts() == {"written": 1, "dropped": 3}


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    target = tmp_path / "elsewhere"
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "reviews-classifier.jsonl").symlink_to(target)
    log = RequestLog(tmp_path / "requests")
    log.add(SERVED, "x")
    log.close()
    assert not target.exists() and log.counts()["dropped"] == 1


def test_every_page_that_answers_keeps_its_text_and_who_answered(both, tmp_path):
    log = RequestLog(tmp_path)
    with TestClient(make_app(both, requests=log), base_url="http://127.0.0.1") as client:
        labels = client.post("/classify", json={"texts": TEXTS[:2]}).json()
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "one"},
                 {"role": "assistant", "content": "two"}, {"role": "user", "content": "ask a@b.org"}]
        for stream in (False, True):
            said = client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 2, "stream": stream})
            assert said.status_code == 200
        assert client.post("/v1/completions", json={"prompt": "a film", "max_tokens": 2}).status_code == 200
        assert client.post("/classify", json={"text": " "}).status_code == 422
        assert client.post("/classify", json={"text": "lost", "model": "assistant"}).status_code == 404
    kept = lines(tmp_path)
    assert [(line["text"], line["label"], line["version"]) for line in kept] == [
        (text, result["label"], labels["version"]) for text, result in zip(TEXTS, labels["results"], strict=False)]
    assert [line["probability"] for line in kept] == [result["probability"] for result in labels["results"]]
    spoken = lines(tmp_path, "assistant.jsonl")
    assert [line["text"] for line in spoken] == ["ask <EMAIL>", "ask <EMAIL>", "a film"]
    assert {(line["kind"], line["version"]) for line in spoken} == {("decoder", "2")}


def test_health_counts_what_was_kept_and_dropped(models, tmp_path):
    (tmp_path / "requests").write_text("in the way")
    log = RequestLog(tmp_path / "requests")
    with TestClient(make_app(models, requests=log), base_url="http://127.0.0.1") as client:
        assert client.post("/classify", json={"text": "warm"}).status_code == 200
        while not (counts := client.get("/health").json()["request_log"])["dropped"]:
            assert log._thread.is_alive()
    assert counts == {"written": 0, "dropped": 1}
