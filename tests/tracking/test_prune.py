"""Prune: what nothing kept needs goes, whatever anything kept needs stays, and a kill in between changes neither."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ajuste.cli.main import app
from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.tracking.project import dvc, git, lock
from ajuste.tracking.pruning import prune
from ajuste.tracking.pruning import registry_plan as rules
from ajuste.tracking.registry import promotion, registry
from ajuste.tracking.runs import store as runs_store
from tests.tracking import projects
from tests.tracking.stored import stored, within

NAME, ADAPTER = "reviews-classifier", "reviews-classifier-adapter"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A store with versions 1 to 3 of an older run, then 4 to 6 of the newest; each third is a merged LoRA."""
    place = tmp_path_factory.mktemp("prune")
    roots = {name: projects.make(place / name, seed, moved) for name, seed, moved in (("old", 0, 0), ("new", 50, 0.1))}
    with stored(place / "home", roots):
        pass
    return place / "home", roots


@pytest.fixture
def store(original, tmp_path: Path, monkeypatch):
    """That store, to be written: its database is put back, its files are shadowed by copies of links."""
    folder, roots = original
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup, copy_function=os.link)
    shutil.copyfile(folder / "mlruns/mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setattr(git, "worktrees", lambda: [])  # there is neither git nor DVC here
    monkeypatch.setattr(prune, "_current_keys", set)
    monkeypatch.setattr(dvc, "unused_cache", lambda pins, projects, experiments, remove: [])
    with within(folder, roots["new"], monkeypatch):
        yield folder
    shutil.rmtree(folder / "mlruns/artifacts")
    shutil.copytree(backup / "mlruns/artifacts", folder / "mlruns/artifacts", copy_function=os.link)
    shutil.copyfile(tmp_path / "mlflow.db", folder / "mlruns/mlflow.db")


def goes(made: prune.Plan, kind: str = "version") -> set[str]:
    return {item.what for item in made.items if item.kind == kind}


def numbers(name: str) -> list[str]:
    return [version.version for version in registry.versions(name)]


def test_what_goes_and_what_stays(store: Path) -> None:
    assert numbers(NAME) == ["1", "2", "3", "4", "5", "6"]
    made = prune.plan(1)
    assert made.kept[NAME, "6"] == "alias challenger" and made.kept[NAME, "4"] == "dvc.lock names it"
    assert made.kept[ADAPTER, "2"] == "dvc.lock names it"
    assert goes(made) == {f"{NAME}/1", f"{NAME}/2", f"{NAME}/3", f"{ADAPTER}/1"}
    assert goes(prune.plan(4)) == {f"{NAME}/1", f"{NAME}/2"}  # the adapter of version 3 stays with it
    assert goes(prune.plan(9)) == set() and goes(prune.plan(9), "run") == set()
    with pytest.raises(UsageError, match="--keep must be at least 1"):
        prune.plan(0)


def test_never_an_alias_nor_what_it_names(store: Path) -> None:
    for alias, number in (("champion", "3"), ("previous", "2"), ("mine", "1")):
        runs_store.client().set_registered_model_alias(NAME, alias, number)
        if number == "3":
            assert goes(prune.plan(1)) == {f"{NAME}/1", f"{NAME}/2"}  # version 3 names adapter 1
    assert goes(prune.plan(1)) == set()


def test_never_a_version_of_an_open_move(store: Path) -> None:
    runs_store.client().set_registered_model_tag(NAME, promotion.INTENT, json.dumps({"from": "2", "to": "1"}))
    assert goes(prune.plan(1)) == {f"{NAME}/3", f"{ADAPTER}/1"}
    runs_store.client().set_registered_model_tag(NAME, promotion.INTENT, "not JSON")
    assert goes(prune.plan(1)) == set()  # it could mean any of them


def test_never_the_base_of_a_kept_version(store: Path) -> None:
    runs_store.client().set_model_version_tag(NAME, "6", "base_version", f"{NAME}/2")
    assert goes(prune.plan(1)) == {f"{NAME}/1", f"{NAME}/3", f"{ADAPTER}/1"}


def test_a_plan_writes_nothing_and_carrying_it_out_frees_what_it_said(store: Path) -> None:
    before = {file: file.stat().st_size for file in store.rglob("*") if file.is_file() and "mlflow.db" not in file.name}
    made = prune.plan(1)
    after = {file: file.stat().st_size for file in store.rglob("*") if file.is_file() and "mlflow.db" not in file.name}
    assert before == after and numbers(NAME) == ["1", "2", "3", "4", "5", "6"]
    folder = registry.resolve(f"{NAME}/1").path
    kept = registry.resolve(f"{NAME}/6").path
    prune.carry_out(made)
    assert numbers(NAME) == ["4", "5", "6"] and numbers(ADAPTER) == ["2"]
    assert not folder.exists() and (kept / "model.safetensors").exists()
    assert prune.plan(1).items == []
    runs = runs_store.client().search_runs([runs_store.experiment_id()], f"tags.`{rules.PRUNED}` = 'true'")
    assert runs and all(not list(Path(run.info.artifact_uri.removeprefix("file://")).glob("*")) for run in runs)
    assert any(run.data.metrics.get("validation/accuracy") for run in runs)  # figures stay
    loaded = registry.resolve(NAME)
    assert loaded.version == "6" and runs_store.client().list_artifacts(loaded.run_id)


@pytest.mark.slow
@pytest.mark.parametrize("write", ["remove_artifacts", "clear_run", "remove_version"])
def test_killed_at_a_write_the_next_call_ends_it(store: Path, monkeypatch, write: str) -> None:
    whole, calls = getattr(rules, write), []

    def killed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rules, write, killed)
        with pytest.raises(KeyboardInterrupt):
            prune.carry_out(prune.plan(1))
    prune.carry_out(prune.plan(1))
    assert numbers(NAME) == ["4", "5", "6"] and prune.plan(1).items == []


