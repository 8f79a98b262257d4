"""No stack trace, through the real command line: one line, exit code 1 or 2, and a log that holds the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.cli import last_resort, main
from ajuste.cli.processes import free_port

ROOT = Path(__file__).parents[2]
ROWS = "text,label\n" + "".join(f"a film number {i},{'ab'[i % 2]}\n" for i in range(60))


def ajuste(folder: Path, *arguments: str | bytes, **variables: str) -> subprocess.CompletedProcess:
    """`ajuste` as a process in that folder, which is its home too."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AJUSTE_HOME": str(folder)} | variables
    done = subprocess.run([sys.executable, "-P", "-m", "ajuste.cli.main", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def last_line(done: subprocess.CompletedProcess) -> str:
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ") and sum(line.startswith("error:") for line in lines) == 1, done.stderr
    return lines[-1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what a command reads first."""
    for name in ("params.yaml", "dvc.yaml", "policy.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path


def test_what_nobody_foresaw_is_one_line_and_a_log_without_secrets(project: Path) -> None:
    """dvc.lock is a folder: no command has a word for that."""
    (project / "dvc.lock").mkdir()
    (project / "data").mkdir()
    secrets = {"MY_API_KEY": "correct-horse-battery", "MLFLOW_TRACKING_URI": "sqlite:////nowhere/x.db"}
    done = ajuste(project, "status", "correct-horse-battery", **secrets)
    assert done.returncode == 2, "an argument too many is still a usage error"
    done = ajuste(project, "run", "http://me:hidden-word@host/", **secrets)
    assert done.returncode == 1
    line = last_line(done)
    log = Path(line.rpartition(" is in ")[2])
    assert log.parent == project / ".state" / "errors" and log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert "Traceback (most recent call last)" in text and "main.py" in text and "IsADirectoryError" in text
    assert "ajuste run" in text and "hidden-word" not in text + line


def test_a_secret_of_the_environment_is_in_neither(tmp_path: Path, monkeypatch, capsys) -> None:
    def fail() -> None:
        raise KeyError("the key correct-horse-battery and\nhttp://me:hidden-word@host/ and sk-abcdefghijklmnopqrstuv")

    monkeypatch.setenv("SERVICE_TOKEN", "correct-horse-battery")
    monkeypatch.setattr("ajuste.core.home.home", lambda: tmp_path)
    monkeypatch.setattr(main, "app", fail)
    monkeypatch.setattr(sys, "argv", ["ajuste", "history", "correct-horse-battery"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    err = capsys.readouterr().err
    (log,) = (tmp_path / ".state" / "errors").iterdir()
    assert ended.value.code == 1 and err.count("\n") == 1 and str(log) in err and "KeyError" in err
    for text in (err, log.read_text()):
        assert not any(word in text for word in ("correct-horse", "hidden-word", "abcdefghijkl")), text


@pytest.mark.parametrize("home", ["a file", "not writable"])
def test_where_the_home_takes_no_log_another_folder_does(home: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("ajuste.core.home.home", lambda: tmp_path / "file" if home == "a file" else Path("/proc/none"))
    line = last_resort.line_of(ValueError("wrong"), ["run"])
    log = Path(line.rpartition(" is in ")[2])
    assert line.startswith("ValueError: wrong") and "ValueError: wrong" in log.read_text()


@pytest.mark.parametrize("error, said", [
    (OSError(28, "No space left on device", "x/y"), "the disk is full ([Errno 28] No space left on device: 'x/y')"),
    (PermissionError(13, "Permission denied", "x"), "[Errno 13] Permission denied: 'x'"),
    (ConnectionRefusedError(111, "Connection refused"), "a server does not answer ([Errno 111] Connection refused)"),
    (ValueError(), "ValueError: no message"),
    (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth exceeded"),
])
def test_kinds_that_have_a_name(error: Exception, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ajuste.core.home.home", lambda: tmp_path)
    assert last_resort.line_of(error, []).startswith(said)


def test_a_prefect_server_that_is_away_at_the_start(project: Path) -> None:
    import yaml

    from ajuste.core.stages import md5_of

    (project / "data").mkdir()
    (project / "data" / "x").write_text("x")
    (project / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5_of(project / "data"), "path": "data"}]}))
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    address = f"http://me:hidden-word@127.0.0.1:{free_port(0)}/api"
    done = ajuste(project, "run", "validate_reviews", PREFECT_API_URL=address)
    line = last_line(done)
    assert done.returncode == 2 and "of PREFECT_API_URL does not answer: start it, or unset" in line
    assert address.rpartition("@")[2] in line and "hidden-word" not in done.stderr


def test_prefects_own_words_name_the_server(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ajuste.core.home.home", lambda: tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    line = last_resort.line_of(RuntimeError("Failed to reach API at http://127.0.0.1:9/api/"), ["run"])
    assert line.startswith("the server http://127.0.0.1:9/api of PREFECT_API_URL does not answer")


def test_an_mlflow_server_that_is_away(project: Path) -> None:
    address = f"http://127.0.0.1:{free_port(0)}"
    for arguments in (["serve", "--port", "0"], ["history", "reviews-classifier"]):
        done = ajuste(project, *arguments, MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        line = last_line(done)
        assert done.returncode == 2 and f"MLflow's store {address} does not answer" in line
        assert "Connection refused" in line and "$MLFLOW_TRACKING_URI" in line


def test_data_that_is_a_link_to_another_disk(project: Path) -> None:
    (project / "disk").mkdir()
    (project / "data").symlink_to(project / "disk")
    done = ajuste(project, "data", "add", "mine", "rows.csv")
    line = last_line(done)
    assert done.returncode == 1 and f"data/ is a link to {project}/disk" in line and "make data/ a folder" in line
    assert not list((project / "disk").iterdir()), "nothing is left there"


def test_a_file_name_that_is_not_utf8(project: Path) -> None:
    name = b"caf\xe9.csv"
    (Path(os.fsdecode(os.fsencode(project) + b"/" + name))).write_text(ROWS)
    done = ajuste(project, "data", "add", "mine", name)
    assert done.returncode == 2
    assert last_line(done) == (r"error: `caf\xe9.csv` is not UTF-8: give the file or folder a name in UTF-8 "
                               "(`mv` can do that), then try again")  # fmt: skip
