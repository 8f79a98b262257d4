"""benchmarks/beside.py: what all comparisons share, without a peer to compare with."""

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks import beside

PEERS = ("default", "plain")


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> argparse.Namespace | None:
    monkeypatch.delenv("AJUSTE_TRL_PYTHON", raising=False)
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    return beside.options_beside_trl(argparse.ArgumentParser(), PEERS, "merged/instruct", "preferences", "dpo.md")


def test_without_a_peer_it_is_skipped_in_one_line(monkeypatch, capsys) -> None:
    assert options(monkeypatch) is None
    assert capsys.readouterr().out.startswith("compare.py: skipped: --peer-python")


def test_the_options_that_all_share(monkeypatch) -> None:
    found = options(monkeypatch, "--peer-python", "python3", "--peers", "plain", "--rounds", "1")
    assert (found.peers, found.rounds, found.threads) == (["plain"], 1, 2)
    assert found.base == Path("artifacts/merged/instruct").resolve() and found.encoded.is_absolute()
    assert found.out == Path("docs/measured/dpo.md")


def test_sides_change_places_and_have_names() -> None:
    assert [list(beside.in_turn(["a", "b"], turn)) for turn in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]
    found = beside.in_rounds(["a", "b"], 2, lambda side, turn: {"side": side, "turn": turn})
    assert [(one["side"], one["turn"]) for one in found] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    names = {"ours": "Ajuste"}
    assert [beside.label(side, names) for side in ("ours", "ours + allocator")] == ["Ajuste", "Ajuste + allocator"]
    assert "0.5 to 2.0." in beside.loads_of([{"load": 2.0}, {"load": 0.5}])


def test_each_side_runs_in_its_own_python_with_the_allocator_it_asks_for(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(beside, "result_of", lambda side, command, threads: asked.append(command) or {})
    given = argparse.Namespace(peer_python="theirs", threads=1)
    for side in ("ours", "plain + allocator"):
        beside.run_side("a.side", side, given, ["--work", "w"])
    ours, theirs = asked
    assert ours == [sys.executable, "-m", "a.side", "ours", "--work", "w"]
    assert theirs == ["theirs", "-m", "a.side", "plain", "--work", "w", "--keep-memory"]
