"""Two processes over gloo on this machine."""

import os
import socket
import subprocess
import sys


def run_two(module: str, argument: object) -> None:
    """`python -m module argument` as ranks 0 and 1 of one world; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
             "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(argument)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
