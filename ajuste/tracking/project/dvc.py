"""DVC's commands: what must run again (`status`), run it (`repro`, `experiment`), throw away what nothing names.

DVC is called as a process (`python -m dvc`), because a library call keeps its state and its locks in this process.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from ajuste.core import checkpoints
from ajuste.core.errors import UsageError
from ajuste.core.home import home, without_git, write_atomically
from ajuste.core.stages import stage_names
from ajuste.tracking.project import lock

DVC = (sys.executable, "-P", "-m", "dvc")  # -P: a file of the project must not shadow one of DVC's own modules
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by", "Failed to acquire")
BUSY_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What `dvc repro --single-item` did: ran, restored (from DVC's run cache), or unchanged; or failed."""

    code: int
    action: str
    output: str


def environment() -> dict[str, str]:
    """The environment of a DVC process: its stages must find this Python as `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quiet = {"DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}
    return {**without_git(os.environ), "PATH": path, **quiet}


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run a DVC command in the current folder and return what it printed."""
    return subprocess.run([*DVC, *args], capture_output=True, text=True, env=environment())


def last_error(text: str) -> str:
    """The last line in which DVC names an error, or its last line at all."""
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines() or ["no message"]
    return lines[-1].removeprefix("ERROR: ")


def has_remote() -> bool:
    """True if a default DVC remote is configured."""
    return bool(run("config", "core.remote").stdout.strip())


def heal() -> None:
    """Undo what a kill at the wrong moment can leave: half a dvc.lock, half a file of DVC's own locks."""
    good = home() / ".state" / "dvc.lock"
    if lock.LOCK.exists():
        try:
            lock.parse(lock.LOCK.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            if good.exists():
                shutil.copyfile(good, lock.LOCK)
            else:
                lock.LOCK.unlink()
    rwlock = Path(".dvc/tmp/rwlock")
    if rwlock.exists():
        try:
            json.loads(rwlock.read_text() or "{}")
        except ValueError:
            rwlock.unlink()


def status() -> dict:
    """What DVC finds changed: {"classify_lora": [...]}; empty when everything is up to date."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        done = run("status", "--json")
        if done.returncode == 0:
            return json.loads(done.stdout or "{}")
        if not any(text in done.stderr for text in BUSY) or time.monotonic() > deadline:
            raise UsageError(f"dvc status failed: {last_error(done.stderr)}")
        time.sleep(1)


def repro(name: str, log: Path, force: bool = False, poll: Callable[[], None] | None = None) -> Outcome:
    """Run one stage through DVC. `poll` is called about once a second meanwhile.

    An interrupt (Ctrl-C) is passed on to the stage, which saves a checkpoint; then KeyboardInterrupt goes up.
    """
    command = [*DVC, "repro", "--single-item", *(["--force"] if force else []), name]
    deadline = time.monotonic() + BUSY_SECONDS
    log.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with log.open("w", encoding="utf-8") as file:
            # a session of its own: Ctrl-C must reach the stage once, through us, and not DVC
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**environment(), "AJUSTE_FLOW_PID": str(os.getpid())},
            )
            try:
                while True:
                    try:
                        code = process.wait(timeout=1)
                        break
                    except subprocess.TimeoutExpired:
                        if poll:
                            poll()
            except BaseException:
                _interrupt_stage([name], process, home())
                raise
        output = log.read_text(encoding="utf-8", errors="replace")
        if code != 0 and any(text in output for text in BUSY) and time.monotonic() < deadline:
            time.sleep(1)
            continue
        break
    action = "unchanged"
    if f"Running stage '{name}'" in output:
        action = "ran"
    elif "skipping run, checking out outputs" in output:
        action = "restored"
    if code == 0:
        write_atomically(home() / ".state" / "dvc.lock", lock.LOCK.read_text(encoding="utf-8"))
    return Outcome(code, action, output)


def repro_study(path: str) -> int:
    """Run all stages of a study's dvc.yaml, their output on the terminal; returns DVC's exit code."""
    code = subprocess.run([*DVC, "repro", path], env=environment()).returncode
    checkpoints.sweep()
    return code


def _interrupt_stage(names: list[str], process: subprocess.Popen, place: Path) -> None:
    """Ask the running stage to save and stop, and wait for it and for DVC. `place` is the stage's home."""
    import signal

    asked = False
    for name in names:
        try:
            pid = int((place / ".checkpoints" / f"{name}.lock").read_text())
            if any(parent.pid == process.pid for parent in _parents(pid)):  # of an ended stage the file stays
                os.kill(pid, signal.SIGINT)
                asked = True
        except (OSError, ValueError):
            continue
    if not asked:
        process.terminate()
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()


def _parents(pid: int) -> list:
    import psutil

    try:
        return psutil.Process(pid).parents()
    except psutil.Error:
        return []


def experiment(
    folder: Path, place: Path, name: str, params: dict[str, object], targets: list[str], log: Path
) -> Outcome:
    """`dvc exp run` in a checkout of its own, whose stages have `place` as their home; output goes to `log`.

    The experiment becomes a commit at `experiment_ref`; its outs stay in the folder. An interrupt (Ctrl-C) is passed
    on to the running stage, which saves a checkpoint; then KeyboardInterrupt goes up.
    """
    settings = [part for key, value in params.items() for part in ("-S", f"params.yaml:{key}={json.dumps(value)}")]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*DVC, "exp", "run", "--name", name, *settings, *targets], cwd=folder, stdout=file,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**environment(), "AJUSTE_HOME": str(place), "AJUSTE_FLOW_PID": str(os.getpid())},
        )
        try:
            code = process.wait()
        except BaseException:
            _interrupt_stage(stage_names(), process, place)
            raise
    if code == 0:  # the results are in the cache, and named by the experiment's commit
        for ended in place.glob(f".checkpoints/*/{checkpoints.ENDED}"):
            shutil.rmtree(ended.parent)
    output = log.read_text(encoding="utf-8", errors="replace")
    ran = f"Running stage '{targets[0]}'" in output
    restored = f"Stage '{targets[0]}' is cached" in output
    return Outcome(code, "ran" if ran else "restored" if restored else "unchanged", output)


