"""A lock has one owner, its file says who, and the kernel frees it when the owner ends."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.locks import held, owner

HOLD = """
import sys, time
from pathlib import Path
from ajuste.core.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_owner_who_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a/lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert owner(path) == str(other.pid) == owner(path)
    with pytest.raises(UsageError, match=f"^it runs as process {other.pid}: wait for it or end it$"):
        with held(path, "it runs", wait=0.3):
            pass
    other.kill()
    other.wait()
    assert path.read_text() == str(other.pid) and owner(path) is None  # the file stays and says nothing of today
    with held(path, "it runs"):
        assert owner(path) is not None
        with pytest.raises(UsageError), held(path, "it runs"):  # also within one process
            pass
    assert owner(path) is None


@pytest.mark.parametrize("wait", [None, 60])
def test_who_waits_gets_it_when_it_is_free(tmp_path: Path, wait: float | None) -> None:
    path, order = tmp_path / "lock", []

    def second() -> None:
        with held(path, wait=wait):
            order.append("second")

    with held(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "lock"):
        raise ZeroDivisionError
    assert owner(tmp_path / "lock") is None


def test_an_owner_who_wrote_nothing_is_unknown(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert owner(path) == "unknown"
