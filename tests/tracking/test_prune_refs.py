"""Git references and the DVC remote: what nothing kept needs goes, whatever a version needs stays."""

import subprocess
import time
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.tracking.project import dvc, git
from ajuste.tracking.pruning import refs_plan
from ajuste.tracking.registry.version import Version

MONTH = 30 * 24 * 3600


def run(*args: str, **env: str) -> str:
    import os

    names = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
             for what, value in (("NAME", "t"), ("EMAIL", "t@localhost"))}
    done = subprocess.run(args, check=True, capture_output=True, text=True, env={**os.environ, **names, **env})
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit a month ago for each reference: its dvc.lock names the model `<name>-md5.dir`."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet", ".")
    old = f"{time.time() - MONTH:.0f} +0000"
    for ref, when in [("refs/ajuste/runs/kept", old), ("refs/ajuste/runs/in-use", old), ("refs/ajuste/runs/gone", old),
                      ("refs/exps/ab/" + "0" * 38 + "/kept", old), ("refs/exps/ab/" + "0" * 38 + "/gone", old),
                      ("refs/exps/ab/" + "0" * 38 + "/young", f"{time.time():.0f} +0000"),
                      ("refs/exps/exec/EXEC_BASELINE", old)]:  # fmt: skip
        name = ref.rpartition("/")[2]
        Path("dvc.lock").write_text(f"stages:\n  m: {{outs: [{{path: m, md5: {name}-md5.dir}}]}}\n")
        run("git", "add", "dvc.lock")
        run("git", "commit", "--quiet", "-m", ref, GIT_COMMITTER_DATE=when, GIT_AUTHOR_DATE=when)
        run("git", "update-ref", ref, "HEAD")
    return tmp_path


def version(**tags: str) -> Version:
    return Version("x-classifier", "1", None, None, tags, None)


def names(found: list) -> set[str]:
    return {one.ref.name.rpartition("/")[2] for one in found}


def test_what_a_kept_version_or_a_folder_in_use_needs_stays(repository: Path) -> None:
    commit = run("git", "rev-parse", "refs/exps/ab/" + "0" * 38 + "/kept")
    kept = [version(dvc="kept-md5.dir"), version(git_commit=commit), version()]
    in_use = run("git", "show", "refs/ajuste/runs/in-use:dvc.lock") + "\n"
    found = refs_plan.unneeded(kept, {in_use}, sweeping=False)
    assert names(found) == {"gone"} and len(found) == 2
    assert names(refs_plan.unneeded([], set(), sweeping=True)) == {"kept", "in-use", "gone"}, "a sweep needs its points"
    for ref, _ in found:
        git.delete_ref(ref)
    assert names(refs_plan.unneeded(kept, {in_use}, sweeping=False)) == set()
    assert run("git", "for-each-ref", "--format=%(refname)", "refs/exps/exec"), "what DVC works with is left alone"


def test_a_reference_that_moved_since_is_not_deleted(repository: Path) -> None:
    (ref,) = git.refs("refs/ajuste/runs/gone")
    run("git", "update-ref", ref.name, "HEAD~3")
    with pytest.raises(UsageError, match="update-ref"):
        git.delete_ref(ref)
    assert git.refs("refs/ajuste/runs/gone")


@pytest.mark.slow
def test_the_remote_loses_what_nothing_names_and_never_a_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    home.cache_clear()
    run("git", "init", "--quiet", ".")
    assert dvc.run("init", "-q").returncode == 0
    assert dvc.unused_remote(set(), [], False, remove=False) == [], "without a remote there is nothing"
    assert dvc.run("remote", "add", "-d", "store", str(tmp_path / "remote")).returncode == 0
    digests = {}
    for text in ("pinned", "gone", "now"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "weights").write_text(text)
        assert dvc.run("add", "-q", "model").returncode == 0 and dvc.run("push", "-q").returncode == 0
        line = next(line for line in Path("model.dvc").read_text().splitlines() if "md5:" in line and ".dir" in line)
        digests[text] = line.split()[-1]
    files = set((tmp_path / "remote").rglob("*"))
    left = dvc.unused_remote({digests["pinned"]}, [], False, remove=False)
    assert len(left) == 2 and set((tmp_path / "remote").rglob("*")) == files, "the listing and the file of `gone`"
    dvc.unused_remote({digests["pinned"]}, [], False, remove=True)
    texts = {path.read_text() for path in (tmp_path / "remote").rglob("*") if path.is_file()}
    assert {"pinned", "now"} <= texts and "gone" not in texts
    listing = digests["pinned"]
    (tmp_path / ".dvc/cache/files/md5" / listing[:2] / listing[2:]).unlink()
    with pytest.raises(UsageError, match="the DVC remote is left as it is"):
        dvc.unused_remote({listing}, [], False, remove=True)
    home.cache_clear()
