"""The push of a deployed run to real remotes: an SSH server of our own on loopback, and an S3 store (moto's server).

They need what Ajuste does not: `apt-get install openssh-server`, `pip install dvc-ssh` and `pip install 'moto[server]'
'.[s3]'`. Without them they are skipped, and say so.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ajuste.cli.processes import free_port, is_free
from ajuste.core.errors import DataError
from ajuste.tracking.project import publish
from tests.tracking.test_publish import dvc, project, with_dvc

__all__ = ["project"]
pytestmark = pytest.mark.slow
SSHD = Path("/usr/sbin/sshd")


@contextmanager
def running(*command: str, port: int) -> Iterator[None]:
    """A server that listens on the port inside."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while is_free(port):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def comes_back(place: Path) -> None:
    """What was pushed is all that a clone without a cache needs."""
    for out in ("out.csv", "data"):
        subprocess.run(["rm", "-rf", out, ".dvc/cache"], check=True)
        dvc("pull", "--quiet", out)
    assert (place / "out.csv").read_text() == (place / "data" / "rows.csv").read_text() == "a\n"


@pytest.mark.skipif(not SSHD.exists(), reason="no SSH server is installed: an SSH remote is NOT TESTED")
def test_an_ssh_remote(project: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed: an SSH remote is NOT TESTED")
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "known")
    (tmp_path / "known").chmod(0o600)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, run by root, wants to be alone
    port = free_port(0)
    (tmp_path / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path / 'host'}\nAuthorizedKeysFile {tmp_path / 'known'}\n"
        f"PidFile none\nPasswordAuthentication no\nStrictModes no\nSubsystem sftp internal-sftp\n"
    )
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    with_dvc()
    dvc("remote", "add", "--default", "far", f"ssh://{user}@127.0.0.1:{port}{tmp_path / 'remote'}")
    dvc("remote", "modify", "--local", "far", "keyfile", str(tmp_path / "user"))
    with running(str(SSHD), "-D", "-e", "-f", str(tmp_path / "config"), port=port):
        assert publish.push() and publish.push()
        # rows.csv and out.csv, which are one file's bytes, and the list of the folder data/
        assert len([path for path in (tmp_path / "remote").rglob("*") if path.is_file()]) == 2
        comes_back(project)
        dvc("remote", "modify", "--local", "far", "keyfile", str(tmp_path / "host"))  # a key that it does not know
        shutil.rmtree(tmp_path / "remote")
        with pytest.raises(DataError, match="dvc push failed") as error:
            publish.push()
    assert "\n" not in str(error.value)


def test_an_s3_remote(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for module in ("dvc_s3", "moto.server", "boto3"):
        pytest.importorskip(module, reason=f"{module} is not installed: an S3 remote is NOT TESTED")
    import boto3

    port = free_port(0)
    url = f"http://127.0.0.1:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with_dvc()
    dvc("remote", "add", "--default", "store", "s3://ajuste/dvc")
    dvc("remote", "modify", "store", "endpointurl", url)
    with running(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), port=port):
        with pytest.raises(DataError, match="dvc push failed"):
            publish.push()  # no such bucket
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="ajuste")
        assert publish.push() and publish.push()
        comes_back(project)
