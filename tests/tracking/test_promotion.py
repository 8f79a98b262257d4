"""Promotion, rollback and history: what each leaves, and what is left when it is killed between any two writes."""

import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from ajuste.tracking.comparing import compare
from ajuste.tracking.registry import promotion, rank, registry
from ajuste.tracking.registry.moves import LONGEST
from ajuste.tracking.runs.store import client
from tests.tracking.bare import Killed, aliases, at_home, registered, writes

ALL = ["set_registered_model_tag", "set_model_version_tag", "set_registered_model_alias", "set_registered_model_alias",
       "create_run", "set_terminated", "delete_registered_model_tag"]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory):
    """One empty store for this file; each test registers a name of its own."""
    with at_home(tmp_path_factory.mktemp("promotions")) as folder:
        promotion.move(registered("opened-classifier"), "1", "someone", "makes the experiment")
        yield folder


def kill() -> None:
    raise Killed


def is_open(name: str) -> bool:
    return promotion.INTENT in client().get_registered_model(name).tags


def moves(name: str) -> list[tuple[str, str | None, str | None]]:
    """(kind, from, to), oldest first."""
    return [(made.kind, made.before, made.to) for made in reversed(promotion.history(name))]


def runs_of(name: str) -> list:
    experiment = client().get_experiment_by_name("promotions")
    return client().search_runs([experiment.experiment_id], f"tags.`ajuste.move.name` = '{name}'") if experiment else []


def test_promote_roll_back_and_back_again() -> None:
    name = registered("a-classifier")
    began = datetime.now(UTC)
    first = promotion.move(name, "1", "Ada <a@b.c>", "the first one")
    assert aliases(name) == {"challenger": "3", "champion": "1"} and first.before is None
    promotion.move(name, "3", "Ada <a@b.c>", "better", forced=True)
    assert aliases(name) == {"challenger": "3", "champion": "3", "previous": "1"}
    promotion.rollback(name, "Bob", "worse")
    assert aliases(name) == {"challenger": "3", "champion": "1", "previous": "3"}
    assert promotion.rolled_back(name) == {"3"}
    promotion.rollback(name, "Bob", "or not")
    assert aliases(name) == {"challenger": "3", "champion": "3", "previous": "1"}
    assert promotion.rolled_back(name) == {"1"}
    promotion.move(name, "2", "Ada <a@b.c>", "another")
    assert aliases(name) == {"challenger": "3", "champion": "2", "previous": "3"} and not is_open(name)

    assert moves(name) == [("promote", None, "1"), ("promote", "1", "3"), ("rollback", "3", "1"),
                           ("rollback", "1", "3"), ("promote", "3", "2")]
    newest, *_, second, oldest = promotion.history(name)
    assert (second.who, second.why, second.forced, oldest.forced) == ("Ada <a@b.c>", "better", True, False)
    assert began < oldest.when < second.when < newest.when < datetime.now(UTC)
    assert oldest.seconds == (second.when - oldest.when).total_seconds()
    assert 0 < newest.seconds < (datetime.now(UTC) - newest.when).total_seconds()
    assert {run.info.status for run in runs_of(name)} == {"FINISHED"} and len(runs_of(name)) == 5
    history = {row["version"]: row["alias_history"] for row in compare.compare(name, ["1", "2", "3"])["versions"]}
    assert "UTC: promote by Ada <a@b.c>, another, before it version 3" in history["2"]["champion"]
    assert "rollback by Bob, or not, before it version 1" in history["3"]["champion"]


