"""The stage harness: keys equal to DVC's own records, one process a stage, errors of a kind, nothing left running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ajuste.core import checkpoints
from ajuste.core.checkpoints import ENDED
from ajuste.core.errors import UsageError
from ajuste.core.params import Config, lookup, read_yaml, section, typed
from ajuste.core.stages import key_of, md5_of, stage_key
from ajuste.tracking.project import dvc, lock
from ajuste.tracking.project.check import check_params

ROOT = Path(__file__).parents[2]

STAGE = """
import sys, time
from pathlib import Path
from ajuste.core.errors import DataError, UsageError
from ajuste.core.notes import say
from ajuste.core.params import Config
from ajuste.core.stage import start

class ToyConfig(Config):
    rate: float
    sleep: float = 0.0
    fail: str = ""
    say: str = ""

def main():
    with start("toy_one", ToyConfig) as stage:
        Path("running").write_text(str(__import__("os").getpid()))
        time.sleep(stage.config.sleep)
        for _ in range(2): stage.config.say and say(stage.config.say)
        if stage.config.fail == "data": raise DataError("data/x.csv line 3: no label; add one")
        if stage.config.fail == "usage": raise UsageError("no such base")
        if stage.config.fail == "infra": raise OSError("disk full")
        if stage.config.fail == "bug": raise ValueError("oops")
        with stage.phase("work"):
            stage.count(tokens=10)
            Path("out").mkdir(); Path("out/a.txt").write_text("a")

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project with one stage `toy_one`, its home inside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    from ajuste.core import stage as core_stage

    core_stage.home.cache_clear()
    (tmp_path / "toy.py").write_text(STAGE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/b.txt").write_text("b\n")
    (tmp_path / "data/sub").mkdir()
    (tmp_path / "data/sub/a.txt").write_text("a\n")
    (tmp_path / "params.yaml").write_text(
        "compute: {dtype: float32, device: cpu, threads: 1, seed: 0}\ntoy: {one: {rate: 5e-5}}\nset: data\n"
    )
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  toy_one:\n    cmd: python -m toy\n    deps: ['${set}', toy.py]\n"
        "    params: [compute, toy.one]\n    outs: [out]\n"
    )
    subprocess.run(["git", "init", "-q"], check=True)
    assert dvc.run("init", "-q").returncode == 0
    yield tmp_path
    core_stage.home.cache_clear()


def toy(**changes: object) -> subprocess.CompletedProcess:
    params = {
        "compute": {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0},
        "toy": {"one": {"rate": 5e-5, **changes}},
    }
    Path("params.yaml").write_text(json.dumps({**params, "set": "data"}))
    return subprocess.run([sys.executable, "-m", "toy"], capture_output=True, text=True)


def state() -> dict:
    return json.loads(Path(".state/toy_one.json").read_text())


