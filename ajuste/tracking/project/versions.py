"""DVC and git: what must run again, and is it the same as before? The only caller of both.

DVC is called as a process (`python -m dvc`), because a library call keeps its state and its locks in this process.
"""

import copy
import getpass
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home, write_atomically
from ajuste.core.params import lookup, parse_yaml, read_yaml
from ajuste.core.stages import definitions, key_of, md5_of, stage_names

LOCK = Path("dvc.lock")
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
    return {**os.environ, "PATH": path, **quiet}


def dvc(*args: str) -> subprocess.CompletedProcess[str]:
    """Run a DVC command in the current folder and return what it printed."""
    return subprocess.run([*DVC, *args], capture_output=True, text=True, env=environment())


def git(*args: str) -> str:
    """What a git command prints; a failure is a UsageError with git's own words."""
    done = subprocess.run(["git", *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise UsageError(f"git {' '.join(args)}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout


def git_commit() -> str:
    """The commit of the current checkout, or "" where there is none yet."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def author() -> str:
    """Who works here: the name and address that git has been told, else the login name."""
    command = ["git", "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT"]  # nothing made up from a host name
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.rpartition(">")[0] + ">"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def changed_files() -> list[str]:
    """Tracked files that differ from the commit. dvc.lock and metrics/ are what a run writes: they do not count."""
    lines = git("status", "--porcelain", "--untracked-files=no").splitlines()
    names = [line[3:].split(" -> ")[-1].strip('"') for line in lines]
    return [name for name in names if name != "dvc.lock" and not name.startswith("metrics/")]


def dirty() -> bool:
    """True if code, params or data.dvc differ from the commit."""
    return bool(changed_files())


# --- dvc.lock -------------------------------------------------------------------------------------------------------


def parse_lock(text: str) -> dict:
    """The stages of a dvc.lock by name."""
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=2)
def _parsed(text: str) -> dict:
    # a run asks a hundred times for what takes 0.2 s to parse
    return parse_yaml(text).get("stages", {})


def lock() -> dict:
    """The stages of dvc.lock by name; empty before the first run."""
    return parse_lock(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}


def stage_lock(name: str) -> dict:
    """A stage's entry in dvc.lock. Raises UsageError when the stage has not run."""
    entry = lock().get(name)
    if entry is None:
        raise UsageError(f"dvc.lock has no stage `{name}`: it has not run yet; `ajuste run` runs it")
    return entry


def lock_params(entry: dict) -> dict:
    """The params of a lock entry by dotted key."""
    return {key: value for values in entry.get("params", {}).values() for key, value in values.items()}


def stage_key(name: str) -> str:
    """The stage key of what dvc.lock records."""
    entry = stage_lock(name)
    return key_of(entry["cmd"], {dep["path"]: dep["md5"] for dep in entry.get("deps", [])}, lock_params(entry))


def inputs_digest() -> str:
    """sha256 of everything that the default run starts from: commands, params, code and raw data."""
    definitions = _definitions()
    made = {_path_of(out) for entry in definitions.values() for out in entry.get("outs", [])}
    params = read_yaml(Path("params.yaml"))
    inputs: dict = {}
    for name, entry in definitions.items():
        deps = [
            dep for dep in entry.get("deps", []) if not any(dep == out or dep.startswith(f"{out}/") for out in made)
        ]
        inputs[name] = {
            "cmd": entry["cmd"],
            "deps": {dep: md5_of(Path(dep)) for dep in deps if Path(dep).exists()},
            "params": {key: lookup(params, key) for key in entry.get("params", [])},
        }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def parents_of(name: str) -> set[str]:
    """The stages whose outs a stage reads, by dvc.yaml."""
    entries = _definitions()
    deps = entries[name].get("deps", [])
    found = set()
    for other, entry in entries.items():
        for out in map(_path_of, entry.get("outs", [])):
            if other != name and any(dep == out or dep.startswith(f"{out}/") for dep in deps):
                found.add(other)
    return found


def _definitions() -> dict[str, dict]:
    """The entries of dvc.yaml by stage, read anew only when dvc.yaml or params.yaml has changed."""
    return _filled(*(Path(name).read_text(encoding="utf-8") for name in ("dvc.yaml", "params.yaml")))


@lru_cache(maxsize=1)
def _filled(dvc_yaml: str, params_yaml: str) -> dict[str, dict]:
    return definitions()


def _path_of(out: str | dict) -> str:
    return out if isinstance(out, str) else next(iter(out))


# --- status and runs --------------------------------------------------------------------------------------------------


def heal() -> None:
    """Undo what a kill at the wrong moment can leave: half a dvc.lock, half a file of DVC's own locks."""
    good = home() / ".state" / "dvc.lock"
    if LOCK.exists():
        try:
            parse_lock(LOCK.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            if good.exists():
                shutil.copyfile(good, LOCK)
            else:
                LOCK.unlink()
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
        done = dvc("status", "--json")
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
        write_atomically(home() / ".state" / "dvc.lock", LOCK.read_text(encoding="utf-8"))
    return Outcome(code, action, output)


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
    import tempfile

    cache = Path(dvc("cache", "dir").stdout.strip()).resolve()
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
        done = dvc("gc", *kept, "--force", *([] if remove else ["--dry"]), "--projects", str(pinned),
                   *map(str, projects))
    if done.returncode != 0:
        raise UsageError(f"dvc gc: {last_error(done.stderr)}")
    lines = (done.stdout + done.stderr).splitlines()
    return [Path(line.removeprefix("Removing ")) for line in lines if line.startswith("Removing /")]


def worktrees() -> list[Path]:
    """The git worktrees beside the main checkout."""
    lines = git("worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")][1:]


def remove_worktree(place: Path) -> None:
    """Take a worktree away, whatever was changed in it."""
    git("worktree", "remove", "--force", "--force", str(place))


def last_error(text: str) -> str:
    """The last line in which DVC names an error, or its last line at all."""
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines() or ["no message"]
    return lines[-1].removeprefix("ERROR: ")


# --- raw data ---------------------------------------------------------------------------------------------------------


def data_digest() -> str:
    """The digest that data.dvc names, or "" if there is no data.dvc."""
    path = Path("data.dvc")
    return read_yaml(path)["outs"][0]["md5"] if path.exists() else ""


def data_status() -> str:
    """How data/ stands to data.dvc: "missing", "same", "changed" or "untracked" (no data.dvc)."""
    if not data_digest():
        return "untracked"
    if not Path("data").is_dir():
        return "missing"
    return "same" if md5_of(Path("data")) == data_digest() else "changed"


def check_data() -> None:
    """Refuse to run on raw data that data.dvc does not name: `dvc repro` would silently accept it."""
    state = data_status()
    if state == "missing":
        raise DataError("data/ is missing: `ajuste data pull` brings what data.dvc names")
    if state == "changed":
        raise DataError(
            "data/ is not what data.dvc names: `dvc diff` shows the change; "
            "`dvc add data` accepts it, `dvc checkout data.dvc` undoes it"
        )


def add_data() -> str:
    """Make data.dvc name what stands in data/; returns the digest."""
    done = dvc("add", "--quiet", "data")
    if done.returncode != 0:
        raise DataError(f"dvc add data failed: {last_error(done.stderr)}")
    return data_digest()


def has_remote() -> bool:
    """True if a default DVC remote is configured."""
    return bool(dvc("config", "core.remote").stdout.strip())


def checkout_data() -> bool:
    """Bring data/ from the local cache; False if the cache lacks it."""
    return dvc("checkout", "--quiet", "--force", "data.dvc").returncode == 0


def pull_data() -> None:
    """Bring data/ from the DVC remote. Raises DataError with DVC's reason."""
    done = dvc("pull", "--quiet", "--force", "data.dvc")
    if done.returncode != 0:
        raise DataError(f"dvc pull data.dvc failed: {last_error(done.stderr)}")


def repro_study(path: str) -> int:
    """Run all stages of a study's dvc.yaml, their output on the terminal; returns DVC's exit code."""
    return subprocess.run([*DVC, "repro", path], env=environment()).returncode
