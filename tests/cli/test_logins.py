"""The logins of the servers that we start: for their owner alone, kept, and given to no server that they are not of."""

import base64
import os
import re
import stat
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ajuste.cli import logins
from ajuste.cli.project import deployments
from ajuste.core.errors import UsageError
from ajuste.core.home import home


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_passwords_are_made_once_kept_and_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        first = logins.password(tmp_path, "prefect")
        env = logins.write_env(tmp_path, logins.client(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:2"))
        (tmp_path / "prefect-pages" / "v1").mkdir(parents=True)
        pages = logins.write_pages(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:2")
    finally:
        os.umask(old)
    assert len(first) >= 32 and logins.password(tmp_path, "prefect") == first != logins.password(tmp_path, "mlflow")
    assert {mode(path) for path in (tmp_path / "prefect.password", env, pages)} == {0o600}
    assert logins.read_env(tmp_path)["MLFLOW_TRACKING_PASSWORD"] == logins.password(tmp_path, "mlflow")
    prefect, mlflow = re.findall(r'href="([^"]+)"', pages.read_text())
    assert base64.b64decode(prefect.partition("#")[2]).decode() == f"ajuste:{first}"
    assert mlflow == f"http://ajuste:{logins.password(tmp_path, 'mlflow')}@127.0.0.1:2/"
    assert first not in (tmp_path / "prefect-pages" / "v1" / "enter.html").read_text()
    logins.close(tmp_path)
    assert logins.read_env(tmp_path) == {} and not pages.exists() and logins.password(tmp_path, "prefect") == first


def test_a_login_goes_to_the_server_that_it_is_of_alone(tmp_path: Path) -> None:
    logins.write_env(tmp_path / ".ui", logins.client(tmp_path / ".ui", "http://127.0.0.1:4200"))
    assert logins.known("http://127.0.0.1:4200/api", tmp_path).endswith(logins.password(tmp_path / ".ui", "prefect"))
    for other in ("http://127.0.0.1:42000/api", "http://127.0.0.2:4200/api", "https://127.0.0.1:4200/api"):
        assert logins.known(other, tmp_path) == ""


def test_servers_are_told_their_own_pages_and_no_other(tmp_path: Path) -> None:
    prefect = logins.prefect_server(tmp_path, 4200)
    assert prefect["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200,http://localhost:4200"
    options, env = logins.mlflow_server(tmp_path, 5000, "sqlite:////a%20b/users.db")
    assert options[options.index("--allowed-hosts") + 1] == "127.0.0.1:5000,localhost:5000"
    assert env["MLFLOW_AUTH_ADMIN_PASSWORD"] not in " ".join(options), "a command line is everybody's to read"
    settings = ConfigParser()
    settings.read(env["MLFLOW_AUTH_CONFIG_PATH"])
    assert settings["mlflow"]["database_uri"] == "sqlite:////a%20b/users.db"
    assert logins.alone()["PREFECT_API_AUTH_STRING"] != logins.alone()["PREFECT_API_AUTH_STRING"]


class Guarded(BaseHTTPRequestHandler):
    """A Prefect API that tells its health to everyone and the rest to one login."""

    login = "ajuste:right"

    def do_GET(self) -> None:
        given = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        self.send_response(200 if self.path.endswith("/health") or given == self.login else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "")
    home.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()
    home.cache_clear()


def test_our_own_server_is_found_with_its_login_and_another_is_named(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", guarded)
    with pytest.raises(UsageError, match=f"{guarded} wants a login that is not known here"):
        deployments.server()
    logins.write_env(tmp_path / ".stack", {"PREFECT_API_URL": guarded, "PREFECT_API_AUTH_STRING": Guarded.login})
    assert deployments.server() == guarded and os.environ["PREFECT_API_AUTH_STRING"] == Guarded.login
    monkeypatch.delenv("PREFECT_API_URL")
    assert deployments.server() == guarded, "found by the file that its starter wrote"
