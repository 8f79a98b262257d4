"""The judge behind an address: what it asks, reads, tries again, refuses, and never says."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ajuste.core.errors import UsageError
from ajuste.judging.judges import endpoint
from ajuste.judging.judges.constitution import Constitution
from ajuste.judging.judges.endpoint import Endpoint
from ajuste.judging.judges.opinions import Pair, sigmoid
from ajuste.judging.judges.questions import Questions
from tests.judging.test_constitution import GOOD

QUESTIONS = Questions(Constitution(**GOOD), "en", ["honest"], 0)
PAIR = Pair("00", [{"role": "user", "content": "Why?"}], ("good", "bad"))
SECRET = "sk-very-secret"


def said(**top: float) -> tuple[int, dict]:
    """An answer with these likeliest tokens."""
    tokens = [{"token": token, "logprob": value} for token, value in sorted(top.items(), key=lambda one: -one[1])]
    content = [{**tokens[0], "top_logprobs": tokens}] if tokens else []
    return 200, {"choices": [{"logprobs": {"content": content}}], "usage": {"total_tokens": 20}}


class Fake:
    """A server that gives its answers in turn, the last one again and again, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list = []
        self.seen: list[tuple[str, dict, dict]] = []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    found, lock = Fake(), threading.Lock()
    monkeypatch.setattr(endpoint, "WORKERS", 1)
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: found.waits.append(seconds))
    found.waits = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                found.seen.append((self.path, dict(self.headers), body))
                answer = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            status, content, *headers = answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield found
    server.shutdown()
    server.server_close()


def judge(fake: Fake) -> Endpoint:
    return Endpoint(f"{fake.url}/", "judge", QUESTIONS)


def test_both_orders_are_asked_and_the_numbers_are_those_of_the_letters(fake: Fake) -> None:
    fake.answers = [said(A=-0.5, B=-1.5, C=-3.0), said(B=-0.2, A=-2.2)]
    asked = judge(fake)
    (opinion,) = asked.compare([PAIR])
    assert (opinion.first, opinion.second) == (pytest.approx(sigmoid(1.0)), pytest.approx(sigmoid(2.0)))
    assert opinion.principle == "honest" and opinion.consistent and (asked.cost.calls, asked.cost.tokens) == (2, 40)
    (path, _, body), (_, _, other) = fake.seen
    assert path == "/v1/chat/completions" and body["model"] == "judge"
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 0, True, 20)
    assert body["messages"][0]["content"].endswith("Why? | good | bad")
    assert other["messages"][0]["content"].endswith("Why? | bad | good")


def test_a_letter_below_the_listed_ones_counts_as_the_least_of_them(fake: Fake) -> None:
    fake.answers = [said(A=-0.5, x=-4.0), said(**{" B": -1.0, "A": -2.0})]
    (opinion,) = judge(fake).compare([PAIR])
    assert opinion.first == pytest.approx(sigmoid(3.5)) and opinion.second == pytest.approx(sigmoid(1.0))
    for top in (said(x=-0.1, y=-2.0), said()):
        fake.answers = [top]
        (opinion,) = judge(fake).compare([PAIR])
        assert opinion.preference == 0.5 and "neither A nor B" in opinion.problem


def test_what_may_pass_is_tried_again_and_then_said_in_one_line(fake: Fake) -> None:
    fake.answers = [(503, {}), (429, {}, ("retry-after", "7")), (500, b"<html>"), said(A=-1.0, B=-2.0)]
    (opinion,) = judge(fake).compare([PAIR])
    assert opinion.first == pytest.approx(sigmoid(1.0)) and fake.waits == [0.5, 7.0, 2.0]
    fake.answers, fake.waits = [(503, {})], []
    with pytest.raises(ConnectionError, match=r"did not answer \(status 503\), 6 times: is it up\?"):
        judge(fake).compare([PAIR])
    assert fake.waits[:5] == [0.5, 1.0, 2.0, 4.0, 8.0]  # the other order may have been begun


def test_a_judge_that_is_gone_ends_a_long_list_at_once(fake: Fake) -> None:
    fake.answers = [(503, {})]
    with pytest.raises(ConnectionError):
        judge(fake).compare([PAIR] * 100)
    assert len(fake.seen) <= 3 * (endpoint.RETRIES + 1), "what waits is not asked any more"


def test_nobody_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    with pytest.raises(ConnectionError, match=r"the judge at http://127.0.0.1:9/v1 did not answer \(ConnectError\)"):
        Endpoint("http://127.0.0.1:9/v1", "judge", QUESTIONS).compare([PAIR])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {"error": {"message": "no model `judge`", "code": None}}), r"refused \(404\): no model `judge`"),
        ((400, b"no"), r"refused \(400\): Bad Request"),
        ((200, b"<html>hello"), "does not answer in JSON"),
        ((200, {"choices": [{"logprobs": None}], "usage": {"total_tokens": 1}}), "gives no log-probabilities"),
    ],
)
def test_what_will_not_pass_is_said_at_once(answer: tuple, words: str, fake: Fake) -> None:
    fake.answers = [answer]
    with pytest.raises(UsageError, match=words):
        judge(fake).compare([PAIR])
    assert fake.waits == []


def test_a_question_that_is_too_long_is_no_opinion(fake: Fake) -> None:
    fake.answers = [(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}), said(A=-1.0, B=-2.0)]
    one, other = judge(fake).compare([PAIR, PAIR])
    assert "too long" in one.problem and one.preference == 0.5 and other.problem is None


def test_the_key_is_sent_and_said_nowhere(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, SECRET)
    fake.answers = [said(A=-1.0, B=-2.0)]
    asked = judge(fake)
    asked.compare([PAIR])
    assert fake.seen[0][1]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in json.dumps([body for _, _, body in fake.seen])
    for status in (401, 403, 422):
        fake.answers = [(status, {"error": {"message": f"bad key {SECRET}"}})]
        with pytest.raises(UsageError) as refused:
            judge(fake).compare([PAIR])
        assert SECRET not in str(refused.value) and "judge at" in str(refused.value)
    monkeypatch.delenv(endpoint.KEY)
    fake.answers, fake.seen = [said(A=-1.0, B=-2.0)], []
    judge(fake).compare([PAIR])
    assert "authorization" not in {name.lower() for name in fake.seen[0][1]}


@pytest.mark.parametrize("url", ["ftp://x/v1", "localhost:8000", "", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Endpoint(url, "judge", QUESTIONS)


@pytest.mark.parametrize("url", [f"http://me:{SECRET}@host/v1", f"http://host/v1?key={SECRET}"])
def test_an_address_that_holds_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match="AJUSTE_JUDGE_KEY") as refused:
        Endpoint(url, "judge", QUESTIONS)
    assert SECRET not in str(refused.value)
