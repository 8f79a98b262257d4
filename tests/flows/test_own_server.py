"""The Prefect server that `ajuste run` brings for itself: for its own run alone, not for a page that finds its port."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.cli.project import run
from ajuste.core.home import home
from tests.made.projects import ROOT

# what `ajuste run` does before Prefect is imported, and a flow that asks its own server as others would
RUN = """
import os
from ajuste.cli.project import run
run.settle()
import httpx
from prefect import flow
from prefect.context import FlowRunContext

@flow
def asked():
    api = str(FlowRunContext.get().client.api_url).rstrip("/")
    page = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    login = tuple(os.environ["PREFECT_API_AUTH_STRING"].split(":"))
    return {
        "nobody": httpx.post(f"{api}/flows/filter", json={}).status_code,
        "login": httpx.post(f"{api}/flows/filter", json={}, auth=login).status_code,
        "page": httpx.options(f"{api}/flows/", headers=page).headers.get("access-control-allow-origin"),
    }

print(asked())
"""


@pytest.mark.slow
def test_nobody_else_may_ask_the_server_of_a_run(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "AJUSTE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.stdout.splitlines()[-1:] == ["{'nobody': 401, 'login': 200, 'page': None}"], done.stdout + done.stderr


def test_a_home_that_is_not_there_yet_is_made(tmp_path, monkeypatch) -> None:
    """Prefect makes its own folder in it, but none above: its server would wait for minutes and then give up."""
    monkeypatch.setattr(os, "environ", {**os.environ, "AJUSTE_HOME": str(tmp_path / "not/there")})  # it sets some more
    home.cache_clear()
    try:
        run.settle()
    finally:
        home.cache_clear()
    assert (tmp_path / "not/there").is_dir()
