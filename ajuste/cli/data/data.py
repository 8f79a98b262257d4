"""`ajuste data`: bring the raw data, add one's own, look at it, filter it."""

from typing import Annotated

import typer

HELP = "Raw data: pull, add your own, list, show, scan, filter."
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")


@app.command()
def pull() -> None:
    """Bring data/ as data.dvc names it: from the DVC remote if one is set, else rebuilt from sources/.

    \b
    ajuste data pull
    """
    from ajuste.cli.data import pull as pulling

    pulling.run()


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The set: a folder of data/. It is made if it does not exist.")],
    file: Annotated[
        str,
        typer.Argument(help="CSV, TSV, JSON(L), Parquet, TXT, CoNLL, a folder by label, package:/sdist:/hub:."),
    ],
    map: Annotated[
        list[str] | None,
        typer.Option(help="text=COLUMN, label=COLUMN, source=COLUMN; or any name of the layout; repeat it."),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Classes or tags in id order: a,b,c, or by value in the file: 0=bad,1=good.")
    ] = "",
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            "--format",
            help="Of instructions: alpaca, dolly, flan, prompt_completion, question_answer, messages, sharegpt, "
            "tagged, text, templates. Of preferences: pairs, transcripts, conversational, sharegpt, rankings, ratings. "
            "Of tagged words: words, conll. Of questions: squad. Else it is recognised.",
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
    ajuste data add people people.conll --use
    ajuste data add manuals squad.jsonl --use
    """
    from ajuste.cli.data import adding
    from ajuste.cli.data.sets import Asked, mapping_from

    columns = mapping_from(map or [])
    adding.add(Asked(name, file, columns, labels, layout, prompt, templates, replace, source, licence, use))


@app.command("list")
def list_sets() -> None:
    """The sets of data/: classes, tags or layouts, files, sizes.

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
        what = getattr(found, "labels", None) or dict.fromkeys(getattr(file, "layout", "squad") for file in found.files)
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
    from ajuste.cli.data.show_sets import SHOW

    folder = DATA / name
    found = read_any(folder)
    named = {"classification": "classes", "words": "tags"}
    classes = f", {named[found.kind]} {', '.join(found.labels)}" if found.kind in named else ""
    classes += f", prompt `{found.prompt}`" if found.kind == "preferences" and found.prompt else ""
    typer.echo(f"{name}: {found.kind}{classes}\nlicence: {found.licence}")
    for file in found.files:
        SHOW[found.kind](folder / file.path, file)


KINDS = typer.Option(help="email, phone, card, iban, national_id, ip, profanity, phrase; else all but the last two.")
REGIONS = typer.Option(help="Countries whose telephone numbers are known without +: ES,US.")
PHRASES = typer.Option(help="A file of phrases to look for, one a line.")
AGAINST = typer.Option(help="A set that judges models: rows that share words with it; repeat it.")
NGRAM = typer.Option(min=2, help="So many words in a row make a copy.")


@app.command()
def scan(
    name: Annotated[str, typer.Argument(help="A set of data/.")],
    kinds: Annotated[str, KINDS] = "",
    regions: Annotated[str, REGIONS] = "",
    phrases: Annotated[str, PHRASES] = "",
    against: Annotated[list[str] | None, AGAINST] = None,
    ngram: Annotated[int, NGRAM] = 8,
) -> None:
    """Count what a set holds: personal data, profane words, phrases, copies of evaluation sets. Writes nothing.

    \b
    ajuste data scan instructions
    ajuste data scan instructions --kinds email,phone,profanity --regions ES,US --against control
    """
    from ajuste.cli.data import filtering

    filtering.scan(name, filtering.Asked(kinds, regions, phrases, tuple(against or ()), ngram))


@app.command("filter")
def filter_rows(
    name: Annotated[str, typer.Argument(help="A set of data/. It stays as it is.")],
    kinds: Annotated[str, KINDS] = "",
    out: Annotated[str, typer.Option(help="The new set; else NAME-filtered.")] = "",
    regions: Annotated[str, REGIONS] = "",
    phrases: Annotated[str, PHRASES] = "",
    against: Annotated[list[str] | None, AGAINST] = None,
    ngram: Annotated[int, NGRAM] = 8,
    use: Annotated[bool, typer.Option("--use", help="Set params.yaml to the new set.")] = False,
) -> None:
    """Make a new set of the rows in which nothing is found; the others stand with their reasons in artifacts/filtered/.

    \b
    ajuste data filter instructions --out clean --use
    ajuste data filter instructions --kinds email,card,profanity --against control
    """
    from ajuste.cli.data import filtering

    filtering.filter_set(name, out, filtering.Asked(kinds, regions, phrases, tuple(against or ()), ngram), use)
