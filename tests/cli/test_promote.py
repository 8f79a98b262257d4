"""`ajuste promote`, `rollback` and `history`: what a person sees, and what the gate has to say."""

import gc
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from ajuste.cli import main
from ajuste.core.errors import DataError, UsageError
from ajuste.tracking import verdicts
from ajuste.tracking.registry import promotion
from ajuste.tracking.runs.store import client
from tests.cli.commands import printed
from tests.tracking.bare import Killed, aliases, at_home, registered, writes


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory):
    """One empty store for this file; each test registers a name of its own."""
    with at_home(tmp_path_factory.mktemp("promotions")) as folder:
        yield folder


@dataclass
class Rule:
    name: str
    passed: bool


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the gate: `failing` are the rules that fail, `asked` what it was asked."""
    stand = SimpleNamespace(failing=[], asked=[])

    def judge(name: str, version: str) -> SimpleNamespace:
        stand.asked.append((name, version))
        rules = [Rule(rule, rule not in stand.failing) for rule in ("better", "proof", "latency")]
        return SimpleNamespace(passed=not stand.failing, rules=rules, text=lambda: "better: +0.02 (+0.01 to +0.03)")

    module = SimpleNamespace(judge=judge)
    monkeypatch.setitem(sys.modules, "ajuste.tracking.verdicts.gate", module)
    monkeypatch.setattr(verdicts, "gate", module, raising=False)
    return stand


def ajuste(*words: str) -> str:
    """What the command prints."""
    return printed(main.app, *words)


def test_the_gate_lets_the_challenger_through_and_a_rollback_goes_back(gate) -> None:
    name = registered("a-classifier")
    client().set_registered_model_alias(name, "champion", "1")
    said = ajuste("promote", name, "--why", "longer training")
    assert said == "better: +0.02 (+0.01 to +0.03)\na-classifier: champion is version 3, before it version 1\n"
    assert gate.asked == [(name, "3")] and aliases(name)["champion"] == "3"
    assert promotion.history(name)[0].why == "the gate passed: longer training"
    assert ajuste("promote", f"{name}@challenger") == "a-classifier: version 3 is the champion already\n"
    assert len(gate.asked) == 1
    assert ajuste("rollback", name) == "a-classifier: champion is version 1, before it version 3\n"
    assert aliases(name) == {"challenger": "3", "champion": "1", "previous": "3"} and gc.isenabled()
    assert promotion.history(name)[0].why == "no reason given"
    ajuste("promote", f"models:/{name}/2")
    assert gate.asked[1:] == [(name, "2")] and aliases(name)["champion"] == "2"


def test_a_refusal_names_the_rules_and_force_needs_a_reason(gate) -> None:
    name = registered("b-classifier")
    gate.failing = ["better", "latency"]
    with pytest.raises(DataError, match="b-classifier/3 is not promoted, .* refuses it: better, latency; --force"):
        ajuste("promote", name)
    with pytest.raises(UsageError, match="--force needs a reason"):
        ajuste("promote", name, "--force", "--why", " ")
    assert "champion" not in aliases(name) and promotion.history(name) == []
    assert ajuste("promote", name, "--force", "--why", "the gate's data is a year old") == (
        "b-classifier: champion is version 3, the first\n")
    (made,) = promotion.history(name)
    assert (made.forced, made.why, made.to) == (True, "the gate's data is a year old", "3") and made.who


def test_what_is_unknown_is_named(gate) -> None:
    name = registered("c-classifier")
    for words, said in {
        ("promote", "nobody"): "no registered model `nobody`",
        ("promote", f"{name}/9"): "no version 9: it has 1, 2, 3",
        ("promote", f"{name}@best"): "no alias `best`",
        ("rollback", name): "`c-classifier` has no previous champion to go back to",
        ("rollback", "nobody"): "no registered model `nobody`",
        ("history", "nobody"): "no registered model `nobody`",
    }.items():
        with pytest.raises(UsageError, match=said):
            ajuste(*words)
    client().delete_registered_model_alias(name, "challenger")
    with pytest.raises(UsageError, match="`c-classifier` has no challenger"):
        ajuste("promote", name)
    assert gate.asked == [] and aliases(name) == {}


@pytest.mark.parametrize("words", [("history",), ("rollback",), ("promote", "--force", "--why", "now")])
def test_each_command_finishes_what_was_killed(words: tuple[str, ...]) -> None:
    def kill() -> None:
        raise Killed

    name = registered(f"{words[0]}-classifier")
    promotion.move(name, "1", "x", "y")
    with pytest.raises(Killed), writes(3, kill):
        promotion.move(name, "2", "x", "y")
    ajuste(words[0], name, *words[1:])
    assert [made.to for made in reversed(promotion.history(name))][:2] == ["1", "2"]
    after = {"history": ("2", "1"), "rollback": ("1", "2"), "promote": ("3", "2")}[words[0]]
    assert (aliases(name)["champion"], aliases(name)["previous"]) == after


def test_history_as_a_table_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    name = registered("d-classifier")
    assert ajuste("history", name).startswith("d-classifier: no version was ever champion")
    promotion.move(name, "1", "Ada <a@b.c>", "[bold]markup[/] is text")
    promotion.move(name, "3", "Bob", "hurry", forced=True)
    client().set_registered_model_alias(name, "champion", "2")
    rows = json.loads(ajuste("history", name, "--json"))
    assert [(row["kind"], row["from"], row["to"], row["forced"], row["who"]) for row in rows] == [
        ("outside", "3", "2", False, ""), ("promote", "1", "3", True, "Bob"),
        ("promote", None, "1", False, "Ada <a@b.c>")]
    assert rows[0]["when"] is rows[0]["seconds"] is rows[0]["id"] is None and rows[2]["seconds"] > 0
    table = ajuste("history", name)
    for text in ("moved outside of Ajuste", "promote, forced", "[bold]markup[/] is text", "Ada <a@b.c>", "unknown"):
        assert text in table
