"""Sources are found by their four names; what is missing is named in one line. The Hub is a server in this test."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.rows.sources import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("bert-base-uncased", "sdist:<distribution>==<version>/<path>, hub:<id>@<revision> or path:"),
        ("package:", "no known form"),
        ("package:no-such-package-here/model", "no-such-package-here is not installed: name it in assets.txt"),
        ("package:pytest/no/such/file", "has no `no/such/file`"),
        ("package:pytest/../secrets", "leaves the package"),
        ("sdist:llamafactory/data", "write sdist:<distribution>==<version>/<path inside it>"),
        ("sdist:no-such-package==1.0/data", "name no-such-package==1.0 in sdists.txt and run `make setup`"),
        ("sdist:mine==1.0//etc/passwd", "write sdist:<distribution>==<version>/<path inside it>"),
        ("path:no/such/folder", "no/such/folder does not exist"),
        ("hub:bert-base-uncased", "needs an id and a revision"),
        ("hub:a/b/c@main", "needs an id and a revision"),
        ("hub:team/model@main/../../../secrets", "`../../../secrets` leaves the repository"),
        ("hub:team/model@main//etc/passwd", "`/etc/passwd` leaves the repository"),
        ("hub:team/model@..", "`..` leaves the repository"),
    ],
)
def test_what_cannot_be_found_is_one_line_that_names_it(source: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(source)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ships_a_model"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model" / "config.json").write_text("{}")
    info = tmp_path / "ships_a_model-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ships-a-model\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find("package:ships-a-model/ships_a_model/model")
    assert found.path == package / "model"
    assert (found.name, found.source) == ("ships-a-model==1.2", "package:ships-a-model/ships_a_model/model")


def test_an_unpacked_source_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    file = tmp_path / "sdists/mine-1.0/data/rows.json"
    file.parent.mkdir(parents=True)
    file.write_text("[]")
    assert find("sdist:mine==1.0/data/rows.json").path == file
    with pytest.raises(UsageError, match="mine==1.0 has no `data/other.json`"):
        find("sdist:mine==1.0/data/other.json")
    # neither an absolute path nor a link in the archive leads to a file outside of it
    (tmp_path / "secret.txt").write_text("of this machine")
    (file.parent / "link.txt").symlink_to(tmp_path / "secret.txt")
    for inside in (f"/{tmp_path}/secret.txt", "data/link.txt", "../../secret.txt"):
        with pytest.raises(UsageError, match="write sdist|has no"):
            find(f"sdist:mine==1.0/{inside}")


def test_a_file_of_an_archive_inside_a_source_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    folder = tmp_path / "sdists/mine-1.0/more"
    folder.mkdir(parents=True)
    (tmp_path / "rows.txt").write_bytes(b"1\r\n2")
    with tarfile.open(folder / "rows.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "rows.txt", "inner/rows.txt")
    for _ in range(2):  # unpacked, then found
        found = find("sdist:mine==1.0/more/rows.tar.gz/inner/rows.txt")
        assert found.path.read_bytes() == b"1\r\n2"
        assert found.source == "sdist:mine==1.0/more/rows.tar.gz/inner/rows.txt"
    assert find("sdist:mine==1.0/more/rows.tar.gz").path == folder / "rows.tar.gz"
    for inside in ("inner", "rows.txt", "inner/../rows.txt"):
        with pytest.raises(UsageError, match="has no|write sdist"):
            find(f"sdist:mine==1.0/more/rows.tar.gz/{inside}")


def test_a_folder_is_recorded_without_the_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    found = find(f"path:{tmp_path}/my-model")
    assert (found.name, found.source) == ("my-model", "path:my-model")


def test_a_relative_path_is_looked_for_here_and_then_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.setenv("AJUSTE_HOME", str(there))
    home.cache_clear()
    for folder in (here, there / ".assets" / "model"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert find("path:.assets/model").path == there / ".assets" / "model"
    (here / ".assets" / "model").mkdir(parents=True)
    assert find("path:.assets/model").path.resolve() == here / ".assets" / "model"
    home.cache_clear()


FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickled",
    "onnx/model.onnx": b"another framework",
    "data/train.csv": b"text,label\n",
}


class Hub(BaseHTTPRequestHandler):
    """The few addresses of a model hub that a download asks for."""

    only_torch = False
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append(path)
        files = {k: v for k, v in FILES.items() if not (self.only_torch and k == "model.safetensors")}
        parts = path.strip("/").split("/")
        if parts[0] == "api" and "team/model" in path and parts[-1] in (COMMIT, "main") and "revision" in parts:
            siblings = [{"rfilename": name} for name in files]
            return self._answer(json.dumps({"id": "team/model", "sha": COMMIT, "siblings": siblings}).encode(), body)
        if parts[0] == "api" and "team/model" in path and "tree" in parts:
            tree = [{"type": "file", "path": k, "size": len(v), "oid": _oid(v)} for k, v in files.items()]
            return self._answer(json.dumps(tree).encode(), body)
        if "resolve" in parts:
            name = "/".join(parts[parts.index("resolve") + 2 :])
            if name in files:
                return self._answer(files[name], body, {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": COMMIT})
        code = "RevisionNotFound" if "team/model" in path else "RepoNotFound"
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.only_torch, Hub.asked = False, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
import json, sys
from ajuste.rows.sources import find
answers = []
for source, kind in json.loads(sys.argv[1]):
    try:
        found = find(source, kind)
        files = [str(p.relative_to(found.path)) for p in found.path.rglob("*") if p.is_file()]
        answers.append({"name": found.name, "source": found.source, "files": sorted(files), "path": str(found.path)})
    except Exception as error:
        answers.append({"error": type(error).__name__, "text": str(error)})
print(json.dumps(answers))
"""


