"""A Ray cluster on loopback for tests: as many raylets as nodes, all of this machine, and stages driven on it.

Without Ray's token: whoever imports ray first in a process decides whether it wants one. The nodes have this machine's
own address: Ray makes it of 127.0.0.1 in an address that it is given, and would then find nobody there.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ajuste.core.imports import ROOT

STORE = 100 * 1024**2  # bytes of a node's object store
DRIVE = """
import sys
from ajuste.core.launch.train import run
from ajuste.core.params import Compute

run(sys.argv[1], int(sys.argv[2]), sys.argv[3], Compute(dtype="float32", device="cpu", threads=1, seed=0))
"""


@contextmanager
def cluster(nodes: int) -> Iterator:
    """A `ray.cluster_utils.Cluster` of so many nodes with one CPU each; the first one is the head."""
    before = dict(os.environ)
    os.environ.update({"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=node())
    try:
        for _ in range(nodes - 1):
            found.add_node(**node())
        yield found
    finally:
        found.shutdown()
        os.environ.clear()
        os.environ.update(before)


def node() -> dict:
    """What a node is started with."""
    return {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}


def launched(folder: Path, address: str) -> Path:
    """The project in `folder`, whose stages go to the cluster: two workers of one that trains."""
    with (folder / "params.yaml").open("a") as file:
        file.write(f"launch: {{by: ray, processes: 2, address: '{address}'}}\n")
    return folder


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Python with these arguments in the project in `folder`, such as `-m tasks.instruct`, as DVC starts it there."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AJUSTE_HOME": str(folder)},
    )  # fmt: skip


def workers(folder: Path, module: str, address: str) -> str:
    """What two workers of Ray print that run main() of a module in `folder`, which is no stage."""
    return ended(begin(folder, "-c", DRIVE, module, "2", address))


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed, when it has ended well."""
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said
