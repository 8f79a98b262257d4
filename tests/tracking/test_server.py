"""The same code against a tracking server on PostgreSQL that keeps the artefacts, as a team would run it."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from ajuste.cli.processes import free_port
from ajuste.core.home import home
from ajuste.models import classifier
from ajuste.models.folder import sha256_of
from ajuste.tracking.comparing import compare
from ajuste.tracking.project import lock
from ajuste.tracking.registry import registry
from ajuste.tracking.runs import runs, store
from tests.tracking import projects

BIN = next((folder for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
            if (folder / "initdb").exists()), None)
if BIN is None:
    pytest.skip("PostgreSQL is not installed (`make system` installs it): NOT TESTED against a server on PostgreSQL",
                allow_module_level=True)
pytest.importorskip("psycopg2", reason="psycopg2 is not installed: NOT TESTED against a server on PostgreSQL")


@contextlib.contextmanager
def running(command: list[str], log: Path, how=signal.SIGTERM, **options):
    """A process that ends, with what it started, when the block does."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def wait_for(ask, process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if ask():
                return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def answers(url: str) -> bool:
    return urllib.request.urlopen(url, timeout=2).status == 200


@pytest.fixture(scope="module")
def postgres():
    """The address of a database of its own. PostgreSQL refuses to run as root, so another user runs it then."""
    folder, port = Path(tempfile.mkdtemp(prefix="ajuste-pg-")), free_port(0)
    user: dict = {}
    if os.geteuid() == 0:
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = known.get("postgres") or known["nobody"]
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    data, log = folder / "data", folder / "log"
    initdb = [BIN / "initdb", "--pgdata", data, "--username", "ajuste", "--auth", "trust", "--no-sync"]
    done = subprocess.run(list(map(str, initdb)), cwd=folder, capture_output=True, text=True, **user)
    assert done.returncode == 0, done.stderr
    server = [BIN / "postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
    try:
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients
        with running(list(map(str, server)), log, how=signal.SIGINT, cwd=folder, **user) as process:
            ask = [str(BIN / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
            wait_for(lambda: subprocess.run(ask).returncode == 0, process, log)
            yield f"postgresql://ajuste@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory):
    """The address of an MLflow server."""
    folder, port = tmp_path_factory.mktemp("server"), free_port(0)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres, "--artifacts-destination",
               str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = folder / "log"
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else seven processes more
    # killed, because it waits long for open connections
    with running(command, log, how=signal.SIGKILL, cwd=folder, env=env) as process:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), process, log)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def team(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A project whose store is the server."""
    root = projects.make(tmp_path / "project", seed=300)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("AJUSTE_HOME", str(root))
    monkeypatch.chdir(root)
    home.cache_clear()
    yield root
    home.cache_clear()


def test_a_run_is_recorded_registered_resolved_and_served(team: Path, server: str, tmp_path: Path) -> None:
    parent = runs.parent("f" * 64)
    ids = [runs.record(stage, parent) for stage in lock.stages()]
    new = registry.register_all(parent)
    runs.finish(parent)
    assert [f"{version.name}/{version.version}" for version in new] == [
        "reviews-classifier-adapter/1", "reviews-classifier/1", "reviews-classifier/2", "reviews-classifier/3"]
    # again: nothing
    assert [runs.record(stage, parent) for stage in lock.stages()] == ids and registry.register_all(parent) == []
    found = store.client().search_runs([store.experiment_id()])
    assert len(found) == len(ids) + 1 and {run.info.status for run in found} == {"FINISHED"}
    lora = next(run for run in found if run.info.run_name == "classify_lora")
    assert {len(item.dataset.digest) for item in lora.inputs.dataset_inputs} == {36}
    assert not (team / "mlruns" / "mlflow.db").exists() and not (team / "mlruns" / "artifacts").exists()

    # the files come down once and are the ones that were registered
    version = registry.resolve("reviews-classifier")
    assert version.version == "3" and version.path.is_relative_to(team / ".assets" / "models")
    assert sha256_of(version.path / "model.safetensors") == version.tags["sha256"]
    stamp = (version.path / "model.safetensors").stat().st_mtime_ns
    assert registry.resolve("reviews-classifier@challenger").path == version.path
    assert (version.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert not list(version.path.parents[2].glob(".*"))  # no half download stays
    rows = compare.compare("reviews-classifier")
    assert rows["versions"][2]["seconds"] == 22.5 and len(rows["paired"]) == 2

    # and MLflow's own server answers with the same probabilities
    texts = ["a warm film", "dull"]
    expected = classifier.predict(*classifier.load(team / "artifacts/merged/classify_lora"), texts)
    port, log = free_port(0), tmp_path / "serve.log"
    uri = "models:/reviews-classifier@challenger"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local",
               "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn by name
    with running(command, log, how=signal.SIGKILL, cwd=tmp_path, env={**os.environ, "PATH": path}) as process:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/ping"), process, log)
        for body in ({"inputs": texts}, {"dataframe_records": [{"text": text} for text in texts]}):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            given = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
            assert [row["label"] for row in given] == [projects.LABELS[i] for i in expected.argmax(-1).tolist()]
            assert [row["probabilities"] for row in given] == [pytest.approx(row) for row in expected.tolist()]
