"""Real servers as processes, on a real registry: `ajuste serve` and MLflow's own, side by side."""

import contextlib
import http.client
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from ajuste.cli.models import chat, serve
from ajuste.cli.processes import free_port
from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.serving.loading import Place
from tests.cli.registered import install, run
from tests.made.tiny_classifiers import TEXTS
from tests.serving.conftest import FakeRegistry
from tests.tracking import assistants, projects
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


@pytest.mark.slow
def test_ajuste_serve_and_mlflow_serve_give_the_same_answers(recorded):  # noqa: F811
    ours = [sys.executable, "-m", "ajuste.cli.main", "serve", "--port", "0"]
    port = free_port(0)
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


@pytest.fixture(scope="module")
def both_registered(tmp_path_factory):
    """A project with an assistant and, in the same store, a classifier."""
    from ajuste.tracking.project import lock
    from ajuste.tracking.registry import registry
    from ajuste.tracking.runs import runs

    root = assistants.make(tmp_path_factory.mktemp("both"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJUSTE_HOME", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home.cache_clear()
        for run_of in (projects.make(tmp_path_factory.mktemp("classifier")), root):
            patch.chdir(run_of)
            parent = runs.parent(run_of.name[:8] * 8)
            for stage in lock.stages():
                runs.record(stage, parent)
            registry.register_all(parent)
            runs.finish(parent)
        yield root
    home.cache_clear()


def test_classifier_and_assistant_from_one_server_and_the_same_words_without_it(both_registered, monkeypatch, capsys):
    monkeypatch.chdir(both_registered)
    with process([sys.executable, "-m", "ajuste.cli.main", "serve", "--port", "0"], both_registered) as server:
        said = lines_until(server, "listening")
        assert any(line.startswith("assistant: version 1 (lora), challenger") for line in said), said
        assert "POST /classify, POST /v1/chat/completions, GET /models" in said[-1]
        url = said[-1].split("listening on ")[1].split()[0]
        port = int(url.rpartition(":")[2])
        assert ask(port, "POST", "/classify", {"text": TEXTS[0]})[0] == 200
        names = [model["id"] for model in ask(port, "GET", "/v1/models")[1]["data"]]
        assert names == ["assistant", "assistant-adapter"]
        words = []
        for arguments in ([], ["assistant-adapter/1"], ["--url", url], ["assistant-adapter/1", "--url", url]):
            monkeypatch.setattr(sys, "stdin", io.StringIO("A warm film.\nAnd the plot?\n"))
            assert not run(chat.command, *arguments, "--temperature", 0, "--max-tokens", 12)
            words.append(capsys.readouterr().out)
        assert words[0].count("\n") >= 2 and words[0].strip() and len(set(words)) == 1, words
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_one_damaged_model_does_not_keep_the_others_from_being_served(folders, speakers, tmp_path, monkeypatch, capsys):
    registry = FakeRegistry({"assistant": [speakers["merged"]], "reviews-classifier": [folders["merged"]]},
                            {"assistant": {"challenger": 1}, "reviews-classifier": {"champion": 1}})
    install(monkeypatch, registry, tmp_path)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: sockets[0].close())
    registry.sha256[speakers["merged"]] = "0" * 64
    run(serve.command, "--port", 0)
    out, err = capsys.readouterr()
    assert "reviews-classifier: version 1" in out and "warning: assistant is not served: assistant/1: " in err
    with pytest.raises(DataError, match="changed or damaged"):
        run(serve.command, "--port", 0, "assistant")
    registry.sha256[folders["merged"]] = "0" * 64
    with pytest.raises(DataError, match="changed or damaged"):
        run(serve.command, "--port", 0)


@pytest.mark.parametrize("arguments, message", [
    (["other"], "no model `other` is registered: there is reviews-classifier, reviews-classifier-adapter"),
    (["reviews-classifier@champion"], "has no alias `champion`"),
    (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid port 0"),
    (["--device", "tpu"], "no device `tpu`: --device takes cpu, cuda, cuda:NUMBER or auto"),
    (["--device", "cuda:99"], r"no device `cuda:99`: torch sees \d+ GPUs"),
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


def test_its_options_reach_the_models_and_the_connections(folders, tmp_path, monkeypatch, capsys):
    registry = FakeRegistry({"reviews-classifier": [folders["merged"]]}, {"reviews-classifier": {"champion": 1}})
    install(monkeypatch, registry, tmp_path)
    seen = {}

    def run_server(app, listening, **how):
        listening.close()
        seen.update(models=app.parts.models, **how)

    monkeypatch.setattr("ajuste.serving.door.connections.run", run_server)
    run(serve.command, "--port", 0, "--dtype", "bfloat16", "--device", "auto", "--keep-gb", 0.5)
    models = seen["models"]
    assert {p.dtype for p in models.get("reviews-classifier").model.parameters()} == {torch.bfloat16}
    assert models._max_bytes == 500_000_000 and "log_config" not in seen
    run(serve.command, "--port", 0)
    assert seen["models"]._place == Place() and seen["models"]._max_bytes == Place().memory() // 2


@pytest.mark.slow
def test_a_real_server_logs_json_lines_with_ids(both_registered):
    command = [sys.executable, "-u", "-m", "ajuste.cli.main", "serve", "--port", "0", "--log-json"]
    with process(command, both_registered) as server:
        port = int(lines_until(server, "listening")[-1].split("http://127.0.0.1:")[1].split()[0])
        assert ask(port, "GET", "/readyz")[0] == 200
        (line,) = [json.loads(one) for one in lines_until(server, "readyz") if one.startswith("{")]
        assert (line["path"], line["status"]) == ("/readyz", 200) and len(line["request"]) == 32


def test_it_answers_on_its_socket_with_limits_until_a_signal_ends_it(folders, tmp_path, monkeypatch, capsys):
    registry = FakeRegistry({"reviews-classifier": [folders["merged"]]}, {"reviews-classifier": {"champion": 1}})
    install(monkeypatch, registry, tmp_path)
    port, found = free_port(0), []

    def client():
        try:
            for method, path, body in (("GET", "/readyz", None), ("POST", "/classify", {"text": TEXTS[0]})):
                found.append(ask(port, method, path, body)[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                found.append(b"ajuste_connections 1.0" in answer.read())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    listen = serve.listen

    def listens(*where):            # nobody asks before it does
        listening = listen(*where)
        asking.start()
        return listening

    asking = threading.Thread(target=client)
    monkeypatch.setattr(serve, "listen", listens)
    run(serve.command, "--port", port)
    asking.join(30)
    assert found == [200, 200, True]
    assert "stopped" in capsys.readouterr().out
