"""Run one command in this process, with a stand-in for the registry."""

import sys
from types import SimpleNamespace

import typer

from ajuste.tracking import registry as registry_room


def install(monkeypatch, registry, home):
    """`from ajuste.tracking.registry import registry` gives the stand-in; home() is the folder whose base the adapters
    use."""
    module = SimpleNamespace(resolve=registry.resolve, names=lambda: list(registry.folders))
    monkeypatch.setitem(sys.modules, "ajuste.tracking.registry.registry", module)
    monkeypatch.setattr(registry_room, "registry", module, raising=False)
    monkeypatch.setattr("ajuste.core.home.home", lambda: home)


def run(command, *arguments):
    """Like the command line, but errors reach the test."""
    app = typer.Typer()
    app.command()(command)
    return app([str(argument) for argument in arguments], standalone_mode=False)
