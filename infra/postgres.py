"""A PostgreSQL of the stack's own: a cluster in <home>/.stack/postgres, reached at 127.0.0.1 by password alone.

PostgreSQL refuses to run as root, so for root its unprivileged user (`postgres`, else `nobody`) runs it and owns the
folder. The password is made here and stands in <home>/.stack/pgpass (mode 0600), which psql, MLflow's psycopg2 and
Prefect's asyncpg all read through PGPASSFILE: no address, command line or log holds it.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from ajuste.cli import processes
from ajuste.cli.logins import private
from ajuste.core.errors import DataError, UsageError

USER = "ajuste"
DATABASES = ("prefect", "mlflow", "mlflow_users")
ORPHAN_SECONDS = 20
STOP = signal.SIGINT  # its fast shutdown, which waits for no client


def passfile(stack: Path) -> Path:
    """The password file below the stack's folder; made, with a new password, if there is none."""
    path = stack / "pgpass"
    if not path.exists():
        private(path, f"127.0.0.1:*:*:{USER}:{secrets.token_urlsafe(32)}\n")
    return path


def address(driver: str, port: int, database: str) -> str:
    """SQLAlchemy's URL of a database, without the password."""
    return f"{driver}://{USER}@127.0.0.1:{port}/{database}"


def start(stack: Path, port: int, log: Path, env: Mapping[str, str]) -> subprocess.Popen:
    """Start the server; the first time its cluster is made. Raises UsageError if PostgreSQL cannot be used here."""
    data = stack / "postgres"
    programs = _programs(data)
    owner = _owner()
    if not (data / "PG_VERSION").exists():
        _make(programs, stack, data, owner)
    _wait_for_orphans(data)
    # no socket file: a path of ours may be too long for one
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", str(port)]
    command = [str(programs / "postgres"), "-D", str(data), *options]
    return processes.start(command, log, env, data, *_ids(owner))


def answers(stack: Path, port: int) -> bool:
    """True if a login with the password works."""
    return _psql(stack, port, "select 1").returncode == 0


def make_databases(stack: Path, port: int) -> None:
    """Make those of DATABASES that are missing. Raises DataError with PostgreSQL's reason."""
    there = _psql(stack, port, "select datname from pg_database").stdout.split()
    for name in DATABASES:
        if name not in there:
            done = _psql(stack, port, f'create database "{name}"')
            if done.returncode != 0:
                raise DataError(f"PostgreSQL made no database {name}: {' '.join(done.stderr.split())}")


def _psql(stack: Path, port: int, query: str) -> subprocess.CompletedProcess[str]:
    command = [str(_programs(stack / "postgres") / "psql"), "--no-psqlrc", "--no-password", "--tuples-only"]
    command += ["--no-align", "--host", "127.0.0.1", "--port", str(port), "--username", USER, "--dbname", "postgres"]
    env = {**_environment(), "PGPASSFILE": str(passfile(stack)), "PGCONNECT_TIMEOUT": "5"}
    return subprocess.run([*command, "--command", query], env=env, capture_output=True, text=True)


def _environment() -> dict[str, str]:
    """Ours without what would send PostgreSQL's programs to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _programs(data: Path) -> Path:
    """The folder of PostgreSQL's programs: of the cluster's own major version, for a new cluster the newest."""
    made = data / "PG_VERSION"
    wanted = made.read_text().strip() if made.exists() else "*"
    found = [path.parent for path in Path("/usr/lib/postgresql").glob(f"{wanted}/bin/initdb")]
    if not found and (initdb := shutil.which("initdb")) and wanted == "*":
        found = [Path(initdb).resolve().parent]
    if not found:
        version = "" if wanted == "*" else f" {wanted}, which made {data},"
        raise UsageError(f"PostgreSQL{version} is not installed: on Debian `make system` or apt-get install postgresql")
    return max(found, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)


def _wait_for_orphans(data: Path) -> None:
    """Children of a server that was killed end by themselves, and until then a new one does not start.

    Nor while its lock file names a process: a killed server that nobody has collected yet still is one, so the file of
    a zombie goes.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while time.monotonic() < deadline and any(
        process.info["cwd"] == str(data) for process in psutil.process_iter(["cwd"])
    ):
        time.sleep(0.2)
    if _is_zombie(lock := data / "postmaster.pid"):
        lock.unlink()


def _is_zombie(lock: Path) -> bool:
    try:
        return psutil.Process(int(lock.read_text().split()[0])).status() == psutil.STATUS_ZOMBIE
    except (OSError, ValueError, IndexError, psutil.Error):
        return False


def _owner() -> pwd.struct_passwd | None:
    """Who runs the server: another user for root, else ourselves (None)."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    if not (known.keys() & {"postgres", "nobody"}):
        raise UsageError("PostgreSQL refuses to run as root, and there is no user `postgres`: run this as another user")
    return known.get("postgres") or known["nobody"]


def _ids(owner: pwd.struct_passwd | None) -> tuple[int | None, int | None]:
    return (None, None) if owner is None else (owner.pw_uid, owner.pw_gid)


def _make(programs: Path, stack: Path, data: Path, owner: pwd.struct_passwd | None) -> None:
    """`initdb`, in a folder that gets its name when it is whole."""
    half, password = stack / "postgres.new", stack / "postgres.password"
    shutil.rmtree(half, ignore_errors=True)
    password.unlink(missing_ok=True)
    half.mkdir(mode=0o700)
    user, group = _ids(owner)
    who = {} if owner is None else {"user": user, "group": group, "extra_groups": []}
    try:
        with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(passfile(stack).read_text().strip().rpartition(":")[2] + "\n")
        if owner is not None:
            os.chown(half, user, group)
            os.chown(password, user, group)
            if subprocess.run(["test", "-w", str(half)], **who).returncode != 0:
                raise UsageError(
                    f"PostgreSQL runs as user `{owner.pw_name}`, who may not enter {stack}: open the folders above "
                    "it to others (chmod o+x), or run this as another user than root"
                )
        command = [str(programs / "initdb"), "--pgdata", str(half), "--username", USER, "--pwfile", str(password)]
        command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        done = subprocess.run(command, cwd=half, env=_environment(), capture_output=True, text=True, **who)
        if done.returncode != 0:
            raise DataError(f"PostgreSQL's initdb failed: {' '.join(done.stderr.split())}")
        half.rename(data)
    finally:
        password.unlink(missing_ok=True)
        shutil.rmtree(half, ignore_errors=True)
