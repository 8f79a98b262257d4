"""One MLflow store for the session (its first use takes seconds), with a finished run recorded and registered in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ajuste.core.home import home


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages are recorded under one parent and whose models are registered. To be read only."""
    from ajuste.tracking.project import lock
    from ajuste.tracking.registry import registry
    from ajuste.tracking.runs import runs
    from tests.tracking import projects

    root = projects.make(tmp_path_factory.mktemp("recorded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJUSTE_HOME", str(root))
        patch.chdir(root)
        home.cache_clear()
        parent = runs.parent("a" * 64)
        for stage in lock.stages():
            runs.record(stage, parent)
        registry.register_all(parent)
        runs.finish(parent)
    home.cache_clear()
    return root


@pytest.fixture
def project(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the recorded project, with its store."""
    monkeypatch.setenv("AJUSTE_HOME", str(recorded))
    monkeypatch.chdir(recorded)
    home.cache_clear()
    yield recorded
    home.cache_clear()


@pytest.fixture
def other(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """make(**how): another run (other weights, so other keys) in a folder of its own, in the same store."""
    from tests.tracking import projects

    def make(**how) -> Path:
        root = projects.make(tmp_path / f"run{len(list(tmp_path.iterdir()))}", **how)
        monkeypatch.chdir(root)
        return root

    return make


@pytest.fixture
def root(store: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project of a module's own `store`, (folder, project), as the current one, with its MLflow store."""
    from tests.tracking.stored import within

    folder, project = store
    with within(folder, project, monkeypatch):
        yield project
