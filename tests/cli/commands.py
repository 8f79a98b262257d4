"""Commands of `ajuste data` as a test calls them, and what they work on."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ajuste.cli.data import data
from ajuste.tracking.project import raw_data


def ajuste_data(*args: str) -> str:
    """What `ajuste data ...` prints."""
    return printed(data.app, *args)


def printed(app: typer.Typer, *args: str) -> str:
    """What the command prints; an error comes out as the exception that main() turns into one line."""
    result = CliRunner().invoke(app, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def project_without_dvc(folder: Path, params: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the current one, with params.yaml. That data.dvc is recorded, test_data.py tests."""
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text(params)
    monkeypatch.setattr(raw_data, "add", lambda: "")
    monkeypatch.setattr(raw_data, "status", lambda: "untracked")
    return folder


def written(name: str, rows: list[dict]) -> str:
    """The name of a file of JSON lines, made."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def made(name: str = "mine") -> dict:
    """What set.yaml of a set says."""
    return yaml.safe_load(Path(f"data/{name}/set.yaml").read_text())
