"""The stack on loopback: what its files, ports and process ids say, and all of its servers, really started."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from infra import postgres, stack
from tests.made.projects import ROOT, environment

INSTALLED = list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgres = pytest.mark.skipif(
    not INSTALLED, reason="PostgreSQL is not installed (`make system`): the stack is NOT TESTED"
)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    home.cache_clear()
    (tmp_path / ".stack").mkdir()
    yield tmp_path
    home.cache_clear()


def test_a_process_id_that_another_process_has_now_is_not_ours(at_home: Path) -> None:
    mine = psutil.Process()
    for created, found in ((mine.create_time(), mine), (mine.create_time() - 3600, None)):
        (at_home / ".stack" / "pids.json").write_text(json.dumps({"mlflow": {"pid": mine.pid, "created": created}}))
        assert stack.Stack().process("mlflow") == found
    stack.down(stack.Stack())  # and this process lives on


def test_only_what_carries_the_mark_of_this_home_is_lost_and_found(at_home: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    lost, other = (
        subprocess.Popen(sleep, env={**os.environ, stack.MARK: str(place)}) for place in (at_home, at_home / "other")
    )
    try:
        stack.down(stack.Stack())
        assert lost.poll() is not None and other.poll() is None
    finally:
        for process in (lost, other):
            process.kill()
            process.wait()


def test_ports_are_kept_chosen_and_refused_in_one_line(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setenv("AJUSTE_STACK_MLFLOW_PORT", str(taken))
        with pytest.raises(UsageError, match=f"mlflow: port {taken} .* in use: .* AJUSTE_STACK_MLFLOW_PORT=0"):
            stack._choose_port(stack.Stack(), "mlflow")
    monkeypatch.setenv("AJUSTE_STACK_MLFLOW_PORT", "0")
    stack._choose_port(stack.Stack(), "mlflow")
    kept = stack.Stack().port("mlflow")
    assert kept != taken
    monkeypatch.delenv("AJUSTE_STACK_MLFLOW_PORT")
    stack._choose_port(stack.Stack(), "mlflow")
    assert stack.Stack().port("mlflow") == kept
    monkeypatch.setenv("AJUSTE_STACK_MLFLOW_PORT", "http")
    with pytest.raises(UsageError, match="AJUSTE_STACK_MLFLOW_PORT=http is no port"):
        stack._choose_port(stack.Stack(), "mlflow")


def test_the_password_is_for_us_alone_and_in_no_address(tmp_path: Path) -> None:
    path = postgres.passfile(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = path.read_text().strip().rpartition(":")[2]
    assert len(password) >= 32 and postgres.passfile(tmp_path).read_text().strip().endswith(password)
    assert password not in postgres.address("postgresql", 1, "mlflow")


@needs_postgres
@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")
def test_a_home_that_postgresqls_user_cannot_enter_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(UsageError, match=r"who may not enter .*chmod o\+x"):
        postgres.start(tmp_path, 1, tmp_path / "log", {})
    assert not list(tmp_path.glob("postgres*"))


@pytest.fixture
def place() -> Iterator[Path]:
    """A clone that PostgreSQL's user may enter; no stack is left in it."""
    folder = Path(tempfile.mkdtemp(prefix="ajuste-stack-"))
    folder.chmod(0o755)
    try:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "ajuste")], check=True)
        yield folder / "ajuste"
    finally:
        if (folder / "ajuste" / ".stack").exists():
            command(folder / "ajuste", "down")
        shutil.rmtree(folder)


def command(place: Path, verb: str) -> subprocess.CompletedProcess[str]:
    ports = {f"AJUSTE_STACK_{name.upper()}_PORT": "0" for name in stack.PORTS}
    env = environment(place) | {"PREFECT_WORKER_QUERY_SECONDS": "2"} | ports
    line = [sys.executable, "-m", "infra.stack", verb]
    return subprocess.run(line, cwd=place, env=env, capture_output=True, text=True, timeout=500)


