"""Both pages come up on free ports over the project's own stores, and end with the command."""

import os
import re
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

from ajuste.cli.processes import free_port
from tests.made.projects import ROOT


def test_a_port_in_use_is_replaced() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


RUN = "import typer; from cli import ui; app = typer.Typer(); app.command()(ui.command); app()"


@pytest.mark.slow
def test_both_pages_come_up_and_end_with_the_command(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_HOME", "PREFECT_API"))}
    env |= {"AJUSTE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", RUN, "--mlflow-port", "0", "--prefect-port", "0"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to Ctrl-C
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        pages = dict(re.findall(r"(MLflow|Prefect)\s+(http://127\.0\.0\.1:\d+)", "".join(lines)))
        assert "<title>MLflow</title>" in httpx.get(pages["MLflow"]).text
        assert httpx.get(f"{pages['Prefect']}/api/health").json() is True
        assert f"{pages['Prefect']}/api" in httpx.get(f"{pages['Prefect']}/ui-settings").text
        assert (tmp_path / "mlruns" / "mlflow.db").exists() and (tmp_path / ".prefect").is_dir()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 0
        deadline = time.monotonic() + 10
        while any(child.is_running() for child in children) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(child.is_running() for child in children)
    finally:
        process.kill()
        process.wait()