def experiment_ref(baseline: str, name: str) -> str:
    """Where DVC keeps the commit of an experiment on that baseline."""
    return f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"


def unused_cache(pins: set[str], projects: list[Path], experiments: bool, remove: bool) -> list[Path]:
    """Files of DVC's cache that nothing names any more; removed if asked.

    Kept is what the workspace, every branch and tag, each of `projects` and, if asked, every experiment name, and what
    the DVC hashes `pins` stand for, folders with their files. Raises UsageError with DVC's reason if it cannot tell.
    """
    return [Path(line) for line in _collected(pins, projects, experiments, remove) if line.startswith("/")]


def unused_remote(pins: set[str], projects: list[Path], experiments: bool, remove: bool) -> list[str]:
    """The same of the default DVC remote: addresses of its files; [] without a remote.

    Raises UsageError also where the cache lacks the listing of a pinned folder: its files could not be told from those
    that go.
    """
    if not has_remote():
        return []
    cache = Path(run("cache", "dir").stdout.strip()).resolve() / "files" / "md5"
    lost = [md5 for md5 in pins if md5.endswith(".dir") and not (cache / md5[:2] / md5[2:]).is_file()]
    if lost:
        raise UsageError(f"the DVC remote is left as it is: the cache has no listing of {len(lost)} folders that kept "
                         "versions name, so their files are not known; `dvc fetch --run-cache --all-commits` brings it")
    local = set(_collected(pins, projects, experiments, remove=False))
    return [line for line in _collected(pins, projects, experiments, remove, "--cloud") if line not in local]


def _collected(pins: set[str], projects: list[Path], experiments: bool, remove: bool, *more: str) -> list[str]:
    """What `dvc gc` removes, or would."""
    import tempfile

    cache = Path(run("cache", "dir").stdout.strip()).resolve()
    if not (cache / "files").is_dir():
        return []
    with tempfile.TemporaryDirectory() as folder:  # a project without stages: its .dvc files are the pins
        pinned = Path(folder)
        (pinned / ".dvc").mkdir()
        (pinned / ".dvc" / "config").write_text(f"[core]\n    no_scm = true\n[cache]\n    dir = {cache}\n")
        for number, md5 in enumerate(sorted(pins)):
            entry = {"outs": [{"md5": md5, "hash": "md5", "path": f"pin{number}"}]}
            (pinned / f"pin{number}.dvc").write_text(yaml.safe_dump(entry))
        kept = ["--workspace", "--all-branches", "--all-tags", *(["--all-experiments"] if experiments else [])]
        done = run("gc", *kept, "--force", *([] if remove else ["--dry"]), *more, "--projects", str(pinned),
                   *map(str, projects))
    if done.returncode != 0:
        raise UsageError(f"dvc gc: {last_error(done.stderr)}")
    lines = (done.stdout + done.stderr).splitlines()
    return [line.removeprefix("Removing ") for line in lines if line.startswith("Removing ")]