def ask(endpoint: str, cache: Path, *sources: tuple[str, str], offline: str = "0") -> list[dict]:
    """`find` in a process of its own: the Hub's library reads its address once, at import."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": offline}
    env.update(PYTHONPATH=str(ROOT), no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")
    command = [sys.executable, "-c", ASK, json.dumps(sources)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_hub_gives_the_model_files_of_one_commit(hub: str, tmp_path: Path) -> None:
    model, wrong_revision, wrong_name, file = ask(
        hub,
        tmp_path,
        ("hub:team/model@main", "model"),
        ("hub:team/model@nowhere", "model"),
        ("hub:team/absent@main", "model"),
        (f"hub:team/model@{COMMIT}/data/train.csv", "dataset"),
    )
    assert (model["name"], model["source"]) == ("team/model", f"hub:team/model@{COMMIT}")
    assert model["files"] == ["config.json", "model.safetensors"], "no pickle and no other framework's files"
    assert wrong_revision["error"] == "UsageError" and "no revision `nowhere`" in wrong_revision["text"]
    assert wrong_name["error"] == "UsageError" and "team/absent" in wrong_name["text"]
    assert Path(file["path"]).read_bytes() == FILES["data/train.csv"]
    assert not any("onnx" in path for path in Hub.asked)
    # what is in the cache needs no network; what is not says so
    again, absent = ask(
        "http://127.0.0.1:9",
        tmp_path,
        (f"hub:team/model@{COMMIT}", "model"),
        ("hub:other/model@main", "model"),
        offline="1",
    )
    assert again["files"] == model["files"]
    assert absent["error"] == "ConnectionError" and "cannot be reached" in absent["text"]


def test_torch_weights_are_fetched_only_where_nothing_safer_is(hub: str, tmp_path: Path) -> None:
    Hub.only_torch = True
    (model,) = ask(hub, tmp_path, ("hub:team/model@main", "model"))
    assert model["files"] == ["config.json", "pytorch_model.bin"]
