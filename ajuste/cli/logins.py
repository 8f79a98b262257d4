"""The logins of the servers that a command starts, made once and typed by nobody; and what else shuts their doors.

A server on loopback is reached by every page that a browser shows and by every user of the machine. So:

    Prefect   its API wants `PREFECT_API_AUTH_STRING` (basic authentication) and allows its own page's origin alone.
              By default it answers every page with `Access-Control-Allow-Origin: *`, and a worker runs what it is told
    MLflow    its app `basic-auth`, with one user who may do everything; a Host that is its own, to the port (by
              default 10.example.org passes for an address of the private network 10.*); in no other page's frame

Of one starter (`make stack`: <home>/.stack, `ajuste ui`: <home>/.ui), each of mode 0600:

    prefect.password, mlflow.password   made at the first start, never changed
    mlflow.ini                          MLflow's settings for logins
    env                                 what a shell needs: `source` it. Our commands read it by themselves
    pages.html                          opened in a browser it leads to both pages, logged in
"""

import base64
import html
import os
import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

USER = "ajuste"
STARTERS = (".stack", ".ui")  # folders of the home with an `env` while their servers run
CACHED_SECONDS = 600  # MLflow's check of a password takes a third of a second: its answer is kept for so long
ENTER = """<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>Prefect</title>
<script>localStorage.setItem("prefect-password", location.hash.slice(1)); location.replace("/")</script>
"""


def private(path: Path, text: str) -> Path:
    """Write a file that its owner alone may read, at no moment anyone else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)
    return path


def password(folder: Path, server: str) -> str:
    """The password of a server of this starter; made if there is none."""
    path = folder / f"{server}.password"
    if not path.exists():
        private(path, secrets.token_urlsafe(32) + "\n")
    return path.read_text(encoding="utf-8").strip()


def own(port: int) -> list[str]:
    """The hosts by which the pages of a server on loopback are asked for."""
    return [f"127.0.0.1:{port}", f"localhost:{port}"]


def prefect_server(folder: Path, port: int) -> dict[str, str]:
    """The environment of `prefect server start` on this port of 127.0.0.1."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{password(folder, 'prefect')}",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in own(port)),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "prefect-pages"),
    }


def mlflow_server(folder: Path, port: int, users: str) -> tuple[list[str], dict[str, str]]:
    """(options, environment) of `mlflow server` on this port of 127.0.0.1; `users`: the database that logins are in."""
    settings = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": users.replace("%", "%%"),
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": str(CACHED_SECONDS),
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(private(folder / "mlflow.ini", "\n".join(["[mlflow]", *lines, ""]))),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password(folder, "mlflow"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),  # of its sign-up form, which nobody here fills in
        # its queue of jobs would be eight more processes, for features that nothing here uses
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    hosts = own(port)
    return ["--app-name", "basic-auth", "--allowed-hosts", ",".join(hosts), "--x-frame-options", "DENY",
            "--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)], env  # fmt: skip


def alone() -> dict[str, str]:
    """The environment of a run that brings a Prefect server of its own: a login for once, and no other page."""
    login = f"{USER}:{secrets.token_urlsafe(32)}"
    return {"PREFECT_API_AUTH_STRING": login, "PREFECT_SERVER_API_AUTH_STRING": login,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1"}  # fmt: skip


def client(folder: Path, prefect: str = "", mlflow: str = "") -> dict[str, str]:
    """What a client of these servers needs: addresses (without /api) and logins."""
    found = {}
    if prefect:
        found |= {"PREFECT_API_URL": f"{prefect}/api",
                  "PREFECT_API_AUTH_STRING": f"{USER}:{password(folder, 'prefect')}"}  # fmt: skip
    if mlflow:
        found |= {"MLFLOW_TRACKING_URI": mlflow, "MLFLOW_TRACKING_USERNAME": USER,
                  "MLFLOW_TRACKING_PASSWORD": password(folder, "mlflow")}  # fmt: skip
    return found


def write_env(folder: Path, settings: Mapping[str, str]) -> Path:
    """The file that a shell sources."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    return private(folder / "env", "\n".join(lines) + "\n")


def read_env(folder: Path) -> dict[str, str]:
    """What `write_env` wrote; nothing while the servers of this starter do not run."""
    path = folder / "env"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {name: shlex.split(value)[0] for name, value in re.findall(r"^export (\w+)=(.+)$", text, re.MULTILINE)}


def write_pages(folder: Path, prefect: str = "", mlflow: str = "") -> Path:
    """The page that leads to both servers' pages, logged in.

    Prefect's page keeps its login in the browser's own store for its origin, where only a page of that origin may put
    it: a small one beside it takes it from behind the `#`, which no browser sends to a server.
    """
    links = []
    if prefect:
        (folder / "prefect-pages" / "v1" / "enter.html").write_text(ENTER, encoding="utf-8")
        key = base64.b64encode(f"{USER}:{password(folder, 'prefect')}".encode()).decode()
        links.append(("Prefect: flow runs and schedules", f"{prefect}/enter.html#{key}"))
    if mlflow:
        parts = urlsplit(mlflow)
        at = f"{USER}:{password(folder, 'mlflow')}@{parts.netloc}"
        links.append(("MLflow: runs, curves and models", parts._replace(netloc=at, path="/").geturl()))
    items = "".join(f'<li><a href="{html.escape(url)}">{html.escape(name)}</a>' for name, url in links)
    return private(folder / "pages.html", '<!doctype html><meta charset="utf-8"><meta name="referrer" '
                   f'content="no-referrer"><title>Ajuste</title><ul>{items}</ul>\n')  # fmt: skip


def close(folder: Path) -> None:
    """The servers of this starter have ended: nothing points to them any more. Passwords stay for the next start."""
    for name in ("env", "pages.html"):
        (folder / name).unlink(missing_ok=True)


def known(api: str, home: Path) -> str:
    """The login of a Prefect API that we started; "" for any other: a login goes to no server that it is not of."""
    for starter in STARTERS:
        env = read_env(home / starter)
        if env.get("PREFECT_API_URL") == api.rstrip("/"):
            return env["PREFECT_API_AUTH_STRING"]
    return ""
