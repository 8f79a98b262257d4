"""The way to a Ray cluster: `launch.address` of params.yaml, and what every process there is told.

    local       a cluster of this machine alone, which ends with the stage
    auto        the one that runs on this machine, or the one that RAY_ADDRESS names
    HOST:PORT   the one whose head listens there; this machine is one of its nodes (`ray start --address=HOST:PORT`,
                with `--num-cpus=0` where it shall only start stages)

The project's folder and its home lie at the same path on every node, on a disk that they share: stages read and write
files, and a stage that is restarted elsewhere finds its checkpoints there. Ray's own metrics of use are not sent.
"""

import contextlib
import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.home import home

CONNECT_SECONDS = 10
INSTALL = "python -m pip install -c constraints.txt -e '.[cluster]'"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # which says twice what a worker prints
}
PASSED_ON = ("GOMP_SPINCOUNT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")


def told() -> dict[str, str]:
    """The environment of a process on a node: this project, this home, and what decides how a stage computes."""
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed, "PYTHONPATH": os.pathsep.join(paths), "AJUSTE_HOME": str(home().resolve())}


@contextlib.contextmanager
def connected(address: str, cpus: int) -> Iterator[None]:
    """Inside, this process drives the cluster at `address`. cpus: what a `local` one shall have at least.

    Raises UsageError: Ray is not installed, or there is no cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"launch.by is ray, and Ray is not installed: {INSTALL}")
    os.environ.update(QUIET)
    if address not in ("local", "auto"):
        _reached(address)
    import ray

    local = address == "local"
    own = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False} if local else {}
    try:
        ray.init(
            address,
            runtime_env={"env_vars": told()},
            logging_level="ERROR",
            logging_config=ray.LoggingConfig(log_level="ERROR"),  # of Ray's own actors: without its dashboard they
            **own,  # warn all the time that they cannot ask it
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reached(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"params.yaml: launch.address is `{address}`: write local, auto, or HOST:PORT of a head")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UsageError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        f"params.yaml: launch.address: no Ray cluster at `{address}`: start one (`ray start --head`) and let this "
        f"machine be a node of it (`ray start --address=HOST:PORT`), or say `local` ({first})"
    )
