"""benchmarks/suite.py: it holds every script, bounds each in time, and leaves JSON of one form."""

import json
import sys
from pathlib import Path

import pytest

from ajuste.cli.processes import answers, free_port
from benchmarks import results, servers, suite
from benchmarks.suite import Script

ROOT = Path(__file__).parents[1]
FORM = {"name": str, "command": str, "status": str, "why": str, "began": str, "seconds": float, "commit": str,
        "machine": dict, "load": list, "values": list}  # fmt: skip
MACHINE = {"cpu", "cores", "flags", "memory_gb", "gpu", "python"}
FIGURE = {"name", "unit", "runs", "median", "spread"}


def test_the_list_holds_every_script() -> None:
    runnable = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    listed = [script.name for script in suite.SCRIPTS]
    assert len(listed) == len(set(listed))
    assert set(listed) | set(suite.LEFT_OUT) | {"suite"} == runnable and not set(listed) & set(suite.LEFT_OUT)
    assert all(script.minutes > 0 and script.needs in ("", *suite.NEEDS) for script in suite.SCRIPTS)


def test_every_script_keeps_figures() -> None:
    for script in suite.SCRIPTS:
        text = (ROOT / "benchmarks" / f"{script.name}.py").read_text()
        assert "    value(" in text or "    values(" in text, f"{script.name} keeps no figure for `make bench`"


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmarks package of three scripts: one that measures, one that fails, one that never ends."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    # the real package's helper, below another root
    for name in ("__init__.py", "results.py"):
        source = ROOT / "benchmarks" / name
        (package / name).write_text(source.read_text() if source.is_file() else "")
    (package / "good.py").write_text(
        "from benchmarks.results import value\n"
        "value('speed', 'rows/s', [3.0, 1.0, 2.0])\nprint('a page')\n"
    )  # fmt: skip
    (package / "bad.py").write_text("from benchmarks.results import value\nraise SystemExit('no rows')\n")
    (package / "endless.py").write_text("import time\nwhile True: time.sleep(0.1)\n")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_script_leaves_its_figures_with_machine_and_command(scripts: Path, capsys) -> None:
    (found,) = suite.run([Script("good", 1, environment={"OMP_NUM_THREADS": "1"})], scripts / "out", "HEAD~1")
    assert found == json.loads((scripts / "out/good.json").read_text())
    assert {key: type(value) for key, value in found.items()} == FORM
    assert set(found["machine"]) == MACHINE and found["machine"]["cores"] > 0 and len(found["load"]) == 2
    assert found["status"] == "done" and found["command"] == "OMP_NUM_THREADS=1 python -m benchmarks.good"
    (figure,) = found["values"]
    assert set(figure) == FIGURE and figure["median"] == 2.0 and figure["spread"] == [1.0, 3.0]
    assert (scripts / "out/good.log").read_text() == "a page\n"
    assert not (scripts / "out/good.values").exists()


def test_one_that_fails_does_not_end_the_rest_but_the_exit_code_says_it(scripts: Path, monkeypatch) -> None:
    monkeypatch.setattr(suite, "SCRIPTS", (Script("bad", 1), Script("good", 1)))
    with pytest.raises(SystemExit) as ended:
        suite.main(["--out", "out"])
    assert "bad" in str(ended.value.code) and "good" not in str(ended.value.code)
    states = {path.stem: json.loads(path.read_text()) for path in Path("out").glob("*.json")}
    assert {name: state["status"] for name, state in states.items()} == {"bad": "failed", "good": "done"}
    assert states["bad"]["why"] == "exit code 1: no rows"


def test_one_that_does_not_end_is_ended(scripts: Path) -> None:
    (scripts / "out").mkdir()
    found = suite.measure(Script("endless", 1), scripts / "out", "HEAD~1", seconds=0.5)
    assert found["status"] == "over time" and found["why"] == "ended after 1 minutes"


def test_what_is_missing_is_said_and_is_no_failure(scripts: Path, monkeypatch) -> None:
    monkeypatch.delenv("AJUSTE_TRL_PYTHON", raising=False)
    monkeypatch.setattr(suite, "SCRIPTS", (Script("good", 1, needs="trl"),))
    suite.main(["--out", "out"])
    found = json.loads(Path("out/good.json").read_text())
    assert found["status"] == "not run" and "TRL 1.16" in found["why"] and "make run" in found["why"]


def test_figures_of_many_runs_are_grouped(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(results.VALUES, str(tmp_path / "kept"))
    results.values([{"side": "a", "x": 1}, {"side": "b", "x": 5}, {"side": "a", "x": 3}], {"x": "MB"}, "side")
    assert [(one["name"], one["unit"], one["runs"]) for one in results.read(tmp_path / "kept")] == [
        ("a, x", "MB", [1.0, 3.0]), ("b, x", "MB", [5.0]),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no run"):
        results.value("nothing", "s", [])


SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def said(self, code, text):
        self.send_response(code); self.send_header("content-length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def do_GET(self): self.said(200, b"ok")
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.said(*((200, b'{"units": 2}') if self.path == "/good" else (500, b'"no"')))
    def log_message(self, *rest): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_clients_share_the_requests_and_a_wrong_answer_ends_them(tmp_path: Path) -> None:
    port = free_port(0)
    with servers.server([sys.executable, "-c", SERVER, str(port)], port, tmp_path / "log"):
        numbers = []

        def once(connection, number: int) -> int:
            numbers.append(number)
            return servers.ask(connection, "/good", {})["units"]

        rate, seconds = servers.load(port, 3, once, requests=20)
        assert rate > 0 and len(seconds) == 20 and sorted(numbers) == list(range(20))
        with pytest.raises(RuntimeError, match="/bad answered 500"):
            servers.load(port, 2, lambda connection, _: servers.ask(connection, "/bad", {}), seconds=5)


def test_a_server_in_a_thread_ends_with_its_block() -> None:
    import uvicorn

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    with servers.in_thread(uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))) as port:
        assert answers(f"http://127.0.0.1:{port}/")
    assert not answers(f"http://127.0.0.1:{port}/")