def test_the_writes_are_all_known_and_none_is_made_outside_of_them() -> None:
    """The tests below kill after each call that writes: this one shows that no statement changes anything elsewhere."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    name, elsewhere, within = registered("b-classifier"), [], []
    promotion.move(name, "1", "x", "y")

    def executed(connection, cursor, statement, parameters, context, executemany) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            (within if made and made[-1].endswith(" ...") else elsewhere).append(statement)

    event.listen(Engine, "before_cursor_execute", executed)
    try:
        with writes(None, kill) as made:
            promotion.move(name, "2", "x", "y")
    finally:
        event.remove(Engine, "before_cursor_execute", executed)
    assert made == ALL and elsewhere == [] and len(within) >= len(ALL)


@pytest.mark.parametrize("at", range(len(ALL) + 1))
def test_a_move_killed_at_any_write_is_finished_by_whoever_comes_next(at: int) -> None:
    name = registered(f"killed{at}-classifier")
    client().set_registered_model_alias(name, "champion", "2")
    client().set_registered_model_alias(name, "previous", "1")
    with pytest.raises(Killed), writes(at, kill):
        promotion.rollback(name, "someone", "why")
    assert is_open(name) == (0 < at < len(ALL))
    with pytest.raises(Killed), writes(1, kill):  # the one that finishes it is killed too
        promotion.settle(name)
        raise Killed  # nothing to do
    rank.rank(name)
    if at:
        assert aliases(name) == {"challenger": "3", "champion": "1", "previous": "2"}
        assert moves(name) == [("outside", None, "2"), ("rollback", "2", "1")]
    else:
        assert aliases(name) == {"challenger": "3", "champion": "2", "previous": "1"}
    assert not is_open(name) and [run.info.status for run in runs_of(name)] == ["FINISHED"] * (at > 0)
    with writes(None, kill) as made:
        promotion.settle(name)
    assert made == []


def test_the_next_move_finishes_the_open_one_first() -> None:
    name = registered("c-classifier")
    promotion.move(name, "1", "x", "y")
    with pytest.raises(Killed), writes(1, kill):
        promotion.move(name, "2", "x", "y")
    promotion.move(name, "3", "x", "y")
    assert moves(name) == [("promote", None, "1"), ("promote", "1", "2"), ("promote", "2", "3")]
    assert aliases(name) == {"challenger": "3", "champion": "3", "previous": "2"}


def test_a_move_to_a_version_that_was_deleted_since_is_undone() -> None:
    for at in (1, 3, 5):
        name = registered(f"deleted{at}-classifier")
        promotion.move(name, "1", "x", "y")
        with pytest.raises(Killed), writes(at, kill):
            promotion.move(name, "2", "x", "y")
        client().delete_model_version(name, "2")
        promotion.settle(name)
        assert aliases(name) == {"challenger": "3", "champion": "1"} and not is_open(name)


def test_a_champion_that_a_person_chose_since_stands() -> None:
    name = registered("d-classifier")
    promotion.move(name, "1", "x", "y")
    with pytest.raises(Killed), writes(3, kill):
        promotion.move(name, "2", "x", "y")
    client().set_registered_model_alias(name, "champion", "3")
    promotion.settle(name)
    assert aliases(name)["champion"] == "3" and not is_open(name)
    assert moves(name) == [("promote", None, "1"), ("outside", "1", "3")]


def test_history_shows_what_was_moved_outside() -> None:
    name = registered("e-classifier")
    client().set_registered_model_alias(name, "champion", "1")
    assert moves(name) == [("outside", None, "1")]
    promotion.move(name, "2", "x", "y")
    client().set_registered_model_alias(name, "champion", "3")
    promotion.move(name, "1", "x", "y")
    client().delete_registered_model_alias(name, "champion")
    assert moves(name) == [("outside", None, "1"), ("promote", "1", "2"), ("outside", "2", "3"),
                           ("promote", "3", "1"), ("outside", "1", None)]
    found = promotion.history(name)
    assert found[0].why == found[2].why == "moved outside of Ajuste"
    assert [made.seconds for made in found] == [None] * 5  # nobody knows when the others were moved
    promotion.rollback(name, "x", "y")  # `previous` is the champion that the last move found
    assert aliases(name) == {"challenger": "3", "champion": "3"}


def test_what_is_refused_changes_nothing() -> None:
    name = registered("f-classifier")
    for wrong, said in {
        lambda: promotion.move("nobody", "1", "x", "y"): "no registered model `nobody`: registered are .*f-classifier",
        lambda: promotion.move(name, "9", "x", "y"): "has no version 9: it has 1, 2, 3",
        lambda: promotion.move(f"{name}-adapter", "1", "x", "y"): "aliases stand on the served name, `f-classifier`",
        lambda: promotion.rollback(name, "x", "y"): "no previous champion to go back to: champion is not set",
        lambda: promotion.history("nobody"): "no registered model",
    }.items():
        with pytest.raises(UsageError, match=said), writes(None, kill) as made:
            wrong()
        assert made == []
    promotion.move(name, "1", "x", "y")
    with pytest.raises(UsageError, match="f-classifier/1 is the champion already"):
        promotion.move(name, "1", "x", "y")
    with pytest.raises(UsageError, match="champion is 1; `ajuste promote f-classifier/VERSION` sets it"):
        promotion.rollback(name, "x", "y")
    promotion.settle("nobody")
    client().set_registered_model_tag(name, promotion.INTENT, '{"by": "hand"}')
    with pytest.raises(DataError, match="tag `ajuste.move` of registered model `f-classifier` is no move"):
        promotion.settle(name)
    client().delete_registered_model_tag(name, promotion.INTENT)


def test_a_store_that_fails_in_a_move_is_one_line() -> None:
    from mlflow.exceptions import MlflowException

    name = registered("g-classifier")

    def fail() -> None:
        raise MlflowException("API request to http://me:secret@host/api failed\nwith more lines")

    with pytest.raises(DataError, match=r"me:\*\*\*@host/api failed with more lines; what was begun") as caught, \
            writes(3, fail):
        promotion.move(name, "1", "x", "y")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    promotion.settle(name)
    assert aliases(name)["champion"] == "1" and len(runs_of(name)) == 1


def test_text_of_people_is_kept_as_one_line_that_fits() -> None:
    name = registered("h-classifier")
    made = promotion.move(name, "1", "a\x1b[31m\nb", "é\x00" + "w" * 9000)
    assert made.who == "a [31m b" and made.why.startswith("é w") and len(made.why) == LONGEST
    assert promotion.history(name)[0].why == made.why


def test_a_second_run_of_a_move_is_taken_away() -> None:
    """Two machines that finish one move at one moment both look before either has made the run."""
    name = registered("i-classifier")
    with pytest.raises(Killed), writes(5, kill):
        promotion.move(name, "1", "x", "y")
    (run,) = runs_of(name)
    client().create_run(run.info.experiment_id, run.info.start_time, run.data.tags)
    promotion.settle(name)
    assert len(runs_of(name)) == 1 and moves(name) == [("promote", None, "1")]


def intent_of_another(name: str) -> str:
    """What the tag of a move to version 3 holds, written by another machine and gone again."""
    with pytest.raises(Killed), writes(1, kill):
        promotion.move(name, "3", "other", "theirs")
    intent = client().get_registered_model(name).tags[promotion.INTENT]
    client().delete_registered_model_tag(name, promotion.INTENT)
    return intent


def test_an_intent_that_another_machine_overwrote_is_theirs(monkeypatch) -> None:
    """As Fischer's algorithm has it: who writes last goes on. The clock stands for the other machine."""
    name = registered("j-classifier")
    promotion.move(name, "1", "x", "y")
    theirs = intent_of_another(name)
    address = promotion.tracking_uri()
    monkeypatch.setattr(promotion, "tracking_uri", lambda: address.replace("sqlite:", "http:"))
    monkeypatch.setattr(promotion.time, "sleep", lambda seconds: client().set_registered_model_tag(
        name, promotion.INTENT, theirs))
    with pytest.raises(UsageError, match="another moved `j-classifier` at this moment"):
        promotion.move(name, "2", "x", "mine")
    promotion.settle(name)
    assert moves(name) == [("promote", None, "1"), ("promote", "1", "3")]
    assert aliases(name) == {"challenger": "3", "champion": "3", "previous": "1"}


