"""Both pages come up on free ports over the project's own stores, shut to all but their login, and end."""

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from ajuste.cli import logins
from ajuste.cli.processes import free_port
from tests.made.projects import ROOT


def test_a_port_in_use_is_replaced() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


RUN = "import typer; from ajuste.cli.project import ui; app = typer.Typer(); app.command()(ui.command); app()"
FOREIGN = "https://page.example"


@pytest.mark.slow
def test_both_pages_come_up_behind_a_login_and_end_with_the_command(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_HOME", "PREFECT_API"))}
    env |= {"AJUSTE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", RUN, "--mlflow-port", "0", "--prefect-port", "0"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to Ctrl-C
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        pages = dict(re.findall(r"(MLflow|Prefect)\s+(http://127\.0\.0\.1:\d+)", "".join(lines)))
        prefect_is_shut(pages["Prefect"], tmp_path / ".ui")
        mlflow_is_shut(pages["MLflow"], tmp_path / ".ui")
        in_the_browser(tmp_path / ".ui" / "pages.html", tmp_path / "browser")
        assert (tmp_path / "mlruns" / "mlflow.db").exists() and (tmp_path / ".prefect").is_dir()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        secrets = [logins.password(tmp_path / ".ui", name) for name in ("prefect", "mlflow")]
        shown = "".join(lines) + "".join(" ".join(child.cmdline()) for child in children)
        shown += "".join(log.read_text() for log in (tmp_path / ".state").glob("ui-*.log"))
        assert not any(secret in shown for secret in secrets), "in no command line and in no log"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 0
        deadline = time.monotonic() + 10
        while any(child.is_running() for child in children) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(child.is_running() for child in children)
        assert not (tmp_path / ".ui" / "env").exists() and not (tmp_path / ".ui" / "pages.html").exists()
    finally:
        process.kill()
        process.wait()


def prefect_is_shut(url: str, folder: Path) -> None:
    """Neither another page nor another host name nor nobody may ask the API; its own page and its login may."""
    assert httpx.get(f"{url}/api/health").json() is True
    login = ("ajuste", logins.password(folder, "prefect"))
    asked = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{url}/api/flows/", headers=asked).headers
    asked["Origin"] = url
    assert httpx.options(f"{url}/api/flows/", headers=asked).headers["access-control-allow-origin"] == url
    for headers in ({}, {"Host": "page.example"}, {"Origin": FOREIGN}, {"Authorization": "Basic " + "YTpi"}):
        assert httpx.post(f"{url}/api/flows/", json={"name": "foreign"}, headers=headers).status_code == 401
        assert httpx.post(f"{url}/api/flows/filter", json={}, headers=headers).status_code == 401
    assert httpx.post(f"{url}/api/flows/", json={"name": "own"}, auth=login).status_code == 201
    names = [item["name"] for item in httpx.post(f"{url}/api/flows/filter", json={}, auth=login).json()]
    assert names == ["own"]
    settings = httpx.get(f"{url}/ui-settings").json()
    assert settings["auth"] == "BASIC" and settings["api_url"] == f"{url}/api"
    # the command line finds the server and its login by itself
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    line = [sys.executable, "-c", "import os; from ajuste.cli.project import deployments as d; print(d.server(30)); "
            "print(d.deployments(d.server(30)), bool(os.environ['PREFECT_API_AUTH_STRING']))"]  # fmt: skip
    done = subprocess.run(line, env=env | {"AJUSTE_HOME": str(folder.parent), "PYTHONPATH": str(ROOT)},
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.splitlines() == [f"{url}/api", "[] True"], done.stderr


def mlflow_is_shut(url: str, folder: Path) -> None:
    """The like for MLflow, whose own default lets every host pass whose name begins like a private address."""
    make, search = f"{url}/api/2.0/mlflow/experiments/create", f"{url}/api/2.0/mlflow/experiments/search?max_results=9"
    login = ("ajuste", logins.password(folder, "mlflow"))
    assert httpx.get(f"{url}/health").text == "OK"
    assert httpx.get(url).status_code == httpx.get(search).status_code == 401
    assert httpx.post(make, json={"name": "nobody's"}).status_code == 401
    for host in ("page.example", "10.page.example", "192.168.page.example", f"127.0.0.1:{int(url[-5:]) - 1}"):
        assert httpx.get(search, headers={"Host": host}, auth=login).status_code == 403, host
    assert httpx.post(make, json={"name": "foreign"}, headers={"Origin": FOREIGN}, auth=login).status_code == 403
    page = httpx.get(url, auth=login)
    assert "<title>MLflow</title>" in page.text and page.headers["x-frame-options"] == "DENY"
    assert httpx.post(make, json={"name": "own"}, auth=login).status_code == 200
    names = {item["name"] for item in httpx.get(search, auth=login).json()["experiments"]}
    assert "own" in names and not names & {"foreign", "nobody's"}


def in_the_browser(pages: Path, profile: Path) -> None:
    """Both links of the page lead to what a login shows, without one being typed."""
    if shutil.which("chromium") is None:
        return
    for name, seen in (("Prefect", "Run a task or flow to get started"), ("MLflow", "experiments")):
        link = html.unescape(re.search(f'href="([^"]+)">{name}', pages.read_text())[1])
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 f"--user-data-dir={profile}", "--virtual-time-budget=30000", "--dump-dom", link]  # fmt: skip
        done = subprocess.run(["chromium", *flags], capture_output=True, text=True, timeout=180)
        assert seen.lower() in done.stdout.lower(), done.stdout[-3000:]
        assert 'type="password"' not in done.stdout
