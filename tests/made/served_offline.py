"""A tiny assistant served on loopback, and both outside suites run on it, in a process that has no network.

    unshare --map-root-user --net python -m tests.made.served_offline FOLDER

Prints a JSON object: whether the outside is away, and the exit of each `ajuste probe`. FOLDER holds the tiny model.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from ajuste.serving.app import make_app
from ajuste.serving.models import Models
from tests.serving.conftest import FakeRegistry, running

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def loopback_up() -> None:
    """Bring up `lo`, which a new namespace has down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def probe(*arguments: str) -> int:
    command = [sys.executable, "-m", "ajuste.cli.main", "probe", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode


def main(folder: Path) -> None:
    """Serve `folder` as assistant/1 and probe it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    loopback_up()
    registry = FakeRegistry({"assistant": [folder]}, {"assistant": {"champion": 1}})
    models = Models(registry.resolve, ["assistant"], folder, folder)
    with running(make_app(models)) as url:
        ends = {
            "garak": probe("garak", "--url", url, "--only", "phrasing.PastTense", "--limit", "3"),
            "lm-eval": probe("lm-eval", "--url", url, "--only", "ajuste_piqa_chat", "--limit", "3"),
            "weights": probe("lm-eval", str(folder), "--only", "ajuste_piqa", "--limit", "3"),
        }
    print(json.dumps({"interfaces": interfaces(), **ends}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
