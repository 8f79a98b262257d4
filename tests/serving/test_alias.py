"""A real `ajuste serve`, a real registry, 50 requests a second: the alias moves and nobody notices but by the version.

The versions' heads always say the label of their own number (benchmarks/alias.py), so each answer proves who gave it.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from ajuste.core.home import home
from ajuste.tracking.registry import promotion
from benchmarks import alias

pytestmark = pytest.mark.slow
COUNT = 4
WITHIN = 10.0       # seconds that the server may take to follow: what it promises, not a speed of this machine


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A home with four good versions, and 5, whose weights hold a NaN, and 6, damaged since it was registered."""
    root = tmp_path_factory.mktemp("alias")
    paths = [alias.make(root, number, COUNT, 32, 2, 64) for number in range(1, COUNT + 1)]
    poisoned, damaged = (shutil.copytree(paths[0], root / name) for name in ("poisoned", "damaged"))
    weights = load_file(poisoned / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    (root / "mlruns").mkdir()
    alias.register(MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db"), [*paths, poisoned, damaged])
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\0\xff\0")
    return root


@pytest.fixture
def moves(store, monkeypatch):
    """move(version): the alias `champion`, with MLflow's client. It stands on version 1 at the start."""
    client = MlflowClient(f"sqlite:///{store}/mlruns/mlflow.db")
    client.set_registered_model_alias(alias.NAME, "champion", "1")
    return lambda version: client.set_registered_model_alias(alias.NAME, "champion", version)


@pytest.fixture
def promotes(store, moves, monkeypatch):
    """The same by `ajuste promote`'s own function."""
    monkeypatch.setenv("AJUSTE_HOME", str(store))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home.cache_clear()
    yield lambda version: promotion.move(alias.NAME, version, "a test", "to see it followed")
    home.cache_clear()


@contextmanager
def loaded(port, rate=50.0):
    """Requests at that rate inside; gives what they meet, and none has failed at the end."""
    load = alias.Load(port, rate)
    load.start()
    try:
        yield load
    finally:
        seen = load.end()
    assert seen.failed == [] and len(seen.seconds) > 50
    print(seen.line("met"), {move: round(seconds, 1) for move, seconds in seen.first.items()})


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def until(true, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.2)
    return found


@pytest.mark.parametrize("how", ["moves", "promotes"])
def test_no_request_fails_while_the_alias_moves_ten_times(store, how, request):
    move = request.getfixturevalue(how)
    with alias.serve(store) as (port, _), loaded(port) as load:
        alias.moving(load, move, COUNT, 10)
    assert sorted(load.seen.first) == list(range(1, 11)), "a move was not seen"
    assert max(load.seen.first.values()) < WITHIN, load.seen.first
    assert load.seen.versions == {"1", "2", "3", "4"}


def test_a_damaged_version_and_one_of_nan_do_not_answer_and_the_old_one_goes_on(store, moves):
    with alias.serve(store) as (port, _):
        with loaded(port) as load:
            for bad, why in (("5", "not finite"), ("6", "changed or damaged")):
                moves(bad)
                refused = until(lambda: get(port, "/health")["refused"], "the refusal")[alias.NAME]
                while refused["version"] != bad:
                    refused = get(port, "/models")["refused"][alias.NAME]
                assert why in refused["why"]
                time.sleep(3)
            assert load.seen.versions == {"1"}
            moves("3")
            load.expect(1, "3")
            until(lambda: 1 in load.seen.first, "version 3")
        assert load.seen.versions == {"1", "3"} and get(port, "/health")["refused"] == {}
    said = (store / "serve.log").read_text()
    for bad in ("5", "6"):
        assert said.count(f"refused: {alias.NAME}/{bad}") == 1, said


def test_mlflows_server_stops_and_comes_back_and_no_request_waits_for_it(store, moves):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    with mlflow_server(store, number) as first:
        with alias.serve(store, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{number}") as (port, _), loaded(port) as load:
            moves("2")
            load.expect(1, "2")
            until(lambda: 1 in load.seen.first, "version 2")
            os.kill(first.pid, signal.SIGSTOP)          # it takes connections and gives no answer
            time.sleep(6)
            os.killpg(first.pid, signal.SIGKILL)        # it takes none
            first.wait()
            moves("3")
            time.sleep(6)
            assert load.seen.versions == {"1", "2"}
            with mlflow_server(store, number):
                load.expect(2, "3")
                until(lambda: 2 in load.seen.first, "version 3", 120)
    assert sorted(load.seen.first) == [1, 2]


@contextmanager
def mlflow_server(root, number):
    """MLflow's own server on the store, until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root}/mlruns/mlflow.db",
               "--host", "127.0.0.1", "--port", str(number), "--workers", "1"]
    with (root / "mlflow.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=root, start_new_session=True, stdout=log, stderr=log)
    try:
        def answers():
            assert server.poll() is None, (root / "mlflow.log").read_text()
            with suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=5).status == 200

        until(answers, "MLflow's server", 120)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_requests_are_kept_redacted_when_asked_for(store, moves):
    with alias.serve(store, "--log-requests") as (port, server):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps({"text": "a film by jane@example.org, 4111 1111 1111 1111"})
        connection.request("POST", "/classify", body, {"content-type": "application/json"})
        assert json.loads(connection.getresponse().read())["version"] == "1"
        connection.close()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    file = store / ".requests" / f"{alias.NAME}.jsonl"
    (line,) = [json.loads(one) for one in file.read_text().splitlines()]
    assert line["text"] == "a film by <EMAIL>, <CARD>" and (line["version"], line["label"]) == ("1", "label 1")
    assert line["probability"] > 0.99 and file.stat().st_mode & 0o777 == 0o600


def test_the_versions_answer_what_they_are_named_for(tmp_path):
    """The proof of the proof: another version's answer would be noticed."""
    from ajuste.models import classifier

    for number in (1, 3):
        p = classifier.predict(*classifier.load(alias.make(tmp_path, number, COUNT, 32, 2, 64)), [alias.TEXT, "x"])
        assert torch.equal(p.argmax(-1), torch.tensor([number - 1, number - 1])) and (p.max(-1).values > 0.99).all()
