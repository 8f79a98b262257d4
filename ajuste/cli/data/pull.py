"""`ajuste data pull`: data/ from the DVC remote, from DVC's local cache, or made of sources/."""

from pathlib import Path

import typer


def run() -> None:
    """Bring data/ and say where it came from. Raises DataError if it is not what data.dvc names."""
    from ajuste.cli.work.ui_address import working
    from ajuste.core.errors import DataError
    from ajuste.tracking.project import versions

    state = versions.data_status()
    if state == "same":
        typer.echo("data/ is what data.dvc names: nothing to do")
        return
    if state == "changed":
        raise DataError(
            "data/ is not what data.dvc names, and pulling would overwrite it: `dvc add data` accepts it, "
            "`dvc checkout data.dvc` undoes it"
        )
    with working("Bringing data/"):
        if state == "missing" and versions.has_remote():
            versions.pull_data()
            done = "fetched from the DVC remote"
        else:
            done = _rebuild(versions)
    if versions.data_status() != "same":
        raise DataError("data/ was brought, but it is not what data.dvc names: `dvc diff` shows what differs")
    typer.echo(f"data/ {done}; it is byte for byte what data.dvc names ({versions.data_digest()})")


def _rebuild(versions) -> str:
    """Make data/ from sources/*/set.yaml, or take it from DVC's local cache if it holds more than that."""
    import os

    from ajuste.cli.data.sets import DATA, scratch
    from ajuste.core.errors import DataError
    from ajuste.core.stages import md5_of

    sources = sorted(Path("sources").glob("*/set.yaml"))
    if not sources:
        raise DataError("sources/ has no set.yaml: run this in the project's folder")
    with scratch() as folder:
        made = folder / "data"
        for path in sources:
            _copy_set(path, made / path.parent.name)
        expected = versions.data_digest()
        if expected and md5_of(made) != expected:
            if versions.checkout_data():
                return "restored from DVC's local cache"
            raise DataError(
                f"data/ rebuilt from sources/ is {md5_of(made)}, but data.dvc names {expected}, and neither a remote "
                "nor the local cache holds that: `dvc remote add -d NAME URL`, or take data.dvc back from git"
            )
        if DATA.exists():
            raise DataError("data/ exists, but there is no data.dvc: move it away, or `dvc add data`")
        os.rename(made, DATA)
    versions.add_data()
    return f"rebuilt from {', '.join(str(path) for path in sources)}"


def _copy_set(path: Path, target: Path) -> None:
    """A set.yaml of sources/ and the files that it names, from beside it or from their package, into `target`."""
    import shutil

    from ajuste.cli.data.kinds import read_any
    from ajuste.core.errors import DataError
    from ajuste.rows.sources import find

    target.mkdir(parents=True)
    for file in read_any(path.parent).files:
        beside = path.parent / file.path
        found = beside if file.source.startswith("path:") else find(file.source, "dataset").path
        if not found.is_file():
            raise DataError(f"{path}: {file.source} is no file here: data/ cannot be rebuilt without it")
        shutil.copyfile(found, target / file.path)
    shutil.copyfile(path, target / "set.yaml")
