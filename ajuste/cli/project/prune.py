"""`ajuste prune`: throw away old versions and runs, what nothing names in cache, remote and git, and leftovers."""

from typing import Annotated

import typer


def command(
    keep: Annotated[int, typer.Option("--keep", help="The newest versions of each name that stay.")],
    remote: Annotated[bool, typer.Option("--remote", help="Of the DVC remote too, which others may share.")] = False,
    yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Do it; else only what would go is shown.")] = False,
) -> None:
    """Show what may go and how many bytes that is; with --yes, do it.

    Never a version with an alias, one that an open move names, an adapter or base that a kept version names, or the
    data and caches that `ajuste reproduce` of a kept version reads. Git references of deployed runs and of experiments
    go when no kept version came from them. The DVC remote is left alone unless asked: what branches of other clones
    need is not known here. Killed? Run it again.

    Examples:  ajuste prune --keep 5   |   ajuste prune --keep 5 --yes   |   ajuste prune --keep 5 --remote
    """
    from rich.console import Console
    from rich.table import Table

    from ajuste.tracking.pages.report import size
    from ajuste.tracking.pruning import prune

    console = Console(highlight=False)
    with console.status("Looking at what is kept"):
        made = prune.plan(keep, remote)
    if not made.items:
        console.print("Nothing to throw away.")
        return
    table = Table(title="Goes" if yes else "Would go", title_justify="left")
    for heading in ("kind", "what", "why"):
        table.add_column(heading, overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    for item in made.items:
        table.add_row(item.kind, item.what, item.why, size(item.size))
    console.print(table)
    for (name, version), why in made.kept.items():
        if "newest" not in why:
            console.print(f"kept: {name}/{version} ({why})", markup=False, soft_wrap=True)
    if made.shared:
        console.print(f"{size(made.shared)} of these are files that two of them name: they go with the last",
                      markup=False, soft_wrap=True)
    if not yes:
        console.print(f"{size(made.size)} in {len(made.items)} items; nothing was removed: "
                      f"`ajuste prune --keep {keep}{' --remote' * remote} --yes` does it", markup=False, soft_wrap=True)
        return
    freed = prune.carry_out(made, lambda item: console.print(f"removed {item.kind} {item.what}", soft_wrap=True))
    console.print(f"{size(freed)} freed")
