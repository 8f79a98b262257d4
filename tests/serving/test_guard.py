"""The server's filters: every turn, texts split over turns and over the pieces of an answer, refused or masked."""

import json
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ajuste.cli.models.serve import opened_guard
from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.rows.filters.config import FilterConfig
from ajuste.serving import generation as engine
from ajuste.serving.app import make_app
from ajuste.serving.errors import Refusal
from ajuste.serving.guard import Guard
from ajuste.serving.log.requests import RequestLog
from tests.made.tiny_decoders import ASKED
from tests.serving.test_generation import user

CARD, PHRASE = "4111 1111 1111 1111", "the launch code is blue"
KINDS = ["email", "phone", "card", "iban", "national_id", "ip"]


def config(tmp_path, phrases=(PHRASE,), **actions):
    """`input_refuse=[...]` and the like; the phrases in a file."""
    (tmp_path / "phrases.txt").write_text("".join(f"{phrase}\n" for phrase in phrases))
    given = {where: {do: actions.get(f"{where}_{do}", []) for do in ("refuse", "mask")}
             for where in ("input", "output")}
    return FilterConfig(**given, regions=["ES"], phrases=str(tmp_path / "phrases.txt"))


def turns(*texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def strict(tmp_path):
    return Guard(config(tmp_path, input_refuse=["phrase", "card"], input_mask=["email", "phone"],
                        output_mask=["email", "card"], output_refuse=["phrase"]))


def refused(guard, *texts):
    """The error, or None."""
    try:
        guard.asked([turns(*texts)])
    except Refusal as error:
        return error
    return None


def test_every_turn_is_looked_at(strict):
    for i in range(5):
        texts = ["Hello."] * 5
        texts[i] = f"It is {CARD}."
        error = refused(strict, *texts)
        assert (error.status_code, error.param, error.code) == (400, "messages", "content_filter")
        assert f"card, which was found in turn {i + 1} of" in error.detail and "4111" not in error.detail
    assert refused(strict, *["Hello."] * 5) is None


@pytest.mark.parametrize("whole", [CARD, PHRASE])
def test_a_text_split_over_turns_is_found_at_every_boundary(strict, whole):
    """Over two turns of the user with an answer between, and over a turn and the next one."""
    for cut in range(1, len(whole)):
        head, tail = f"Note this: {whole[:cut]}", f"{whole[cut:]}. Thanks"
        for texts in ((head, "Noted.", tail), (head, tail), ("Hi", head, tail)):
            assert "turn" in refused(strict, *texts).detail, texts
            stripped = [text.strip() for text in texts]
            assert refused(strict, *stripped) is not None, stripped


def test_a_word_a_turn(strict):
    texts = [text for word in PHRASE.split() for text in (word, "Go on.")]
    assert "turn 1, 3, 5, 7, 9 of" in refused(strict, *texts).detail


def test_masks_reach_the_model_and_nothing_else_changes(strict):
    asked = turns("Write to ana@example.com", "Thanks, who is 612 345 678?", "Me.")
    (clean,) = strict.asked([asked])
    assert [turn["content"] for turn in clean] == ["Write to <EMAIL>", "Thanks, who is <PHONE>?", "Me."]
    assert asked[0]["content"] == "Write to ana@example.com", "the request itself is not changed"
    (clean,) = strict.asked([turns("My address is ana@exa", "mple.com is a part of it?")])
    assert [turn["content"] for turn in clean] == ["My address is <EMAIL>", "<EMAIL> is a part of it?"]
    assert strict.asked(["Mail bob@example.com: 12"]) == ["Mail <EMAIL>: 12"]
    assert strict.counts() == {"input.email": 4, "input.phone": 1}


@pytest.mark.parametrize("whole", [CARD, PHRASE, "ana@example.com"])
def test_an_answer_is_filtered_at_every_boundary_of_its_pieces(strict, whole):
    for a in range(len(whole) + 1):
        for b in range(a, len(whole) + 1):
            stream = strict.answer(turns("What is it?"))
            pieces = ("It is ", whole[:a], whole[a:b], whole[b:], ". Yes.")
            text = "".join([*map(stream.push, pieces), stream.end()])
            assert text == {PHRASE: "It is "}.get(whole, f"It is <{'CARD' if whole == CARD else 'EMAIL'}>. Yes.")
            assert (stream.refused == "phrase") == (whole == PHRASE)


def test_an_answer_goes_on_what_was_said(strict):
    for before in (turns("Begin.", "the launch", "Go on."), turns("Say: the launch")):
        stream = strict.answer(before)
        assert stream.push("code is blue") + stream.end() == "" and stream.refused == "phrase"
    stream = strict.answer("Her card: 4111 1111")
    assert stream.push(" 1111 1111 is it") + stream.end() == "<CARD> is it"
    stream = strict.answer(turns("Write to ana@example.com"))
    assert stream.push("Hello") + stream.end() == "Hello"


def test_a_policy_without_kinds_and_a_folder_without_policy_filter_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert opened_guard() == (None, "")
    shutil.copy(ROOT / "policy.yaml", "policy.yaml")
    assert opened_guard() == (None, ""), "off by default"
    text = Path("policy.yaml").read_text().replace("mask: []", "mask: [email]", 1)
    Path("policy.yaml").write_text(text)
    guard, told = opened_guard()
    assert told == "input masks email" and guard.asked(["ana@example.com"]) == ["<EMAIL>"]
    Path("policy.yaml").write_text(text.replace("[email]", "[emails]"))
    with pytest.raises(UsageError, match="no filter `emails`"):
        opened_guard()


def test_what_is_not_looked_for_passes(tmp_path):
    guard = Guard(config(tmp_path, input_mask=["email"]))
    assert guard.answer(turns("Hi")) is None
    guard = Guard(config(tmp_path, output_mask=["email"]))
    assert guard.asked([turns("ana@example.com")]) == [turns("ana@example.com")]


# --- the server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def says(monkeypatch):
    """What the model answers, whatever it is asked, token by token."""
    def script(text):
        def choose(row, logits, largest):
            ids = row.served.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids[row.count] if row.count < len(ids) else row.served.tokenizer.eos_token_id

        monkeypatch.setattr(engine.Row, "choose", choose)

    return script


def web(both, guard, requests=None):
    return TestClient(make_app(both, requests=requests, guard=guard), base_url="http://127.0.0.1")


def chat(client, text=ASKED[0], **more):
    asked = {"messages": user(text), "max_tokens": 200, "temperature": 0}
    return client.post("/v1/chat/completions", json=asked | more)


def pieces(answer):
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def test_a_refused_answer_ends_before_it_whole_and_streamed(both, tmp_path, says):
    says(f"Well, {PHRASE} today.")
    guard = Guard(config(tmp_path, output_refuse=["phrase"]))
    with web(both, guard) as client:
        (choice,) = (whole := chat(client).json())["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Well, ", "content_filter")
        assert whole["usage"]["completion_tokens"] < 200
        assert pieces(chat(client, stream=True)) == ("Well, ", ["content_filter"])
        assert client.get("/health").json()["filtered"] == {"output.phrase": 2}
        assert chat(client, logprobs=True).json()["error"]["param"] == "logprobs"


@pytest.mark.parametrize("stop", [[], ["Yes"]])
def test_a_masked_answer(both, tmp_path, says, stop):
    says(f"It is {CARD} or ana@example.com. Yes, it is")
    with web(both, Guard(config(tmp_path, output_mask=["card", "email"]))) as client:
        wanted = "It is <CARD> or <EMAIL>. " + ("" if stop else "Yes, it is")
        (choice,) = chat(client, stop=stop).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (wanted, "stop")
        assert pieces(chat(client, stop=stop, stream=True)) == (wanted, ["stop"])
        short = chat(client, max_tokens=12).json()["choices"][0]
        assert short["finish_reason"] == "length"


def test_without_findings_answers_are_what_they_were(both, tmp_path, says):
    text = "In 1998, 12 people (of 30) went.\n\n\tIt was  fine; é, 电话, 😀 x@ y.z +1"
    says(text)
    with web(both, Guard(config(tmp_path, output_mask=KINDS, input_mask=KINDS))) as client, web(both, None) as plain:
        for one in (client, plain):
            assert chat(one).json()["choices"][0]["message"]["content"] == text
            assert pieces(chat(one, stream=True)) == (text, ["stop"])


def test_a_refused_request_is_an_error_in_openais_shape_and_is_not_kept(both, tmp_path):
    requests = RequestLog(tmp_path / "log")
    guard = Guard(config(tmp_path, input_refuse=["phrase"], input_mask=["email"]))
    with web(both, guard, requests) as client:
        answer = chat(client, PHRASE)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "content_filter" and error["type"] == "invalid_request_error"
        assert "blue" not in answer.text
        assert client.post("/v1/completions", json={"prompt": PHRASE}).status_code == 400
        assert chat(client, "Mail ana@example.com now", max_tokens=4).status_code == 200
    (line,) = (tmp_path / "log/assistant.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "Mail <EMAIL> now"


def test_the_masked_prompt_is_what_the_model_reads(both, tmp_path):
    with web(both, Guard(config(tmp_path, input_mask=["email"]))) as client, web(both, None) as plain:
        one, other = (chat(web, text, max_tokens=4)
                      for web, text in ((client, "Mail ana@example.com now"), (plain, "Mail <EMAIL> now")))
        assert one.json()["choices"] == other.json()["choices"]
        assert one.json()["usage"] == other.json()["usage"]