def test_stage_key_equals_what_dvc_lock_records(project: Path) -> None:
    before = stage_key("toy_one")
    done = dvc.run("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    entry = lock.entry("toy_one")
    assert {dep["path"]: dep["md5"] for dep in entry["deps"]} == {
        "data": md5_of(Path("data")),
        "toy.py": md5_of(Path("toy.py")),
    }
    assert entry["outs"][0]["md5"] == md5_of(Path("out"))
    assert before == lock.stage_key("toy_one") == state()["key"]
    assert state()["error"] is None and state()["tokens"] == 10 and "work" in state()["phases"]
    assert (project / ".checkpoints" / before / ENDED).read_text() == Path(".state/toy_one.json").read_text()
    checkpoints.sweep()
    assert not (project / ".checkpoints" / before).exists(), "dvc.lock has its result"
    (project / "data/b.txt").write_text("other\n")
    assert stage_key("toy_one") != before


def test_a_stage_counts_its_imports_as_its_own_seconds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "import time; time.sleep(0.5)\n"
    (project / "toy.py").write_text(slow + STAGE)
    assert toy(sleep=0.3).returncode == 0
    assert 0.5 < state()["phases"]["imports"] < state()["seconds"]
    working = state()["seconds"] - state()["phases"]["imports"]
    assert state()["tokens_per_second"] == pytest.approx(10 / working, rel=0.3)
    shutil.rmtree("out")
    checkpoints.forget(state()["key"])  # as if DVC had the result: it begins anew
    called = subprocess.run([sys.executable, "-c", "import toy; toy.main()"], capture_output=True, text=True)
    assert called.returncode == 0 and "imports" not in state()["phases"], "called by something else, as a test does"


def test_a_large_file_is_read_again_only_when_it_has_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ajuste.core import stages

    def age(seconds: float) -> None:
        then = time.time() - seconds
        os.utime(large, (then, then))

    read, md5_of = [], stages.md5_of

    def counted(path: Path, *how: object) -> str:
        if not how:  # not asked through what is remembered
            read.append(path.name)
        return md5_of(path, *how)

    monkeypatch.setattr(stages, "md5_of", counted)
    monkeypatch.setattr(stages, "LARGE", 100)
    large = project / "data" / "large.bin"
    large.write_bytes(b"a" * 100)
    keys = [stage_key("toy_one"), stage_key("toy_one")]
    assert read.count("large.bin") == 2, "changed a moment ago: a second change would leave no trace"
    age(60)
    keys += [stage_key("toy_one"), stage_key("toy_one")]
    assert read.count("large.bin") == 3 and read.count("b.txt") == 4 and len(set(keys)) == 1
    large.write_bytes(b"b" * 100)
    age(30)
    assert stage_key("toy_one") not in keys and read.count("large.bin") == 4
    (project / ".state" / "hashes").write_text("{half")
    assert stage_key("toy_one") not in keys and read.count("large.bin") == 5


def test_key_ignores_order_and_sees_every_part() -> None:
    base = key_of("run", {"a": "1", "b": "2"}, {"x": 1})
    assert base == key_of("run", {"b": "2", "a": "1"}, {"x": 1})
    others = {
        key_of("ran", {"a": "1", "b": "2"}, {"x": 1}),
        key_of("run", {"a": "1"}, {"x": 1}),
        key_of("run", {"a": "1", "b": "2"}, {"x": 2}),
    }
    assert len(others) == 3 and base not in others


@pytest.mark.parametrize(("kind", "code"), [("data", 3), ("usage", 2), ("infra", 1), ("bug", 1)])
def test_errors_have_a_kind_a_line_and_a_code(project: Path, kind: str, code: int) -> None:
    done = toy(fail=kind)
    assert done.returncode == code
    assert state()["error"]["kind"] == kind
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error[{kind}]: ")
    if kind in ("data", "usage"):
        assert done.stderr.count("\n") == 1, "a user's mistake shows one line and no stack trace"


def test_what_a_stage_says_stands_on_the_terminal_and_in_its_record(project: Path) -> None:
    assert toy().returncode == 0 and "notes" not in state()
    done = toy(say="rows are padded: state space")
    assert done.stdout == "rows are padded: state space\n"  # once, however often it was said
    assert state()["notes"] == ["rows are padded: state space"]


def test_unknown_key_is_named(project: Path) -> None:
    done = toy(rat=1)
    assert done.returncode == 2
    assert "unknown key `toy.one.rat`" in done.stderr and "rate" in done.stderr


def test_second_process_waits_then_names_the_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = subprocess.Popen([sys.executable, "-c", _holder()])
    while not Path("held").exists():
        time.sleep(0.05)
    done = subprocess.run([sys.executable, "-c", _impatient()], capture_output=True, text=True)
    first.kill()
    first.wait()
    said = f"stage `toy_one` is already running as process {first.pid}: wait for it or end it"
    assert done.returncode == 2 and said in done.stderr
    assert toy().returncode == 0, "the kernel frees the lock of a killed process"


def _holder() -> str:
    return """
import time
from pathlib import Path
from ajuste.core.home import home
from ajuste.core.locks import held
with held(home() / ".checkpoints/toy_one.lock"):
    Path("held").touch()
    time.sleep(60)
"""


def _impatient() -> str:
    return (
        "import ajuste.core.stage as s; s.LOCK_SECONDS = 0.3; import toy; toy.main()"
    )


@pytest.mark.parametrize("victim", ["dvc", "flow"])
def test_stage_ends_when_what_started_it_is_killed(project: Path, victim: str) -> None:
    params = Path("params.yaml").read_text().replace("rate: 5e-5", "rate: 5e-5, sleep: 60")
    Path("params.yaml").write_text(params)
    flow = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    env = {**dvc.environment(), "AJUSTE_FLOW_PID": str(flow.pid)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "dvc", "repro", "toy_one"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not Path("running").exists() or not Path("running").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    stage = psutil.Process(int(Path("running").read_text()))
    (process if victim == "dvc" else flow).send_signal(signal.SIGKILL)
    gone, _ = psutil.wait_procs([stage], timeout=20)
    assert gone, "the stage outlived what started it"
    for started in (flow, process):
        started.kill()
        started.wait()


def test_a_stage_that_ended_unrecorded_goes_on_from_its_checkpoints(project: Path) -> None:
    """What a killed DVC leaves: the end of the stage, and no dvc.lock that knows of it."""
    assert toy(say="first").returncode == 0
    key = state()["key"]
    folder, first = project / ".checkpoints" / key, state()
    (folder / "checkpoint-3").mkdir()
    shutil.rmtree("out")
    assert toy(say="first").returncode == 0
    assert (folder / "checkpoint-3").is_dir() and state() == first, "what it cost is what the training cost"
    shutil.rmtree("out")
    assert toy(say="other").returncode == 0 and state()["key"] != key
    assert (folder / "checkpoint-3").is_dir(), "another stage's end is not this one's"

    # DVC has the result: run again by force it begins anew
    shutil.rmtree("out")
    toy(say="first")
    shutil.rmtree("out")
    entry = {"cmd": "python -m toy", "deps": [{"path": dep, "md5": md5_of(Path(dep))} for dep in ("data", "toy.py")],
             "params": {"params.yaml": {"compute": read_yaml(Path("params.yaml"))["compute"],
                                        "toy.one": read_yaml(Path("params.yaml"))["toy"]["one"]}}}
    Path("dvc.lock").write_text(json.dumps({"stages": {"toy_one": entry}}))
    assert lock.stage_key("toy_one") == key
    os.utime("dvc.lock", (1, 1))
    checkpoints.sweep()
    assert folder.is_dir(), "an older lock knows an older run of the same inputs"
    os.utime("dvc.lock")
    assert toy(say="first").returncode == 0 and not (folder / "checkpoint-3").exists()


def test_half_a_lock_or_an_unfinished_stage_is_no_record(project: Path) -> None:
    unfinished = checkpoints.of_stage("unfinished")
    unfinished.mkdir(parents=True)
    checkpoints.forget("unfinished")
    checkpoints.end(checkpoints.of_stage("ended"), "{}")
    for text in ("stages: {half", "stages: [1]", "", "stages: {a: {cmd: b, deps: [{path: c}]}}"):
        Path("dvc.lock").write_text(text)
        checkpoints.sweep()
    assert unfinished.is_dir() and checkpoints.record_of(checkpoints.of_stage("ended")) == "{}"
    checkpoints.forget("ended")
    assert not checkpoints.of_stage("ended").exists()


def test_section_shares_plain_keys_and_refuses_repeats() -> None:
    params = {"classify": {"task": "sequence", "lora": {"r": 8}, "full": {"lr": 1}}}
    assert section(params, "classify", "lora") == {"task": "sequence", "r": 8}
    with pytest.raises(UsageError, match="repeats"):
        section({"classify": {"task": "a", "lora": {"task": "b"}}}, "classify", "lora")
    with pytest.raises(UsageError, match="classify.nope"):
        section(params, "classify", "nope")


def test_wrong_type_names_the_key() -> None:
    class ToyConfig(Config):
        rate: float

    with pytest.raises(UsageError, match=r"toy\.rate.*'fast'"):
        typed(ToyConfig, {"rate": "fast"}, "toy")


def test_an_unknown_section_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + "\nclasify: {}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="unknown section `clasify`: known sections are alignment, assistant,"):
        check_params()


def test_yaml_numbers_are_those_of_dvc(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: 5e-5\nb: 1.0e-4\nc: 8\nd: .5\ne: 1e3\nf: 1.5\n")
    from ruamel.yaml import YAML

    ours, theirs = read_yaml(path), YAML(typ="safe").load(path)
    assert ours == theirs and [type(value) for value in ours.values()] == [type(value) for value in theirs.values()]
    path.write_text("a: [1\n")
    with pytest.raises(UsageError, match="no valid YAML"):
        read_yaml(path)
    with pytest.raises(UsageError, match="`a.b`"):
        lookup({"a": {}}, "a.b")
