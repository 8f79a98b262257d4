"""`ajuste chat`: with the registry's model and with a server, from a pipe and from a terminal."""

import io
import sys

import pytest

from ajuste.cli.models import chat
from ajuste.core.errors import DataError, UsageError
from ajuste.models import decoder
from ajuste.serving import generation as engine
from tests.cli.registered import install, run
from tests.serving.conftest import FakeRegistry
from tests.serving.test_generation import right, user

GREEDY = ("--temperature", 0, "--max-tokens", 12)


@pytest.fixture
def registry(speakers, folders, tmp_path, monkeypatch):
    (tmp_path / "artifacts/base").mkdir(parents=True)
    (tmp_path / "artifacts/base/decoder").symlink_to(speakers["base"])
    registry = FakeRegistry({"assistant": [speakers["full"], speakers["merged"]],
                             "assistant-adapter": [speakers["lora"]], "reviews-classifier": [folders["merged"]]},
                            {"assistant": {"challenger": 2}, "reviews-classifier": {"champion": 1}})
    install(monkeypatch, registry, tmp_path)
    return registry


def talk(monkeypatch, text, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return run(chat.command, *arguments)


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("name, which", [
    ((), "merged"), (("assistant-adapter/1",), "lora"), (("assistant/1",), "full"),
])
def test_a_pipe_gets_answers_and_nothing_else(registry, speakers, monkeypatch, capsys, name, which):
    model = decoder.load(speakers[which], speakers["base"])[:2]
    first = right(*model, user("A warm film."), 12)[0]
    second = right(*model, turns("A warm film.", first, "And the plot?"), 12)[0]
    alone = right(*model, user("And the plot?"), 12)[0]
    talk(monkeypatch, "A warm film.\n\n  And the plot?\n/reset\nAnd the plot?\n/quit\nnever\n", *name, *GREEDY)
    out, err = capsys.readouterr()
    assert out == f"{first}\n{second}\n{alone}\n" and err == ""
    assert second != alone, "the conversation is not kept, or it does not matter here"


def test_a_server_gives_the_same_words(registry, server, monkeypatch, capsys):
    lines = "A warm film.\nAnd the plot?\n"
    talk(monkeypatch, lines, *GREEDY, "--system", "Be brief.")
    mine = capsys.readouterr()
    talk(monkeypatch, lines, *GREEDY, "--system", "Be brief.", "--url", server[0])
    assert capsys.readouterr() == mine
    talk(monkeypatch, lines, "--seed", 3, "--max-tokens", 12)
    mine = capsys.readouterr()
    talk(monkeypatch, lines, "assistant@champion", "--seed", 3, "--max-tokens", 12, "--url", f"{server[0]}/v1/")
    assert capsys.readouterr() == mine


def test_a_terminal_is_greeted_and_an_unknown_command_is_told(registry, monkeypatch, capsys):
    typed = iter(["/help", "A warm film.", "/quit"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    run(chat.command, *GREEDY)
    out, err = capsys.readouterr()
    assert out.strip() and err.startswith("assistant version 2 (lora), base tiny. /reset forgets")
    assert "no command `/help`" in err


def test_an_error_of_one_turn_does_not_end_the_talk(registry, monkeypatch, capsys):
    code = talk(monkeypatch, f"{'warm ' * 600}\nA warm film.\n", *GREEDY)
    out, err = capsys.readouterr()
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "more than the 512" in err and out.count("\n") == 1 and out.strip()


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(registry, monkeypatch, capsys):
    take, count = engine.Row.take, [0]

    def interrupted(self, token, logits):
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return take(self, token, logits)

    monkeypatch.setattr(engine.Row, "take", interrupted)
    talk(monkeypatch, "A warm film.\nA warm film.\n", "--temperature", 0, "--max-tokens", 9)
    first, second = capsys.readouterr().out.splitlines()
    assert 0 < len(first) < len(second)


def test_a_models_control_characters_do_not_reach_the_terminal(capsys):
    assert chat.speak(iter(["a\x1b]0;title\x07", "\x9b31mb\n"])) == ("a\x1b]0;title\x07\x9b31mb\n", "")
    assert capsys.readouterr().out == "a]0;title31mb\n\n"


@pytest.mark.parametrize("arguments, error, message", [
    (["other"], UsageError, "there is assistant, assistant-adapter, reviews-classifier"),
    (["reviews-classifier"], UsageError, "`ajuste predict`"),
    (["assistant/7"], UsageError, "no version 7"),
    (["--url", "localhost:8000"], UsageError, "write it as http://127.0.0.1:8000"),
    (["--url", "http://[::1"], UsageError, "write it as"),
])
def test_what_cannot_be_asked_is_one_line(registry, monkeypatch, arguments, error, message):
    with pytest.raises(error, match=message):
        talk(monkeypatch, "a\n", *arguments)


def test_a_damaged_model_and_a_silent_server_are_one_line(registry, speakers, monkeypatch, capsys):
    assert talk(monkeypatch, "a\n", "--url", "http://127.0.0.1:9") == 1
    assert "is `ajuste serve` running?" in capsys.readouterr().err
    registry.sha256[speakers["merged"]] = "0" * 64
    with pytest.raises(DataError, match="changed or damaged"):
        talk(monkeypatch, "a\n")


def test_a_servers_refusal_is_shown(registry, server, monkeypatch, capsys):
    assert talk(monkeypatch, "a\n", "nobody", "--url", server[0]) == 1
    assert "no model `nobody` here" in capsys.readouterr().err


def test_an_empty_registry_says_what_to_do(monkeypatch, tmp_path):
    install(monkeypatch, FakeRegistry({}, {}), tmp_path)
    with pytest.raises(UsageError, match="`ajuste run`"):
        talk(monkeypatch, "a\n")
