"""What git is asked: commits by name, a file's history, and who works here; without a repository, nothing."""

import subprocess
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.tracking.project import git


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A repository of two commits, oldest first: both change `a`, the second one adds `b` and deletes `gone`."""
    monkeypatch.chdir(tmp_path)
    git.run("init", "--quiet")
    git.run("config", "user.name", "Ada")
    git.run("config", "user.email", "ada@example.org")
    commits = []
    Path("gone").write_bytes(b"g")
    for number in (1, 2):
        Path("a").write_bytes(b"%d\xff" % number)
        if number == 2:
            Path("b").write_text("b")
            Path("gone").unlink()
        git.run("add", "--all")
        git.run("commit", "--quiet", "--message", str(number))
        commits.append(git.head())
    return commits


def test_commits_and_what_files_were(repository: list[str]) -> None:
    first, second = repository
    assert git.commit_of("HEAD~1") == first and git.commit_of("nowhere") == ""
    assert git.commits_with("a") == [second, first] and git.commits_with("b") == [second]
    assert git.content(first, "a") == b"1\xff" and git.content(second, "a") == b"2\xff"
    assert git.content(first, "b") is None and git.content(second, "gone") is None


def test_what_a_run_writes_does_not_count_as_changed(repository: list[str]) -> None:
    for name in ("dvc.lock", "metrics/all.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("1")
    git.run("add", "--all")
    assert not git.dirty()
    Path("a").write_text("changed")
    assert git.changed_files() == ["a"] and git.dirty()
    assert git.author() == "Ada <ada@example.org>"


def test_a_failure_is_one_line_in_git_s_own_words(repository: list[str]) -> None:
    with pytest.raises(UsageError, match="^git rev-parse --verify nowhere: fatal: .*single revision") as caught:
        git.run("rev-parse", "--verify", "nowhere")
    assert "\n" not in str(caught.value)


def test_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert subprocess.run(["git", "status"], capture_output=True).returncode != 0
    assert git.head() == git.commit_of("HEAD") == "" and git.commits_with("a") == []
