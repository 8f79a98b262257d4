"""How long does `ajuste rollback NAME` take? The whole command, from the shell's side, imports included.

    stores      SQLite in a folder of its own, and MLflow's server on such a database
    seconds     from start to end of the process, by the clock: other work on the same cores is in it
    processor   user and system time of the process, without that

Run it from the project's folder:

    python -m benchmarks.rollback > docs/measured/rollback.md
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ajuste.cli.processes import answers, free_port, python, start, stop, wait
from benchmarks.results import value

ROOT = Path(__file__).parents[1]
NAME = "reviews-classifier"
TIMES = 7
SEED = f"""
from ajuste.tracking.registry import promotion
from ajuste.tracking.runs.store import client
client().create_registered_model("{NAME}")
for version in "12":
    client().create_model_version("{NAME}", "s3://nowhere/" + version)
    promotion.move("{NAME}", version, "benchmark", "so that there is a previous one")
"""


def measure(env: dict[str, str]) -> list[tuple[float, float]]:
    """(seconds, processor seconds) of each rollback."""
    subprocess.run([sys.executable, "-c", SEED], cwd=ROOT, env=env, check=True)
    found = []
    for _ in range(TIMES):
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = python("ajuste.cli.main", "rollback", NAME)
        subprocess.run(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, check=True,
                       stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.monotonic() - began, used))
    return found


def row(store: str, found: list[tuple[float, float]]) -> str:
    """A line of the table: median and worst of both."""
    for name, runs in zip(("clock", "processor"), zip(*found, strict=True), strict=True):
        value(f"{store}, {name}", "s", runs)
    cells = [f"{of(values):.1f}" for values in zip(*found, strict=True) for of in (statistics.median, max)]
    return f"| {store} | {' | '.join(cells)} |"


def main() -> None:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        base = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | quiet
        load = os.getloadavg()[0]
        lines = [row("SQLite", measure(base | {"AJUSTE_HOME": f"{folder}/local"}))]
        port, log = free_port(0), Path(folder) / "server.log"
        command = python("mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db",
                         "--artifacts-destination", f"{folder}/artifacts", "--port", str(port), "--workers", "1")
        server = start(command, log, base | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, Path(folder))
        try:
            address = f"http://127.0.0.1:{port}"
            wait("MLflow's server", server, lambda: answers(f"{address}/health"), log)
            env = base | {"AJUSTE_HOME": f"{folder}/remote", "MLFLOW_TRACKING_URI": address}
            lines.append(row("MLflow's server", measure(env)))
        finally:
            stop(server.pid, seconds=2)
    print(f"""# How long a rollback takes

`python -m benchmarks.rollback`: the whole command `ajuste rollback {NAME}`, {TIMES} times for each store.
Python {platform.python_version()}, {os.cpu_count()} cores; load average at the start {load:.1f}. The clock counts what
other work takes away; processor time does not.

| store | seconds, median | worst | processor seconds, median | worst |
|---|---|---|---|---|
""" + "\n".join(lines) + """

Most of it is the import of MLflow. With a server, a second is the wait that keeps two machines apart
([promotion.md](../promotion.md)).""")


if __name__ == "__main__":
    main()
