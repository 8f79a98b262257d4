"""A store with versions that have no files, and a kill at each write to it: for tests of aliases alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ajuste.core.home import home
from ajuste.tracking.runs.store import client

READS = ("get_", "search_", "download_", "list_", "load_", "parse_", "__", "_")


class Killed(BaseException):
    """As a kill: no `except Exception` holds it."""


@contextmanager
def at_home(folder: Path, uri: str | None = None) -> Iterator[Path]:
    """With `folder` as the home and its own SQLite store, or the one at `uri`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJUSTE_HOME", str(folder))
        if uri:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
        else:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home.cache_clear()
        yield folder
    home.cache_clear()


def registered(name: str, count: int = 3) -> str:
    """A new registered name with versions 1 to `count`; `challenger` is the last."""
    client().create_registered_model(name)
    for number in range(1, count + 1):
        client().create_model_version(name, f"s3://nowhere/{number}", tags={"strategy": "lora", "record": "{}"})
    client().set_registered_model_alias(name, "challenger", str(count))
    return name


def aliases(name: str) -> dict[str, str]:
    return {alias: str(number) for alias, number in client().get_registered_model(name).aliases.items()}


@contextmanager
def writes(at: int | None, kill: Callable[[], None]) -> Iterator[list[str]]:
    """The names of the client's calls that write, as they are made; `kill` is called after the `at`-th.

    A call counts as writing unless its name says that it reads: a new one cannot be missed.
    """
    from mlflow import MlflowClient

    made: list[str] = []

    def watched(called: Callable, name: str) -> Callable:
        def call(*args, **options):
            made.append(f"{name} ...")
            result = called(*args, **options)
            made[-1] = name
            if len(made) == at:
                kill()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in dir(MlflowClient):
            called = getattr(MlflowClient, name)
            if callable(called) and not name.startswith(READS):
                patch.setattr(MlflowClient, name, watched(called, name))
        if at == 0:
            kill()
        yield made
