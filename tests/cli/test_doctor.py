"""Each check of the doctor finds what it is for, and says what to do."""

import fcntl
import socket
import sqlite3
from pathlib import Path

import pytest

from ajuste.cli.project import doctor
from ajuste.core import stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stage.home.cache_clear()
    yield tmp_path
    stage.home.cache_clear()


def one(check) -> tuple[str, str, str]:
    lines = list(check())
    assert len(lines) == 1, lines
    return lines[0]


def test_packages_against_the_tested_set(project: Path) -> None:
    from importlib.metadata import version

    assert one(doctor.packages)[0] == "fail"  # no constraints.txt: not the project's folder
    torch = version("torch").partition("+")[0]
    (project / "constraints.txt").write_text(f"# set\ntorch=={torch}\npydantic=={version('pydantic')}\n")
    assert one(doctor.packages)[:2] == ("ok", "2 as in constraints.txt")
    (project / "constraints.txt").write_text("pydantic==0.0.1\nno-such-package==1.0\n")
    (missing, other) = doctor.packages()
    assert missing[0] == "fail" and "no-such-package" in missing[1]
    assert other[0] == "warn" and "(tested: 0.0.1)" in other[1]


def test_assets(project: Path) -> None:
    from importlib.metadata import version

    (project / "assets.txt").write_text(
        f"pytest=={version('pytest')} \\\n    --hash=sha256:00\nno-such-model==0.1.0 \\\n    --hash=sha256:00\n"
    )
    there, gone = doctor.assets()
    assert there[0] == "ok"
    assert gone[0] == "fail" and "no-such-model is missing" in gone[1] and "assets.txt" in gone[2]


def test_unpacked_source_packages(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "prefix", str(project))
    (project / "assets.txt").write_text("")
    (project / "sdists.txt").write_text("somedata==1.0\nother==2.0\n")
    (project / "sdists" / "SomeData-1.0").mkdir(parents=True)
    (project / "sdists" / "other-2.0.tar.gz").write_text("")  # downloaded and not unpacked
    there, gone = doctor.assets()
    assert there[:2] == ("ok", "somedata 1.0 unpacked")
    assert gone == ("fail", "other is not unpacked", "make setup")


def database(project: Path, artifact_uri: str) -> None:
    (project / "mlruns").mkdir()
    with sqlite3.connect(project / "mlruns" / "mlflow.db") as connection:
        connection.execute("create table runs (artifact_uri text, lifecycle_stage text)")
        connection.execute("insert into runs values (?, 'active')", (artifact_uri,))
        connection.execute("insert into runs values ('/deleted/long/ago/1/artifacts', 'deleted')")


def test_a_store_that_came_with_a_moved_clone(project: Path) -> None:
    assert one(doctor.store)[0] == "ok"  # none yet
    database(project, "file:///somewhere/else/mlruns/1/abc/artifacts")
    state, found, advice = one(doctor.store)
    assert state == "fail" and "/somewhere/else" in found and "move" in advice


def test_a_store_at_home(project: Path) -> None:
    database(project, f"{project}/mlruns/1/abc/artifacts")
    assert one(doctor.store) == ("ok", "mlruns/mlflow.db, 1 runs", "")


def test_a_store_that_is_no_database(project: Path) -> None:
    (project / "mlruns").mkdir()
    (project / "mlruns" / "mlflow.db").write_text("no database at all, but text that is long enough to be read as one")
    assert one(doctor.store)[0] == "fail"


def test_the_store_check_reads_what_mlflow_writes(project: Path) -> None:
    from ajuste.tracking.runs import runs

    runs.begin("toy", "key", runs.parent("digest"))
    state, found, _ = one(doctor.store)
    assert (state, found) == ("ok", "mlruns/mlflow.db, 2 runs")
    with sqlite3.connect(project / "mlruns" / "mlflow.db") as connection:
        connection.execute("update runs set artifact_uri = replace(artifact_uri, ?, '/moved')", (str(project),))
    assert one(doctor.store)[0] == "fail"


def test_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1e9, "fail"), (5e9, "warn"), (50e9, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert one(doctor.disk)[0] == state


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(doctor, "SERVE_PORT", listener.getsockname()[1])
        assert one(doctor.port)[0] == "warn"
    assert one(doctor.port)[0] == "ok"


def test_a_running_stage_and_old_checkpoints(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {toy: {cmd: python -m tasks.toy, deps: [dep.txt], params: []}}")
    (project / "params.yaml").write_text("{}")
    (project / "dep.txt").write_text("dep")
    assert one(doctor.leftovers)[0] == "ok"
    from ajuste.core.stages import stage_key

    (project / ".checkpoints" / stage_key("toy")).mkdir(parents=True)
    assert one(doctor.leftovers) == ("ok", "1 checkpoints: the next run goes on from them", "")
    (project / ".checkpoints" / "other").mkdir()
    assert one(doctor.leftovers)[0] == "warn"
    with (project / ".checkpoints" / "toy.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        running, old = doctor.leftovers()
    assert running[0] == "warn" and "4711" in running[1] and "other inputs" in old[1]


def test_a_check_whose_package_is_missing_fails_in_one_line() -> None:
    def check():
        import no_such_package  # noqa: F401

        yield "ok", "", ""

    (line,) = doctor._answers(check)
    assert line[0] == "fail" and "no_such_package" in line[1]


def test_a_failed_check_ends_with_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import typer

    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda: iter([("ok", "fine", "")])})
    doctor.command()
    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda: iter([("fail", "[broken]", "mend it"), ("ok", "fine", "")])})
    with pytest.raises(typer.Exit) as ended:
        doctor.command()
    assert ended.value.exit_code == 1
    assert "fail  a: [broken]: mend it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "text", "state", "said"),
    [
        ("avx2 avx512_bf16", "ppo: {dtype: bfloat16}", "ok", "in hardware (avx512_bf16)"),
        ("avx2", "evaluate: {ppo: {dtype: bfloat16}}", "warn", "emulated"),
        ("avx2", "base: {decoder: {dtype: bfloat16}}\nppo: {dtype: float32}", "ok", "float32"),
    ],
)
def test_bfloat16_that_the_processor_emulates_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, flags: str, text: str, state: str, said: str
) -> None:
    texts = {"/proc/cpuinfo": f"flags\t\t: fpu {flags}\n", "params.yaml": text}
    monkeypatch.setattr(doctor, "_text", lambda path: texts[path])
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = one(doctor.processor)
    assert found[0] == state and said in found[1] and (state == "ok" or found[2] == "ajuste preset float32")
