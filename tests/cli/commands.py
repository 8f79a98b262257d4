"""Commands of `ajuste data` as a test calls them."""

from typer.testing import CliRunner

from cli import data


def ajuste_data(*args: str) -> str:
    """What the command prints; an error comes out as the exception that main() turns into one line."""
    result = CliRunner().invoke(data.app, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
