"""`ajuste ui`: MLflow's and Prefect's pages on loopback, over the stores of this project, until Ctrl-C.

Both want a login (ajuste/cli/logins.py), which nobody types: <home>/.ui/pages.html leads to both pages, logged in.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer

from ajuste.cli.processes import answers, ended, free_port, python, start, stop, wait


def command(
    mlflow_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 4200,
) -> None:
    """Show runs, curves and models (MLflow) and flow runs and schedules (Prefect) in the browser.

    Both want a login: open the printed page, which holds it. A port in use is replaced by a free one. With
    MLFLOW_TRACKING_URI or PREFECT_API_URL set to a server, that server's address is printed and nothing is started.

    Examples:  ajuste ui   |   ajuste ui --mlflow-port 0 --prefect-port 0
    """
    from ajuste.cli import logins
    from ajuste.core.home import home
    from ajuste.tracking.runs import runs

    folder = home() / ".ui"
    pages, started = {}, {}
    uri, api = runs.tracking_uri(), os.environ.get("PREFECT_API_URL")
    if uri.startswith(("http://", "https://")):
        pages["MLflow"] = uri
    else:
        port = free_port(mlflow_port)
        pages["MLflow"] = f"http://127.0.0.1:{port}"
        (home() / "mlruns").mkdir(parents=True, exist_ok=True)
        options = ["--backend-store-uri", uri, "--default-artifact-root", f"file://{home()}/mlruns", "--workers", "1"]
        doors, env = logins.mlflow_server(folder, port, f"sqlite:///{folder}/mlflow-users.db")
        command = python("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *options, *doors)
        started["MLflow"] = (command, f"{pages['MLflow']}/health", env)
    if api:
        pages["Prefect"] = api.removesuffix("/").removesuffix("/api")
    else:
        port = free_port(prefect_port)
        pages["Prefect"] = f"http://127.0.0.1:{port}"
        env = {"PREFECT_HOME": str(home() / ".prefect"), **logins.prefect_server(folder, port)}
        command = python("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        started["Prefect"] = (command, f"{pages['Prefect']}/api/health", env)
    _serve(pages, started)


def _serve(pages: dict[str, str], started: dict[str, tuple[list[str], str, dict[str, str]]]) -> None:
    from rich.console import Console

    from ajuste.cli import logins
    from ajuste.core.home import home

    console, folder = Console(highlight=False, soft_wrap=True), home() / ".ui"
    processes: dict[str, subprocess.Popen] = {}
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for name, (command, _, env) in started.items():
            processes[name] = start(command, _log(name), {**os.environ, **env}, Path.cwd())
        for name, url in pages.items():
            if name in started:
                health = started[name][1]
                wait(name, processes[name], lambda health=health: answers(health), _log(name))
            console.print(f"{name:8} {url}")
        if processes:
            ours = {name.lower(): pages[name] for name in processes}
            env = logins.write_env(folder, logins.client(folder, prefect=ours.get("prefect", "")))
            console.print(f"Open     {logins.write_pages(folder, **ours)}")
            console.print(f"It leads to the pages, logged in; for a shell: source {env}. Ctrl-C ends both.")
        while all(process.poll() is None for process in processes.values()) and processes:
            time.sleep(0.5)
        for name, process in processes.items():
            if process.poll() is not None:
                raise ended(name, process, _log(name))
    except KeyboardInterrupt:
        pass
    finally:
        for process in processes.values():
            stop(process.pid)
        logins.close(folder)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _log(name: str) -> Path:
    from ajuste.core.home import home

    return home() / ".state" / f"ui-{name.lower()}.log"
