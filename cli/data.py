"""`ajuste data`: bring the raw data, add one's own, look at it."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Raw data: pull, add your own, list, show.", no_args_is_help=True, rich_markup_mode="rich")
PARAMS = Path("params.yaml")


@app.command()
def pull() -> None:
    """Bring data/ as data.dvc names it: from the DVC remote if one is set, else rebuilt from sources/.

    \b
    ajuste data pull
    """
    from cli._ui import working
    from tasks._stage import DataError
    from tracking import versions

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
    import shutil

    from cli._sets import DATA, scratch
    from tasks._params import md5_of
    from tasks._sets import read_set
    from tasks._sources import find
    from tasks._stage import DataError

    sources = sorted(Path("sources").glob("*/set.yaml"))
    if not sources:
        raise DataError("sources/ has no set.yaml: run this in the project's folder")
    with scratch() as folder:
        made = folder / "data"
        for path in sources:
            target = made / path.parent.name
            target.mkdir(parents=True)
            for file in read_set(path.parent).files:
                beside = path.parent / file.path
                found = beside if file.source.startswith("path:") else find(file.source, "dataset").path
                if not found.is_file():
                    raise DataError(f"{path}: {file.source} is no file here: data/ cannot be rebuilt without it")
                shutil.copyfile(found, target / file.path)
            shutil.copyfile(path, target / "set.yaml")
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


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The set: a folder of data/. It is made if it does not exist.")],
    file: Annotated[
        str, typer.Argument(help="CSV, TSV, JSON, JSONL, Parquet, a folder of texts by label, or package:/hub:.")
    ],
    map: Annotated[list[str] | None, typer.Option(help="text=COLUMN, label=COLUMN, source=COLUMN; repeat it.")] = None,
    labels: Annotated[
        str, typer.Option(help="Classes in id order: a,b,c, or by value in the file: 0=bad,1=good.")
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace the set's files instead of adding one.")] = False,
    source: Annotated[str, typer.Option(help="Where the file comes from, for set.yaml; else its name.")] = "",
    licence: Annotated[str, typer.Option(help="Of a new set.")] = "unknown",
    use: Annotated[bool, typer.Option("--use", help="Set params.yaml to this set.")] = False,
) -> None:
    """Add a file to a set of data/, unchanged, and record it in data.dvc.

    \b
    ajuste data add tickets tickets.csv --map text=body --map label=queue --use
    ajuste data add reviews mine.jsonl --map text=review --labels 0=negative,1=positive
    ajuste data add imdb aclImdb/
    """
    import shutil

    from cli import _sets
    from cli._ui import working
    from tasks._sets import Columns, SourceFile
    from tasks._sources import find
    from tasks._stage import UsageError
    from tracking import versions

    old = _sets.existing(name, replace)
    columns = _sets.columns_from(map or [])
    if versions.data_status() != "untracked":
        versions.check_data()
    if file.startswith(("package:", "hub:")):
        found = find(file, "dataset")
        path, source = found.path, source or found.source
    else:
        path = Path(file).expanduser()
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    folder = _sets.DATA / name
    with _sets.scratch() as workspace, working(f"Reading {path.name}"):
        if path.is_dir():
            packed = workspace / "packed" / f"{path.resolve().name}.parquet"
            packed.parent.mkdir()
            _sets.pack(path, packed)
            path, form, columns = packed, "parquet", Columns(text="text", label="label", file="file")
        else:
            form = _sets.format_of(path)
        own = _sets.free_name(path, folder, [part.path for part in old.files] if old else [])
        entry = SourceFile(path=own, format=form, columns=columns, source=source or f"path:{own}")
        seen = _sets.look(path, entry)
        classes, mapped = _sets.choose_labels(file, seen, labels, old.labels if old else [])
        entry = entry.model_copy(update={"label_names": mapped})
        new = _sets.extend(old, entry, classes, licence)
        copy = workspace / own
        shutil.copyfile(path, copy)
        with _sets.published(folder, new, copy, workspace):
            versions.add_data()
    _tell(name, own, seen, new, mapped or {})
    _use(name, Path(own).stem, columns.source is None, use)


def _tell(name: str, own: str, seen, new, mapped: dict[str, str]) -> None:
    typer.echo(f"data/{name}/{own}: {seen.rows:,} rows; data.dvc names it now")
    counts = {
        label: sum(n for value, n in seen.values.items() if mapped.get(value, value) == label) for label in new.labels
    }
    typer.echo("classes: " + ", ".join(f"{label} {n:,}" for label, n in counts.items()))
    other = {value: n for value, n in seen.values.items() if mapped.get(value, value) not in new.labels}
    if other:
        shown = sorted(other.items(), key=lambda item: (-item[1], item[0]))[:10]
        listed = ", ".join(f"{value[:40] or '(empty)'} {n:,}" for value, n in shown) + (
            ", ..." if len(other) > 10 else ""
        )
        typer.echo(f"no class, so {sum(other.values()):,} rows will go to quarantine as unknown_label: {listed}")
    if seen.unreadable:
        typer.echo(f"{seen.unreadable:,} rows cannot be read and will go to quarantine; first: {seen.first_problem}")


def _use(name: str, stem: str, by_file: bool, write: bool) -> None:
    """Say, or write, what params.yaml needs so that the next run uses the new rows."""
    import io

    from ruamel.yaml import YAML

    from tasks._stage import write_atomically

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    yaml.representer.add_representer(
        type(None), lambda node, _: node.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    params = yaml.load(PARAMS.read_text(encoding="utf-8")) if PARAMS.exists() else {}
    validate, encode = (params.get(verb, {}).get("reviews", {}) for verb in ("validate", "encode"))
    changes = []
    if validate.get("set") != name:
        changes.append(("validate.reviews.set", validate, "set", name))
        if encode.get("sources"):
            changes.append(("encode.reviews.sources", encode, "sources", []))
    elif encode.get("sources") and not (by_file and stem in encode["sources"]):
        wanted = [*encode["sources"], stem] if by_file else []
        changes.append(("encode.reviews.sources", encode, "sources", wanted))
    if not changes:
        typer.echo("next: ajuste run")
        return
    for key, part, last, value in changes:
        if write:
            part[last] = value
        typer.echo(f"{'params.yaml' if write else 'set in params.yaml'}: {key}: {value}")
    if write:
        text = io.StringIO()
        yaml.dump(params, text)
        write_atomically(PARAMS, text.getvalue())
    typer.echo("next: ajuste run" if write else "then: ajuste run   (--use writes these for you)")


@app.command("list")
def list_sets() -> None:
    """The sets of data/: classes, files, sizes.

    \b
    ajuste data list
    """
    from rich.console import Console
    from rich.table import Table

    from cli._sets import DATA
    from tasks._sets import read_set
    from tasks._stage import DataError

    folders = sorted(path.parent for path in DATA.glob("*/set.yaml"))
    if not folders:
        raise DataError("data/ has no sets: `ajuste data pull` brings what data.dvc names")
    table = Table("set", "kind", "classes", "files", "MB")
    for folder in folders:
        found = read_set(folder)
        size = sum((folder / file.path).stat().st_size for file in found.files if (folder / file.path).exists())
        table.add_row(folder.name, found.kind, ", ".join(found.labels), str(len(found.files)), f"{size / 1e6:.1f}")
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A set of data/.")]) -> None:
    """One set: its files, columns, classes, rows, and some of the rows.

    \b
    ajuste data show reviews
    """
    from collections import Counter

    from cli import _sets
    from cli._ui import working
    from tasks._read import printable, read_rows
    from tasks._sets import read_set

    folder = _sets.DATA / name
    found = read_set(folder)
    typer.echo(f"{name}: {found.kind}, classes {', '.join(found.labels)}\nlicence: {found.licence}")
    for file in found.files:
        with working(f"Reading {file.path}"):
            seen = _sets.look(folder / file.path, file)
        columns = ", ".join(f"{key} = {column}" for key, column in file.columns.model_dump(exclude_none=True).items())
        typer.echo(f"\n{file.path}: {seen.rows:,} rows, {file.format}, {columns}, from {file.source}")
        names = file.label_names or {}
        counts: Counter = Counter()
        for value, n in seen.values.items():
            counts[names.get(value, value)] += n
        typer.echo("  " + ", ".join(f"{label[:40] or '(empty)'} {n:,}" for label, n in counts.most_common(20)))
        rows = next(read_rows(folder / file.path, file.format, file.columns, 3))
        for row in rows:
            text = " ".join(printable(row.text).split())
            typer.echo(f"  line {row.line}: [{printable(row.label)}] {text[:100]}{'...' if len(text) > 100 else ''}")
