"""`ajuste data pull`: data/ from the DVC remote, from DVC's local cache, or made of sources/."""

from pathlib import Path

import typer


def run() -> None:
    """Bring data/ and say where it came from. Raises DataError if it is not what data.dvc names."""
    from ajuste.cli.project.ui_address import working
    from ajuste.core.errors import DataError
    from ajuste.tracking.project import dvc, raw_data

    state = raw_data.status()
    if state == "same":
        typer.echo("data/ is what data.dvc names: nothing to do")
        return
    if state == "changed":
        raise DataError(
            "data/ is not what data.dvc names, and pulling would overwrite it: `dvc add data` accepts it, "
            "`dvc checkout data.dvc` undoes it"
        )
    with working("Bringing data/"):
        if state == "missing" and dvc.has_remote():
            raw_data.pull()
            done = "fetched from the DVC remote"
        else:
            done = _rebuild()
    if raw_data.status() != "same":
        raise DataError("data/ was brought, but it is not what data.dvc names: `dvc diff` shows what differs")
    typer.echo(f"data/ {done}; it is byte for byte what data.dvc names ({raw_data.digest()})")


def _rebuild() -> str:
    """Make data/ from sources/*/set.yaml, or take it from DVC's local cache if it holds more than that."""
    import os

    from ajuste.cli.data.sets import DATA, scratch
    from ajuste.core.errors import DataError
    from ajuste.core.stages import md5_of
    from ajuste.tracking.project import raw_data

    sources = sorted(Path("sources").glob("*/set.yaml"))
    if not sources:
        raise DataError("sources/ has no set.yaml: run this in the project's folder")
    with scratch() as folder:
        made = folder / "data"
        for path in sources:
            _copy_set(path, made / path.parent.name)
        expected = raw_data.digest()
        if expected and md5_of(made) != expected:
            if raw_data.checkout():
                return "restored from DVC's local cache"
            raise DataError(
                f"data/ rebuilt from sources/ is {md5_of(made)}, but data.dvc names {expected}, and neither a remote "
                "nor the local cache holds that: `dvc remote add -d NAME URL`, or take data.dvc back from git"
            )
        if DATA.exists():
            raise DataError("data/ exists, but there is no data.dvc: move it away, or `dvc add data`")
        os.rename(made, DATA)
    raw_data.add()
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
