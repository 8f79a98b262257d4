"""Runs of several projects in one store, recorded and registered as the flow does it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ajuste.core.home import home
from ajuste.tracking.project import lock
from ajuste.tracking.registry import registry
from ajuste.tracking.runs import runs


@contextmanager
def stored(folder: Path, roots: dict[str, Path]) -> Iterator[None]:
    """Record and register the run of each project in the store at `folder`, which is the home until the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJUSTE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home.cache_clear()
        for root in roots.values():
            patch.chdir(root)
            shutil.copytree(root / ".state", folder / ".state", dirs_exist_ok=True)
            parent = runs.parent(root.name * 8)
            for stage in lock.stages():
                runs.record(stage, parent)
            registry.register_all(parent)
            runs.finish(parent)
        yield
    home.cache_clear()


@contextmanager
def within(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder of one of these projects."""
    monkeypatch.setenv("AJUSTE_HOME", str(folder))
    monkeypatch.chdir(root)
    home.cache_clear()
    yield
    home.cache_clear()