def marked(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(stack.MARK) == str(place):
                found.append(process)
        except psutil.Error:
            continue
    return found


def rows(place: Path, port: int, database: str, query: str) -> list[tuple]:
    import psycopg2

    password = (place / ".stack" / "pgpass").read_text().strip().rpartition(":")[2]
    with psycopg2.connect(host="127.0.0.1", port=port, user="ajuste", password=password, dbname=database) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchall()


@needs_postgres
@pytest.mark.slow
def test_all_of_it_starts_works_on_postgresql_survives_and_ends(place: Path) -> None:
    pytest.importorskip("psycopg2")
    done = command(place, "up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "models    left out: nothing is registered yet" in done.stdout
    known = json.loads((place / ".stack" / "pids.json").read_text())
    settings = dict(line[7:].split("=", 1) for line in (place / ".stack" / "env").read_text().splitlines())
    mlflow, prefect = settings["MLFLOW_TRACKING_URI"], settings["PREFECT_API_URL"]
    assert httpx.get(f"{mlflow}/health").text == "OK" and httpx.get(f"{prefect}/health").json() is True
    filtered, create = f"{prefect}/work_pools/ajuste/workers/filter", f"{mlflow}/api/2.0/mlflow/experiments/create"
    assert httpx.post(filtered, json={}).status_code == httpx.post(create, json={"name": "x"}).status_code == 401
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(filtered, headers=asked).headers
    assert stat.S_IMODE((place / ".stack" / "env").stat().st_mode) == 0o600
    to_prefect = tuple(settings["PREFECT_API_AUTH_STRING"].split(":"))
    to_mlflow = settings["MLFLOW_TRACKING_USERNAME"], settings["MLFLOW_TRACKING_PASSWORD"]
    workers = httpx.post(filtered, json={}, auth=to_prefect).json()
    assert [(item["name"], item["status"]) for item in workers] == [("ajuste-stack", "ONLINE")]

    # what a client tells the servers is in PostgreSQL, and artefacts come through the proxy
    made = httpx.post(create, json={"name": "over HTTP"}, auth=to_mlflow).json()
    port = known["postgres"]["port"]
    query = "select experiment_id, artifact_location from experiments where name = 'over HTTP'"
    found = rows(place, port, "mlflow", query)
    assert [(str(number), where) for number, where in found] == [
        (made["experiment_id"], f"mlflow-artifacts:/{made['experiment_id']}")]
    artifact = f"{mlflow}/api/2.0/mlflow-artifacts/artifacts/{made['experiment_id']}/a.txt"
    assert httpx.put(artifact, content=b"foreign").status_code == 401
    httpx.put(artifact, content=b"bytes", auth=to_mlflow)
    assert (place / ".stack" / "artifacts" / made["experiment_id"] / "a.txt").read_bytes() == b"bytes"
    names = {name for name, in rows(place, port, "prefect", "select name from deployment")}
    assert names >= {"adapt", "reproduce", "recover"}
    assert not list(place.rglob("*.db"))

    # PostgreSQL's password is in no command line, environment or log, the logins in no command line and no log
    password = (place / ".stack" / "pgpass").read_text().strip().rpartition(":")[2]
    secrets = [password, to_prefect[1], to_mlflow[1]]
    for process in marked(place):
        assert password not in " ".join(process.environ().values())
        assert not [secret for secret in secrets if secret in " ".join(process.cmdline())]
    for log in (place / ".stack" / "logs").iterdir():
        assert not [secret for secret in secrets if secret in log.read_text()], log

    again = command(place, "up")
    assert again.returncode == 0 and again.stdout.count("runs already") == 5, again.stdout + again.stderr

    # half of it dies: what lives goes on, what died comes back where it was
    for name in ("worker", "postgres"):
        psutil.Process(known[name]["pid"]).kill()
    assert command(place, "status").returncode == 1
    back = command(place, "up")
    assert back.returncode == 0 and back.stdout.count("started") == 2, back.stdout + back.stderr
    now = json.loads((place / ".stack" / "pids.json").read_text())
    same = [name for name in ("postgres", "prefect", "mlflow", "worker") if now[name] == known[name]]
    assert same == ["prefect", "mlflow"]
    assert now["postgres"]["port"] == port
    assert command(place, "status").returncode == 0
    search = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=5"
    assert made["experiment_id"] in httpx.get(search, auth=to_mlflow).text

    assert marked(place)
    # a server that its process id no longer finds is ended too
    (place / ".stack" / "pids.json").write_text(json.dumps({"postgres": now["postgres"], "mlflow": {"port": 1}}))
    ended = command(place, "down")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert marked(place) == [] and not psutil.pid_exists(now["postgres"]["pid"])
    assert command(place, "down").returncode == 0
