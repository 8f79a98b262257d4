"""What `reproduce` names: the parameter, the line, the row, the out."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ajuste.tracking.again import reproduce
from ajuste.tracking.project import dvc, lock, raw_data
from tests.made.projects import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed DVC project of one stage that copies a row, with its dvc.lock. To be copied only."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _make(folder)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder and home."""
    from ajuste.core import stage

    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AJUSTE_HOME", str(folder))
    stage.home.cache_clear()
    yield folder
    stage.home.cache_clear()


def _make(tmp_path: Path) -> None:
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
    assert dvc.run("init", "-q").returncode == 0
    raw_data.add()
    assert dvc.run("repro", "-q").returncode == 0
    commit("first")


def commit(message: str) -> None:
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", message], check=True)


def test_bit_equal_in_a_clean_clone(project: Path) -> None:
    verdict = reproduce.reproduce()
    assert verdict.equal and len(verdict.outs) == 1 and "bit-equal" in reproduce.report(verdict)


@pytest.mark.parametrize("committed", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("params.yaml", "r: 8", "r: 4", "parameter toy.r: 8 -> 4"),
        ("params.yaml", "x: 1", "x: 2", "parameter toy.deep.x: 1 -> 2"),
        ("copy.py", "# a comment", "# another", "copy.py line 2 changed"),
        ("dvc.yaml", "python copy", "python -P copy", "command of stage toy: python copy.py -> python -P copy.py"),
        ("data/set/rows.csv", "17,text 17\n", "17,text x\n", "data/set/rows.csv line 18 changed"),
        pytest.param(
            "data/set/rows.csv", "17,text 17\n", "", "data/set/rows.csv line 18 removed", marks=pytest.mark.slow
        ),
    ],
)
def test_a_changed_input_is_named(project: Path, file: str, old: str, new: str, named: str, committed: bool) -> None:
    text = (project / file).read_text()
    assert old in text
    (project / file).unlink()  # data may be a link into the cache
    (project / file).write_text(text.replace(old, new))
    if committed:
        if file.startswith("data/"):
            raw_data.add()
        commit("change")
    verdict = reproduce.reproduce()
    assert not verdict.good and verdict.outs == [] and verdict.differences == [named]
    assert reproduce.check()[0] == named


def test_an_out_that_comes_out_otherwise_is_named(project: Path) -> None:
    recorded = (project / "dvc.lock").read_text()
    md5 = lock.entry("toy")["outs"][0]["md5"]
    (project / "dvc.lock").write_text(recorded.replace(md5, "f" * 32))
    verdict = reproduce.reproduce()
    assert not verdict.good and len(verdict.differences) == 1
    assert f"out.csv of stage toy: different ({'f' * 32} -> {md5}" in verdict.differences[0]


NOISY = """import json, os, shutil
shutil.copy('data/set/rows.csv', 'out.csv')
json.dump({'loss': 0.5 + float(os.environ.get('TOY_NOISE', 0)), 'rows': 50}, open('out.json', 'w'))
"""


@pytest.mark.parametrize(
    ("noise", "portable", "word", "line"),
    [
        ("0", False, "bit-equal", "bit-equal: all 2 outs of HEAD"),
        ("1e-4", False, "within tolerance", "bit-equal, and no figure of the other 1 differs by more than 0.001"),
        ("1e-2", False, "different", "2 outs of HEAD ({commit}), 1 miss the tolerance of 0.001 a figure:"),
        ("0", True, "bit-equal", "equal bytes are asked for, compute.portable promises them"),
        ("1e-4", True, "different", "2 outs of HEAD ({commit}), 1 miss equal bytes:"),
    ],
)
def test_on_another_kind_of_processor_it_says_which_of_three_holds(
    project: Path, monkeypatch: pytest.MonkeyPatch, noise: str, portable: bool, word: str, line: str
) -> None:
    """The stage adds what another processor would to its figure; nobody recorded what made the first one."""
    (project / "copy.py").write_text(NOISY)
    (project / "dvc.yaml").write_text((project / "dvc.yaml").read_text().replace("[out.csv]", "[out.csv, out.json]"))
    (project / ".gitignore").write_text("/data\n/out.csv\n/out.json\n")
    with (project / "params.yaml").open("a") as file:
        file.write(f"compute: {{portable: {str(portable).lower()}}}\n")
    assert dvc.run("repro", "-q").returncode == 0
    commit("noisy")
    monkeypatch.setenv("TOY_NOISE", noise)
    verdict = reproduce.reproduce()
    text = reproduce.report(verdict)
    assert verdict.word == word and line.format(commit=verdict.commit[:8]) in text
    assert "made on hardware that nobody recorded, again on cpu: " in text
    assert verdict.good == (word != "different")
    if noise != "0":
        assert f"out.json of stage toy: {word} (largest difference {float(noise):.2g}, out.json: loss)" in text


@pytest.mark.slow
def test_an_older_revision_is_compared_with_its_own_lock(project: Path) -> None:
    (project / "params.yaml").write_text("toy: {r: 4, lr: 5e-5, deep: {x: 1}}\n")
    assert dvc.run("repro", "-q").returncode == 0
    commit("second")
    assert reproduce.reproduce("HEAD~1").equal


def test_the_cheap_check_says_which_stage_would_run(project: Path) -> None:
    assert reproduce.check() == []
    shutil.rmtree(project / "data")  # as in a clone without raw data and models
    (project / "out.csv").unlink()
    assert reproduce.check() == []
    definition = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(definition.replace("copy.py, data", "copy.py, more, data"))
    (project / "more").write_text("")
    assert reproduce.check() == ["DVC would run stage toy"]
    assert raw_data.checkout() and reproduce.check() == ["DVC would run stage toy"]


def test_the_committed_lock_fits_the_committed_sources(tmp_path: Path) -> None:
    """dvc.lock is the proof of the last run: a change of a stage's source, parameter or data goes with a new one."""
    clone = tmp_path / "clone"
    done = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("no git checkout here")
    assert reproduce.check(clone) == []


def test_the_difference_of_two_revisions_is_a_table(project: Path) -> None:
    from ajuste.core.errors import UsageError
    from ajuste.tracking.project.diff import diff

    assert "No metric and no parameter differs." in diff("HEAD", "HEAD")
    (project / "params.yaml").write_text("toy: {r: 4, lr: 5e-5, deep: {x: 1, y: 'a|b'}}\n")
    text = diff("HEAD")
    assert "No metric differs." in text and "| params.yaml: toy.r | 8 | 4 | -4 |" in text
    assert "| params.yaml: toy.deep.y |  | a\\|b |  |" in text and "toy.lr" not in text
    assert "... and 1 more" in diff("HEAD", most=1) and "toy.deep.y" not in diff("HEAD", most=1)
    with pytest.raises(UsageError, match="`nosuch` is no git revision"):
        diff("nosuch")
