"""Real servers as processes, on a real registry: `ajuste serve` and MLflow's own, side by side."""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import serve
from tasks._stage import UsageError, home
from tests.cli.registered import run
from tests.tiny_classifiers import TEXTS
from tests.tracking.conftest import project, recorded  # noqa: F401

ROOT = Path(__file__).parents[2]


def environment(home, **more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(ROOT), "AJUSTE_HOME": str(home), "PATH": path} | more


@contextlib.contextmanager
def process(command, home, **more):
    """A server in a process group of its own, ended with it."""
    server = subprocess.Popen(command, cwd=home, env=environment(home, **more), start_new_session=True, bufsize=0,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read().strip() or b"null")


def lines_until(server, word, seconds=60):
    """What it prints up to the line with that word. (The pipe is unbuffered, or select would miss what was read.)"""
    said, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([server.stdout], [], [], 1)[0]:
            line = server.stdout.readline().decode()
            said.append(line)
            if word in line or not line:
                return said
    raise AssertionError(f"no `{word}` in {said}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_ajuste_serve_and_mlflow_serve_give_the_same_answers(recorded):  # noqa: F811
    ours = [sys.executable, "-m", "cli.main", "serve", "--port", "0"]
    port = free_port()
    theirs = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/reviews-classifier@challenger",
              "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    store = f"sqlite:///{recorded}/mlruns/mlflow.db"
    with process(theirs, recorded, MLFLOW_TRACKING_URI=store) as mlflow, process(ours, recorded) as server:
        said = lines_until(server, "listening")
        assert "reviews-classifier: version" in said[-2] and "challenger, because no champion is set" in said[-2], said
        mine = int(said[-1].split("http://127.0.0.1:")[1].split()[0])
        status, body = ask(mine, "POST", "/classify", {"texts": TEXTS})
        assert status == 200 and (body["model"], body["alias"]) == ("reviews-classifier", "challenger")
        status, adapter = ask(mine, "POST", "/classify", {"model": "reviews-classifier-adapter/1", "texts": TEXTS})
        assert status == 200
        if body["strategy"] == "lora":              # the merged model and its adapter are one model
            for one, other in zip(body["results"], adapter["results"], strict=True):
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)

        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                if ask(port, "GET", "/ping")[0] == 200:
                    break
            assert mlflow.poll() is None and time.monotonic() < deadline, "mlflow models serve did not start"
            time.sleep(0.5)
        status, peer = ask(port, "POST", "/invocations", {"inputs": TEXTS})
        assert status == 200, peer
        for one, other in zip(body["results"], peer["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert list(one["probabilities"].values()) == pytest.approx(other["probabilities"], abs=1e-6)

        second = subprocess.run([*ours[:-1], str(mine)], cwd=recorded, env=environment(recorded), text=True,
                                capture_output=True, timeout=60)
        assert second.returncode == 2 and second.stdout == ""
        assert second.stderr == (f"error: cannot listen on 127.0.0.1 port {mine} (Address already in use): "
                                 "end what uses it or choose another with --port\n")
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0 and server.stdout.read().endswith(b"stopped\n")


@pytest.mark.parametrize("arguments, message", [
    (["other"], "no model `other` is registered: there is reviews-classifier, reviews-classifier-adapter"),
    (["reviews-classifier@champion"], "has no alias `champion`"),
    (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid port 0"),
])
def test_a_wrong_name_or_host_says_what_there_is(project, arguments, message):  # noqa: F811
    with pytest.raises(UsageError, match=message):
        run(serve.command, "--port", 0, *arguments)


def test_an_empty_registry_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    home.cache_clear()
    with pytest.raises(UsageError, match="nothing is registered yet: `ajuste run`"):
        run(serve.command, "--port", 0)
    home.cache_clear()
