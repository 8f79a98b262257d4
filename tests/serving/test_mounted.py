"""The model server with what its container mounts and nothing else: bases, policy.yaml, a home of its own, MLflow's
login. infra/compose.yaml and infra/k8s/models.yaml mount just that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ajuste.cli import logins, processes
from tests.made.projects import ROOT
from tests.made.tiny_classifiers import TEXTS
from tests.tracking.conftest import project, recorded  # noqa: F401


@pytest.mark.slow
def test_it_answers_from_what_it_mounts_and_mlflow_wants_its_login(recorded: Path, tmp_path: Path) -> None:  # noqa: F811
    login, port, mine = tmp_path / "login", processes.free_port(0), processes.free_port(0)
    options, env = logins.mlflow_server(login, port, f"sqlite:///{login}/users.db")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AJUSTE_", "PREFECT_"))}
    store = ["--backend-store-uri", f"sqlite:///{recorded}/mlruns/mlflow.db", "--workers", "1"]
    command = processes.python("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store, *options)
    started = [processes.start(command, tmp_path / "mlflow.log", clean | env, tmp_path)]
    mounted = tmp_path / "home"
    shutil.copytree(recorded / "artifacts" / "base", mounted / "artifacts" / "base")
    shutil.copyfile(ROOT / "policy.yaml", mounted / "policy.yaml")
    client = clean | {"AJUSTE_HOME": str(mounted), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    client |= {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    serve = [sys.executable, "-m", "ajuste.cli.main", "serve", "--port", str(mine)]
    try:
        processes.wait("mlflow", started[0], lambda: processes.answers(f"http://127.0.0.1:{port}/health"),
                       tmp_path / "mlflow.log")  # fmt: skip
        done = subprocess.run(serve, cwd=mounted, env=client, capture_output=True, text=True, timeout=180)
        assert done.returncode == 2 and "does not answer" in done.stderr and "\n" not in done.stderr.strip(), done
        client |= logins.client(login, mlflow=f"http://127.0.0.1:{port}")
        started.append(processes.start(serve, tmp_path / "serve.log", client, mounted))
        processes.wait("serve", started[1], lambda: processes.answers(f"http://127.0.0.1:{mine}/models"),
                       tmp_path / "serve.log")  # fmt: skip
        for model in ("reviews-classifier", "reviews-classifier-adapter/1"):  # merged, and an adapter on the base
            answer = httpx.post(f"http://127.0.0.1:{mine}/classify", json={"model": model, "texts": TEXTS}, timeout=60)
            assert answer.status_code == 200 and len(answer.json()["results"]) == len(TEXTS), answer.text
        assert logins.password(login, "mlflow") not in (tmp_path / "serve.log").read_text()
        assert {path.name for path in mounted.iterdir()} <= {"artifacts", "policy.yaml", "mlruns", ".assets", ".state"}
    finally:
        for process in reversed(started):
            processes.stop(process.pid)
