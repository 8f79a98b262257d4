"""A judge behind an OpenAI-compatible address: our own server, or anybody's that gives log-probabilities.

    POST <url>/chat/completions    one question, one token of answer, temperature 0, its 20 likeliest alternatives

It is asked what ajuste/judging/judges/local.py asks a folder, and the numbers are the same: l_A and l_B of the first
token. Of a letter that is not among the 20 only an upper bound is known, that of the least of them: it is taken, so the
preference comes out nearer to 1/2 than it is. Without both letters there is no opinion.

A key is read from the environment variable AJUSTE_JUDGE_KEY, sent, and written nowhere; a URL that holds one is
refused. WORKERS questions are under way at once, in the order of the pairs. What may pass (no connection, 408, 429,
5xx) is tried RETRIES times more, after 0.5, 1, 2, ... seconds or what Retry-After says; then it is a ConnectionError of
one line. What will not pass (a wrong key, an unknown model) is a UsageError at once. A question that is too long for
the judge is no opinion, as it is of a folder.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from ajuste.core.errors import UsageError
from ajuste.judging.judges.opinions import Cost, Opinion, Pair, of_letters, unable
from ajuste.judging.judges.questions import LETTERS, Questions

KEY = "AJUSTE_JUDGE_KEY"
WORKERS, RETRIES, TIMEOUT, LONGEST_WAIT = 4, 5, 60.0, 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOP = 20  # alternatives of a token: the most that OpenAI's interface gives
PASSING = (408, 429)
TOO_LONG = "context_length_exceeded"


class Endpoint:
    """A judge of words by its address and model name. Raises UsageError for an address that is none or holds a secret.
    """

    def __init__(self, url: str, model: str, questions: Questions) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise UsageError("the judge's `url` is no address: it looks like http://127.0.0.1:8000/v1")
        if address.userinfo or address.query:
            raise UsageError(f"the judge's `url` may hold no user, password or query: a key stands in ${KEY} alone")
        self.url, self.model, self.questions, self.cost = str(address).rstrip("/"), model, questions, Cost()
        self._key = os.environ.get(KEY, "").strip()
        self._proxies = address.host not in LOOPBACK  # a server of this machine is asked directly

    def compare(self, pairs: Sequence[Pair]) -> list[Opinion]:
        asked = [self.questions.of(pair) for pair in pairs]
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        with httpx.Client(timeout=TIMEOUT, headers=headers, trust_env=self._proxies) as client:
            with ThreadPoolExecutor(WORKERS) as workers:
                texts = [text for one in asked for text in one.texts]
                gaps = list(workers.map(lambda text: self._gap(client, text), texts))
        self.cost.calls += len(gaps)
        self.cost.tokens += sum(tokens for _, tokens in gaps)
        found = iter(gap for gap, _ in gaps)
        return [_opinion(next(found), next(found), one.principle) for one in asked]

    def _gap(self, client: httpx.Client, text: str) -> tuple[float | str, int]:
        """l_A - l_B of one question, or why there is none; and the tokens that it took."""
        body = {
            "model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0,
            "logprobs": True, "top_logprobs": TOP,
        }  # fmt: skip
        answer = self._post(client, body)
        if isinstance(answer, str):
            return answer, 0
        try:
            tokens = int(answer["usage"]["total_tokens"])
            said = answer["choices"][0]["logprobs"]["content"]
            top = [(one["token"], float(one["logprob"])) for one in said[0]["top_logprobs"]] if said else []
        except (KeyError, IndexError, TypeError, ValueError):
            raise UsageError(f"{self.url}: model `{self.model}` gives no log-probabilities: it cannot judge") from None
        return _gap_of(top), tokens

    def _post(self, client: httpx.Client, body: dict) -> dict | str:
        """The answer, or why this one question has none. Raises UsageError and ConnectionError."""
        why = ""
        for attempt in range(RETRIES + 1):
            wait = min(0.5 * 2**attempt, LONGEST_WAIT)
            try:
                response = client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TransportError as error:
                why = type(error).__name__
            else:
                if response.is_success:
                    return self._json(response)
                if response.status_code not in PASSING and response.status_code < 500:
                    return self._refused(response)
                why = f"status {response.status_code}"
                wait = _after(response.headers.get("retry-after"), wait)
            if attempt < RETRIES:
                time.sleep(wait)
        raise ConnectionError(f"the judge at {self.url} did not answer ({why}), {RETRIES + 1} times: is it up?")

    def _json(self, response: httpx.Response) -> dict:
        try:
            return response.json()
        except ValueError:
            raise UsageError(f"{self.url} does not answer in JSON: it is no OpenAI-compatible address") from None

    def _refused(self, response: httpx.Response) -> str:
        """The words for a question that is too long. Raises UsageError for whatever else would be refused again."""
        if response.status_code in (401, 403):  # whose words may repeat the key
            raise UsageError(f"the judge at {self.url} refused the key: set ${KEY} to a valid one")
        try:
            error = response.json()["error"]
            code, words = error.get("code"), str(error["message"])
        except (ValueError, KeyError, TypeError, AttributeError):
            code, words = None, response.reason_phrase
        if code == TOO_LONG:
            return "the question is too long for the judge"
        words = " ".join(words.replace(self._key, "***").split() if self._key else words.split())[:200]
        raise UsageError(f"the judge at {self.url} refused ({response.status_code}): {words}")


def _gap_of(top: Sequence[tuple[str, float]]) -> float | str:
    """l_A - l_B from the likeliest first tokens, or why it is not known."""
    found = {token: value for token, value in reversed(top)}  # the likelier of two of the same text
    stripped = {token.strip(): value for token, value in reversed(top)}
    values = [found.get(letter, stripped.get(letter)) for letter in LETTERS]
    if values == [None, None]:
        return "neither A nor B is among the answer's likeliest tokens"
    least = min(value for _, value in top)
    a, b = (least if value is None else value for value in values)
    return a - b


def _opinion(first: float | str, second: float | str, principle: str) -> Opinion:
    problem = next((gap for gap in (first, second) if isinstance(gap, str)), None)
    return unable(problem, principle) if problem else of_letters(first, second, principle)


def _after(header: str | None, otherwise: float) -> float:
    """Seconds that Retry-After asks for, where it is a number."""
    try:
        return min(max(float(header), 0.0), LONGEST_WAIT)
    except (TypeError, ValueError):
        return otherwise
