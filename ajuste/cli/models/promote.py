"""`ajuste promote`: a version becomes champion, if the gate lets it."""

from typing import Annotated

import typer


def command(
    reference: Annotated[str, typer.Argument(help="NAME (its challenger), NAME@ALIAS or NAME/VERSION.")],
    why: Annotated[str, typer.Option(help="The reason; it is kept with the move.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Without asking the gate; needs --why.")] = False,
) -> None:
    """Make a version the champion, which is what a server answers with.

    The gate compares it with its base and with the champion; a refusal is exit code 1 and names the rules that failed.

    Examples:  ajuste promote reviews-classifier   |   ajuste promote reviews-classifier/3

    ajuste promote reviews-classifier/3 --force --why "the champion labels everything positive"
    """
    from ajuste.core.errors import DataError, UsageError

    if force and not why.strip():
        raise UsageError('--force needs a reason: --why "..." is kept with the move')
    from ajuste.tracking.project.git import author
    from ajuste.tracking.registry import promotion, registry

    default = ("challenger",)
    promotion.settle(registry.find(reference, default).name)
    version = registry.find(reference, default)
    if "champion" in version.aliases:
        typer.echo(f"{version.name}: version {version.version} is the champion already")
        return
    if not force:
        from ajuste.tracking.verdicts.gate import judge

        verdict = judge(version.name, version.version)
        typer.echo(verdict.text())
        if not verdict.passed:
            failed = ", ".join(rule.name for rule in verdict.rules if not rule.passed)
            raise DataError(f"{version.name}/{version.version} is not promoted, the gate refuses it: {failed}; "
                            '--force --why "..." promotes it all the same')
        why = "the gate passed" + (f": {why}" if why.strip() else "")
    typer.echo(told(promotion.move(version.name, version.version, author(), why, forced=force)))


def told(made) -> str:
    """What a move did, in a line."""
    before = f", before it version {made.before}" if made.before else ", the first"
    return f"{made.name}: champion is version {made.to}{before}"
