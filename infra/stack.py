"""A real stack on loopback without containers: PostgreSQL, Prefect, MLflow, a worker, the model server.

    make stack                        = python -m infra.stack up        starts what does not run yet, in order
    make stack-down                   = python -m infra.stack down      ends all of it, in reverse order
    python -m infra.stack status      what runs, where, with which process id
    source .stack/env                 points `ajuste`, `prefect` and `mlflow` of this shell at the stack
    .stack/pages.html                 opened in a browser it leads to the pages of both servers, logged in

All of it lives in <home>/.stack: the cluster, artifacts/, logs/, pids.json, env, passwords (ajuste/cli/logins.py).
Servers listen on 127.0.0.1 and want a login. A port is chosen by AJUSTE_STACK_<NAME>_PORT (0 takes a free one) and
kept for the next start. docs/stack.md says more.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import psutil

from ajuste.cli import logins, processes
from ajuste.cli.main import QUIET
from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home, write_atomically
from ajuste.core.locks import held
from infra import postgres

ROOT = Path(__file__).parents[1]
PORTS = {"postgres": 15432, "prefect": 14200, "mlflow": 15000, "models": 18000}
ORDER = ("postgres", "prefect", "mlflow", "worker", "models")  # each needs those before it
POOL, WORKER = "ajuste", "ajuste-stack"
MARK = "AJUSTE_STACK"  # in the environment of all that the stack starts: how its lost children are found
FLOW_SECONDS = 30  # a flow run that is asked to end tells Prefect so, and its stage ends at its next step


class Stack:
    """The stack of one home, as its files and the processes tell it."""

    def __init__(self) -> None:
        self.folder = home() / ".stack"
        self.pids = self.folder / "pids.json"
        self.known: dict[str, dict] = json.loads(self.pids.read_text()) if self.pids.exists() else {}

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def port(self, name: str) -> int:
        return self.known.get(name, {}).get("port") or PORTS[name]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port(name)}"

    def process(self, name: str) -> psutil.Process | None:
        """The running process that we started, or None; a process id that another process has now is not ours."""
        entry = self.known.get(name, {})
        try:
            found = psutil.Process(entry["pid"])
            ours = abs(found.create_time() - entry["created"]) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except (KeyError, psutil.NoSuchProcess):
            return None
        return found if ours else None

    def remember(self, name: str, **what: object) -> None:
        """Note the process (or the end) of a server; its port stays."""
        port = self.known.get(name, {}).get("port")
        self.known[name] = ({"port": port} if port else {}) | what
        write_atomically(self.pids, json.dumps(self.known, indent=1))

    def settings(self) -> dict[str, str]:
        """What a shell needs to use the stack."""
        servers = logins.client(self.folder, self.url("prefect"), self.url("mlflow"))
        return {"AJUSTE_HOME": str(home()), "PREFECT_HOME": str(home() / ".prefect"), **servers, **QUIET}

    def environment(self) -> dict[str, str]:
        """What the servers and all that they start get."""
        foreign = ("PG", "MLFLOW_", "PREFECT_API_", "PREFECT_SERVER_", "AJUSTE_STACK")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "PREFECT_HOME": str(home() / ".prefect"), **QUIET, MARK: str(home())}

    # --- one server each ----------------------------------------------------------------------------------------

    def answers(self, name: str) -> bool:
        """True if the server does its work, as a client sees it."""
        match name:
            case "postgres":
                return postgres.answers(self.folder, self.port(name))
            case "prefect":
                return processes.answers(f"{self.url(name)}/api/health")
            case "mlflow" | "models":
                return processes.answers(f"{self.url(name)}/health")
            case _:
                return self._polls()

    def start(self, name: str) -> subprocess.Popen:
        """Start one server, without waiting for it."""
        env = self.environment()
        here = ["--host", "127.0.0.1", "--port", str(self.port(name))] if name in PORTS else []
        match name:
            case "postgres":
                return postgres.start(self.folder, self.port(name), self.log(name), env)
            case "prefect":
                env |= logins.prefect_server(self.folder, self.port(name))
                env["PGPASSFILE"] = str(postgres.passfile(self.folder))
                database = postgres.address("postgresql+asyncpg", self.port("postgres"), "prefect")
                env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
                command = processes.python("prefect", "server", "start", *here)
            case "mlflow":
                users = postgres.address("postgresql", self.port("postgres"), "mlflow_users")
                doors, closed = logins.mlflow_server(self.folder, self.port(name), users)
                env |= closed | {"PGPASSFILE": str(postgres.passfile(self.folder))}
                database = postgres.address("postgresql", self.port("postgres"), "mlflow")
                artifacts = ["--serve-artifacts", "--artifacts-destination", (self.folder / "artifacts").as_uri()]
                command = processes.python(
                    "mlflow", "server", *here, *doors, "--backend-store-uri", database, *artifacts, "--workers", "2"
                )
            case "worker":
                env |= self.settings()
                self._deploy(env)
                command = processes.python("prefect", "worker", "start", "--pool", POOL, "--name", WORKER)
            case _:
                command = processes.python("ajuste.cli.main", "serve", *here)
                env |= {"AJUSTE_HOME": str(home()), **logins.client(self.folder, mlflow=self.url("mlflow"))}
        return processes.start(command, self.log(name), env, home())

    def missing(self, name: str) -> str:
        """Why a server cannot be started now although nothing is wrong; "" if it can."""
        if name != "models" or self._registered():
            return ""
        return "nothing is registered yet: `make stack` starts it after the first run of adapt"

    def _deploy(self, env: dict[str, str]) -> None:
        done = subprocess.run(
            processes.python("ajuste.cli.main", "deploy"), cwd=ROOT, env=env, capture_output=True, text=True
        )
        self.log("deploy").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            raise DataError(f"`ajuste deploy` failed: see {self.log('deploy')}")

    def _polls(self) -> bool:
        """True if Prefect has heard of the worker since it was started."""
        found = self._ask("prefect", f"/api/work_pools/{POOL}/workers/filter", {"limit": 200}) or []
        beats = [item["last_heartbeat_time"] for item in found if item["name"] == WORKER and item["status"] == "ONLINE"]
        started = self.known.get("worker", {}).get("created", 0)
        return any(datetime.fromisoformat(beat.replace("Z", "+00:00")).timestamp() >= started for beat in beats)

    def _registered(self) -> bool:
        answer = self._ask("mlflow", "/api/2.0/mlflow/registered-models/search?max_results=1") or {}
        return bool(answer.get("registered_models"))

    def _ask(self, name: str, path: str, body: dict | None = None) -> dict | list | None:
        """The JSON that a server answers to its login, or None if it does not."""
        login = base64.b64encode(f"{logins.USER}:{logins.password(self.folder, name)}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url(name) + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError, ValueError):
            return None


def up(stack: Stack) -> None:
    """Start what does not run, each after those it needs answer. Raises UsageError, DataError."""
    postgres.passfile(stack.folder)
    started = 0
    for name in ORDER:
        if stack.process(name):
            if not stack.answers(name):
                raise DataError(f"{name} runs but does not answer: see {stack.log(name)}; `make stack-down` ends it")
            _say(stack, name, "runs already")
            continue
        if why := stack.missing(name):
            print(f"{name:9} left out: {why}")
            continue
        _choose_port(stack, name)
        process = stack.start(name)
        stack.remember(name, pid=process.pid, created=psutil.Process(process.pid).create_time())
        try:
            processes.wait(name, process, lambda name=name: stack.answers(name), stack.log(name))
            if name == "postgres":
                postgres.make_databases(stack.folder, stack.port(name))
        except BaseException:
            _end(stack, name)
            raise
        started += 1
        _say(stack, name, "started")
    env = logins.write_env(stack.folder, stack.settings())
    pages = logins.write_pages(stack.folder, stack.url("prefect"), stack.url("mlflow"))
    print(f"The stack runs{'' if started else ' already'}: source {env}; logs in {stack.folder}/logs")
    print(f"In a browser, logged in: {pages}")


def down(stack: Stack) -> None:
    """End the model server, the worker with its flow runs, then the servers; then what is left of them."""
    for name in reversed(ORDER):
        if stack.process(name):
            _end(stack, name)
            print(f"{name:9} ended")
        if name == "worker":
            runs = _marked(stack)
            if runs:
                print(f"{'runs':9} ended: {len(runs)} processes of flow runs")
            processes.end(runs, FLOW_SECONDS)
    processes.end(_marked(stack))
    logins.close(stack.folder)


def status(stack: Stack) -> bool:
    """Print a line a server; True if all that can run do."""
    good = True
    for name in ORDER:
        if not stack.process(name):
            good &= name == "models"
            print(f"{name:9} does not run")
        elif not stack.answers(name):
            good = False
            _say(stack, name, "does not answer")
        else:
            _say(stack, name, "runs")
    return good


def _say(stack: Stack, name: str, what: str) -> None:
    where = "" if name == "worker" else f"127.0.0.1:{stack.port(name)}" if name == "postgres" else stack.url(name)
    print(f"{name:9} {what:15} process {stack.known[name]['pid']:<8} {where}".rstrip(), flush=True)


def _choose_port(stack: Stack, name: str) -> None:
    """Settle the port: while other servers run the one that they know, else the one of the environment, the last start
    or PORTS. Raises UsageError if it is in use."""
    if name not in PORTS:
        return
    variable = f"AJUSTE_STACK_{name.upper()}_PORT"
    given = os.environ.get(variable, "")
    if given and not (given.isdigit() and int(given) < 65536):
        raise UsageError(f"{variable}={given} is no port: give a number from 0 (a free one) to 65535")
    settled = stack.known.get(name, {}).get("port")
    if not settled or (given and not any(stack.process(other) for other in ORDER[ORDER.index(name) :])):
        settled = processes.free_port(0) if given == "0" else int(given or PORTS[name])
    if not processes.is_free(settled):
        raise UsageError(f"{name}: port {settled} of 127.0.0.1 is in use: end what uses it, or {variable}=0 make stack")
    stack.remember(name, port=settled)


def _end(stack: Stack, name: str) -> None:
    ask = postgres.STOP if name == "postgres" else signal.SIGTERM
    processes.stop(stack.known[name]["pid"], ask)
    stack.remember(name)


def _marked(stack: Stack) -> list[psutil.Process]:
    """What the servers started and is no part of a server that runs: flow runs, lost children."""
    servers = [process for name in ORDER if (process := stack.process(name))]
    kept = {child.pid for server in servers for child in [server, *server.children(recursive=True)]} | {os.getpid()}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in kept and process.environ().get(MARK) == str(home()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("up", "down", "status"))
    verb = parser.parse_args().verb
    try:
        if verb == "status":
            return 0 if status(Stack()) else 1
        with held(home() / ".stack" / "lock", "another `make stack` or `make stack-down` is at work"):
            up(Stack()) if verb == "up" else down(Stack())
        return 0
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("error: interrupted; `make stack-down` ends what was started", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