def test_a_version_promoted_since_the_plan_is_not_touched(store: Path) -> None:
    made = prune.plan(1)
    runs_store.client().set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(UsageError, match=f"{NAME}/2 got an alias"):
        prune.carry_out(made)
    assert registry.resolve(f"{NAME}/2").path.is_dir() and len(numbers(NAME)) == 6


def test_nothing_is_thrown_away_while_a_stage_runs(store: Path) -> None:
    homes = (store, store / ".prefect/homes/adapt")
    for place in homes:
        (place / ".checkpoints").mkdir(parents=True, exist_ok=True)
        with (place / ".checkpoints/ppo.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="`ppo` is running"):
                prune.plan(1)
    prune.plan(1)
    shutil.rmtree(store / ".prefect")


@pytest.mark.slow
def test_checkpoints_and_worktrees(store: Path, monkeypatch) -> None:
    monkeypatch.setattr(prune, "_current_keys", lambda: {"wanted"})
    recorded = lock.stage_key("classify_full")
    old = time.time() - 2 * prune.WEEK
    for name in (recorded, "wanted", "unknown", "fresh"):
        (store / ".checkpoints" / name).mkdir(parents=True)
        (store / ".checkpoints" / name / "weights").write_bytes(b"x" * 1000)
    nightly = store / ".prefect/homes/adapt/.checkpoints/unknown too"
    nightly.mkdir(parents=True)
    os.utime(nightly, (old, old))
    for name in ("idle", "busy", "young"):
        (store / ".prefect/worktrees" / name).mkdir(parents=True)
    for path in (*(store / ".checkpoints").glob("*"), *(store / ".checkpoints").glob("*/*"),
                 *(store / ".prefect/worktrees").glob("*")):
        if path.name not in ("fresh", "young") and path.parent.name != "fresh":
            os.utime(path, (old, old))
    process = subprocess.Popen([sys.executable, "-c", "input()"], cwd=store / ".prefect/worktrees/busy",
                               stdin=subprocess.PIPE)
    try:
        made = prune.plan(9)
        assert goes(made, "checkpoint") == {recorded, "unknown", nightly.name} and made.size == 2000
        assert {Path(what).name for what in goes(made, "worktree")} == {"idle"}
        prune.carry_out(made)
        assert sorted(p.name for p in (store / ".checkpoints").iterdir() if p.is_dir()) == ["fresh", "wanted"]
        assert not nightly.exists() and nightly.parent.exists()
        assert not (store / ".prefect/worktrees/idle").exists() and (store / ".prefect/worktrees/busy").exists()
    finally:
        process.communicate(b"\n")
        shutil.rmtree(store / ".checkpoints")
        shutil.rmtree(store / ".prefect")


@pytest.mark.slow
def test_the_command_shows_first_and_removes_only_with_yes(store: Path) -> None:
    shown = CliRunner().invoke(app, ["prune", "--keep", "1"])
    assert shown.exit_code == 0 and "nothing was removed" in shown.output and len(numbers(NAME)) == 6
    done = CliRunner().invoke(app, ["prune", "--keep", "1", "--yes"])
    assert done.exit_code == 0 and "freed" in done.output and numbers(NAME) == ["4", "5", "6"]
    assert "Nothing to throw away" in CliRunner().invoke(app, ["prune", "--keep", "1", "--yes"]).output


@pytest.mark.slow
def test_the_cache_keeps_pins_branches_and_the_workspace(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    home.cache_clear()

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, env=dvc.environment())

    def add(text: str) -> str:
        shutil.rmtree("data", ignore_errors=True)
        Path("data").mkdir()
        Path("data/rows.txt").write_text(text)
        run(*dvc.DVC, "add", "--quiet", "data")
        return yaml.safe_load(Path("data.dvc").read_text())["outs"][0]["md5"]

    try:
        run("git", "init", "--quiet")
        run("git", "config", "user.email", "a@localhost")
        run("git", "config", "user.name", "a")
        run(*dvc.DVC, "init", "--quiet")
        on_branch = add("on a branch")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", "one")
        run("git", "branch", "kept")
        pinned, lost, here = add("pinned"), add("lost"), add("in the workspace")
        run("git", "commit", "--quiet", "--all", "--message", "two")

        def cached(md5: str) -> bool:
            listing = tmp_path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
            return listing.exists() and all((tmp_path / ".dvc/cache/files/md5" / row["md5"][:2] / row["md5"][2:]
                                             ).exists() for row in json.loads(listing.read_text()))

        everything = (on_branch, pinned, lost, here)
        assert all(map(cached, everything))
        unused = dvc.unused_cache({pinned}, [], False, remove=False)
        assert len(unused) == 2 and all(path.exists() for path in unused) and all(map(cached, everything))
        assert len(dvc.unused_cache({pinned}, [], False, remove=True)) in (0, 2)
        assert cached(on_branch) and cached(pinned) and cached(here) and not cached(lost)
        assert dvc.unused_cache({pinned}, [], False, remove=False) == []
    finally:
        home.cache_clear()
