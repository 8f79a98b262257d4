"""`ajuste ui`: MLflow's and Prefect's pages on loopback, over the stores of this project, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Annotated

import typer

START_SECONDS = 120  # the first start of both migrates their databases


def command(
    mlflow_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 4200,
) -> None:
    """Show runs, curves and models (MLflow) and flow runs and schedules (Prefect) in the browser.

    A port in use is replaced by a free one. With MLFLOW_TRACKING_URI or PREFECT_API_URL set to a server, that server's
    address is printed and nothing is started for it.

    Examples:  ajuste ui   |   ajuste ui --mlflow-port 0 --prefect-port 0
    """
    from tasks._stage import home
    from tracking import runs

    pages, started = {}, {}
    uri, api = runs.tracking_uri(), os.environ.get("PREFECT_API_URL")
    if uri.startswith(("http://", "https://")):
        pages["MLflow"] = uri
    else:
        port = free_port(mlflow_port)
        pages["MLflow"] = f"http://127.0.0.1:{port}"
        (home() / "mlruns").mkdir(parents=True, exist_ok=True)
        options = ["--backend-store-uri", uri, "--default-artifact-root", f"file://{home()}/mlruns", "--workers", "1"]
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *options]
        # its queue of jobs would be eight more processes, for features that nothing here uses
        env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        started["MLflow"] = (command, f"{pages['MLflow']}/health", env)
    if api:
        pages["Prefect"] = api.removesuffix("/").removesuffix("/api")
    else:
        port = free_port(prefect_port)
        pages["Prefect"] = f"http://127.0.0.1:{port}"
        env = {"PREFECT_HOME": str(home() / ".prefect"), "PREFECT_UI_API_URL": f"{pages['Prefect']}/api"}
        command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        started["Prefect"] = (command, f"{pages['Prefect']}/api/health", env)
    _serve(pages, started)


def free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1 if nothing listens there, else one that is free now."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise OSError("no free port on 127.0.0.1")


def _serve(pages: dict[str, str], started: dict[str, tuple[list[str], str, dict[str, str]]]) -> None:
    from rich.console import Console

    from tasks._stage import home

    console, logs = Console(highlight=False, soft_wrap=True), home() / ".state"
    logs.mkdir(parents=True, exist_ok=True)
    processes: dict[str, subprocess.Popen] = {}
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for name, (command, _, env) in started.items():
            with (logs / f"ui-{name.lower()}.log").open("w") as log:
                # a session of its own: both start children, which must end with them
                processes[name] = subprocess.Popen(
                    [sys.executable, "-P", *command],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **env},
                    start_new_session=True,
                )
        for name, url in pages.items():
            if name in started:
                _wait(name, processes[name], started[name][1])
            console.print(f"{name:8} {url}")
        if processes:
            console.print("Ctrl-C ends both.")
        while all(process.poll() is None for process in processes.values()) and processes:
            time.sleep(0.5)
        for name, process in processes.items():
            if process.poll() is not None:
                raise _ended(name, process)
    except KeyboardInterrupt:
        pass
    finally:
        for process in processes.values():
            stop(process)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _wait(name: str, process: subprocess.Popen, health: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise _ended(name, process)
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                from tasks._params import DataError

                raise DataError(f"{name} does not answer after {START_SECONDS} s: see {_log(name)}") from None
            time.sleep(0.3)


def _ended(name: str, process: subprocess.Popen) -> Exception:
    from tasks._params import DataError

    return DataError(f"{name} ended with {process.returncode}: see {_log(name)}")


def _log(name: str) -> str:
    from tasks._stage import home

    return str(home() / ".state" / f"ui-{name.lower()}.log")


def stop(process: subprocess.Popen) -> None:
    """End a process that leads its session, and its children: first asked, after ten seconds made to."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
