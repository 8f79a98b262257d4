"""What `reproduce` names: the parameter, the line, the row, the out."""

import subprocess
from pathlib import Path

import pytest

from tracking import reproduce, versions


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed DVC project of one stage that copies a row, with its dvc.lock."""
    from tasks import _stage

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    _stage.home.cache_clear()
    for name, text in {
        "copy.py": "import shutil\n# a comment\nshutil.copy('data/set/rows.csv', 'out.csv')\n",
        "params.yaml": "toy: {r: 8, lr: 5e-5, deep: {x: 1}}\n",
        "dvc.yaml": "stages:\n  toy:\n    cmd: python copy.py\n    deps: [copy.py, data/set]\n    params: [toy]\n"
        "    outs: [out.csv]\n",
        "data/set/rows.csv": "".join(f"{i},text {i}\n" for i in range(50)),
        ".gitignore": "/data\n/out.csv\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.email", "t@localhost"],
        ["git", "config", "user.name", "t"],
    ):
        subprocess.run(command, check=True)
    assert versions.dvc("init", "-q").returncode == 0
    versions.add_data()
    assert versions.dvc("repro", "-q").returncode == 0
    commit("first")
    yield tmp_path
    _stage.home.cache_clear()


def commit(message: str) -> None:
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", message], check=True)


def test_bit_equal_in_a_clean_clone(project: Path) -> None:
    verdict = reproduce.reproduce()
    assert verdict.equal and verdict.outs == 1 and "bit-equal" in reproduce.report(verdict)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("params.yaml", "r: 8", "r: 4", "parameter toy.r: 8 -> 4"),
        ("params.yaml", "x: 1", "x: 2", "parameter toy.deep.x: 1 -> 2"),
        ("copy.py", "# a comment", "# another", "copy.py line 2 changed"),
        ("data/set/rows.csv", "17,text 17\n", "17,text x\n", "data/set/rows.csv line 18 changed"),
        ("data/set/rows.csv", "17,text 17\n", "", "data/set/rows.csv line 18 removed"),
    ],
)
def test_a_changed_input_is_named(project: Path, file: str, old: str, new: str, named: str, committed: bool) -> None:
    text = (project / file).read_text()
    assert old in text
    (project / file).unlink()  # data may be a link into the cache
    (project / file).write_text(text.replace(old, new))
    if committed:
        if file.startswith("data/"):
            versions.add_data()
        commit("change")
    verdict = reproduce.reproduce()
    assert not verdict.equal and verdict.inputs_differ
    assert verdict.differences == [named]


def test_an_out_that_comes_out_otherwise_is_named(project: Path) -> None:
    lock = (project / "dvc.lock").read_text()
    md5 = versions.stage_lock("toy")["outs"][0]["md5"]
    (project / "dvc.lock").write_text(lock.replace(md5, "f" * 32))
    verdict = reproduce.reproduce()
    assert not verdict.equal and verdict.differences == [f"out out.csv of stage toy: {'f' * 32} -> {md5}"]


def test_an_older_revision_is_compared_with_its_own_lock(project: Path) -> None:
    (project / "params.yaml").write_text("toy: {r: 4, lr: 5e-5, deep: {x: 1}}\n")
    assert versions.dvc("repro", "-q").returncode == 0
    commit("second")
    assert reproduce.reproduce("HEAD~1").equal
