"""The raw data, data/, and data.dvc, which names one state of it by digest: `ajuste data` and every run ask here."""

from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.core.params import read_yaml
from ajuste.core.stages import md5_of
from ajuste.tracking.project import dvc


def digest() -> str:
    """The digest that data.dvc names, or "" if there is no data.dvc."""
    path = Path("data.dvc")
    return read_yaml(path)["outs"][0]["md5"] if path.exists() else ""


def status() -> str:
    """How data/ stands to data.dvc: "missing", "same", "changed" or "untracked" (no data.dvc)."""
    if not digest():
        return "untracked"
    if not Path("data").is_dir():
        return "missing"
    return "same" if md5_of(Path("data")) == digest() else "changed"


def check() -> None:
    """Refuse to run on raw data that data.dvc does not name: `dvc repro` would silently accept it."""
    state = status()
    if state == "missing":
        raise DataError("data/ is missing: `ajuste data pull` brings what data.dvc names")
    if state == "changed":
        raise DataError(
            "data/ is not what data.dvc names: `dvc diff` shows the change; "
            "`dvc add data` accepts it, `dvc checkout data.dvc` undoes it"
        )


def check_place() -> None:
    """Refuse to change data/ if it is a link: DVC records no folder that stands behind one."""
    if Path("data").is_symlink():
        raise DataError(
            f"data/ is a link to {Path('data').readlink()}, and DVC records nothing behind a link: make data/ a folder "
            "(move the files into it, or mount the other disk there); runs read a linked data/ as it is"
        )


def add() -> str:
    """Make data.dvc name what stands in data/; returns the digest. Raises DataError, also for a link."""
    check_place()
    done = dvc.run("add", "--quiet", "data")
    if done.returncode != 0:
        raise DataError(f"dvc add data failed: {dvc.last_error(done.stderr)}")
    return digest()


def checkout() -> bool:
    """Bring data/ from the local cache; False if the cache lacks it."""
    check_place()
    return dvc.run("checkout", "--quiet", "--force", "data.dvc").returncode == 0


def pull() -> None:
    """Bring data/ from the DVC remote. Raises DataError with DVC's reason."""
    check_place()
    done = dvc.run("pull", "--quiet", "--force", "data.dvc")
    if done.returncode != 0:
        raise DataError(f"dvc pull data.dvc failed: {dvc.last_error(done.stderr)}")