def test_an_intent_that_is_replaced_after_the_first_alias_is_done_instead() -> None:
    """The other machine was slower than the pause: its move is whole, not a mixture of both."""
    name = registered("l-classifier")
    promotion.move(name, "1", "x", "y")
    theirs = intent_of_another(name)
    with pytest.raises(UsageError, match="another moved `l-classifier` at this moment"), \
            writes(3, lambda: client().set_registered_model_tag(name, promotion.INTENT, theirs)):
        promotion.move(name, "2", "x", "mine")
    assert moves(name) == [("promote", None, "1"), ("promote", "1", "3")] and not is_open(name)
    assert aliases(name) == {"challenger": "3", "champion": "3", "previous": "1"}


def test_a_reader_always_finds_a_champion() -> None:
    name = registered("k-classifier")
    promotion.move(name, "1", "x", "y")
    seen, failed, over = [], [], threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                seen.append(registry.find(f"{name}@champion").version)
            except Exception as error:
                failed.append(error)
            over.wait(0.005)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(10):
            promotion.move(name, "23"[number % 2], "x", "y")
    finally:
        over.set()
        reader.join()
    assert failed == [] and {"2", "3"} <= set(seen) <= {"1", "2", "3"} and len(seen) > 10
    assert len(runs_of(name)) == 11


# --- a process that is really killed ----------------------------------------------------------------------------------


def move_in_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.tracking.killed", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_kill_9_before_each_commit(tmp_path: Path) -> None:
    """On SQLite each write is a commit: a kill before the first, the second, ... until a process survives."""
    with at_home(tmp_path):
        # in a store without experiment `promotions`: its creation is the fourth of eight
        name = registered("fresh-classifier")
        killed_then_told(name, "promote", "commit:4", [])
        for at in range(1, 10):
            name = registered(f"n{at}-classifier")
            client().set_registered_model_alias(name, "champion", "3")
            client().set_registered_model_alias(name, "previous", "2")
            if not killed_then_told(name, "rollback", f"commit:{at}", [("outside", None, "3")]):
                break
        assert at == len(ALL) + 1


def killed_then_told(name: str, kind: str, at: str, known: list[tuple]) -> bool:
    """Move from 3, or none, to 2 in a process that is killed; the next command makes it whole. False: it survived."""
    before = aliases(name)
    killed = move_in_process(kind, name, "2", at)
    assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr[-2000:]
    command = [sys.executable, "-m", "ajuste.cli.main", "history", name, "--json"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    told = [(row["kind"], row["from"], row["to"]) for row in reversed(json.loads(said.stdout))]
    if at.endswith(":1"):
        assert aliases(name) == before and told == known and runs_of(name) == []
    else:
        assert told == [*known, (kind, before.get("champion"), "2")] and len(runs_of(name)) == 1
        previous = {"previous": before["champion"]} if known else {}
        assert aliases(name) == {"challenger": "3", "champion": "2"} | previous
        assert runs_of(name)[0].info.status == "FINISHED"
    assert not is_open(name)
    return killed.returncode != 0
