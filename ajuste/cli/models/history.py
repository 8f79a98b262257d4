"""`ajuste history`: who made which version champion, when, why, and for how long."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ajuste.tracking.registry.moves import Move


def command(
    name: Annotated[str, typer.Argument(help="A registered name, for example reviews-classifier.")],
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects instead of a table.")] = False,
) -> None:
    """Show the moves of alias `champion`, newest first; also that somebody moved it without Ajuste.

    Example:  ajuste history reviews-classifier
    """
    import json

    from ajuste.tracking.registry import promotion

    promotion.settle(name)
    moves = promotion.history(name)
    if as_json:
        typer.echo(json.dumps([_row(move) for move in moves], indent=2, ensure_ascii=False))
        return
    if not moves:
        typer.echo(f"{name}: no version was ever champion; `ajuste promote {name}` asks the gate")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("when (UTC)", "move", "from", "to", "champion for", "who", "why", title=escape(name))
    for move in moves:
        when = f"{move.when:%Y-%m-%d %H:%M:%S}" if move.when else "unknown"
        kind = f"{move.kind}, forced" if move.forced else move.kind
        cells = (when, kind, move.before or "none", move.to or "none", _lasted(move.seconds), move.who, move.why)
        table.add_row(*map(escape, cells))
    Console().print(table)


def _row(move: "Move") -> dict:
    return {"when": move.when.isoformat() if move.when else None, "kind": move.kind, "forced": move.forced,
            "from": move.before, "to": move.to, "seconds": move.seconds, "who": move.who, "why": move.why,
            "id": move.id or None}


def _lasted(seconds: float | None) -> str:
    """3 d 4 h: the two largest units."""
    if seconds is None:
        return "unknown"
    whole, parts = int(seconds), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, whole = divmod(whole, size)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
