"""`ajuste gate`: may a version become champion? Exit code 1 if the gate refuses it."""

from typing import Annotated

import typer


def command(
    reference: Annotated[str, typer.Argument(help="NAME (its challenger), NAME@ALIAS or NAME/VERSION.")],
    again: Annotated[bool, typer.Option("--again", help="Judge it anew, on today's test rows.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the verdict as JSON.")] = False,
) -> None:
    """Show the verdict on a version with every rule and its numbers; judge it, where it has none.

    Nothing is promoted: `ajuste promote` does that, and asks the gate. Section `gate` of policy.yaml has the limits.

    Examples:  ajuste gate reviews-classifier   |   ajuste gate assistant/4 --again
    """
    from ajuste.tracking.registry import registry
    from ajuste.tracking.verdicts import gate

    version = registry.find(reference, ("challenger",))
    verdict = None if again else gate.remembered(version)
    if verdict is None:
        verdict = gate.judge(version.name, version.version)
    if json:
        import json as written
        from dataclasses import asdict

        typer.echo(written.dumps({**asdict(verdict), "passed": verdict.passed}, indent=2))
    else:
        typer.echo(verdict.text())
        typer.echo(f"judged {verdict.when} UTC; `ajuste gate {reference} --again` judges it anew")
    if not verdict.passed:
        raise typer.Exit(1)
