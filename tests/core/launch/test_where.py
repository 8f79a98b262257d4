"""Where a stage runs: the section `launch`, and what is said when Ray is asked for and not there."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.launch import connect, train, where
from tests.core.test_stage import project, state  # noqa: F401

LAUNCHED = "launch: {{by: {by}, processes: 2, address: local}}\n"


def asked_for(project: Path, by: str) -> None:  # noqa: F811
    with (project / "params.yaml").open("a") as file:
        file.write(LAUNCHED.format(by=by))


def test_without_a_section_a_stage_runs_here(project: Path) -> None:  # noqa: F811
    assert where.launch_of({}) == where.Launch(by="one", processes=1, address="local")
    assert not where.sent_away("toy_one", together=True)
    assert list(where.spread(str, [1, 2])) == ["1", "2"]


def test_an_unknown_way_is_named(project: Path) -> None:  # noqa: F811
    asked_for(project, "kubernetes")
    with pytest.raises(UsageError, match="`launch.by`: Input should be 'one' or 'ray' .got 'kubernetes'"):
        where.sent_away("toy_one", together=True)


def test_ray_without_ray_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"launch.by is ray, and Ray is not installed: .*'.\[cluster\]'") as error:
        with connect.connected("local", 1):
            raise AssertionError("not reached")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:9", "no Ray cluster at `127.0.0.1:9`: start one"),
                                               ("ray://head", "launch.address is `ray://head`: write local")])
def test_where_no_cluster_answers_it_is_said_at_once(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UsageError, match=said) as error:
        with connect.connected(address, 1):
            raise AssertionError("not reached")
    assert "\n" not in str(error.value)


def test_a_stage_that_cannot_be_sent_away_ends_with_one_line(project: Path) -> None:  # noqa: F811
    """Of a stage of one process only its batches go elsewhere: this one has none, and runs."""
    asked_for(project, "ray")
    done = subprocess.run(["python", "-m", "toy"], capture_output=True, text=True)
    assert done.returncode == 0 and state()["error"] is None, done.stderr
    text = Path("toy.py").read_text().replace("ToyConfig) as", "ToyConfig, together=True) as")
    Path("toy.py").write_text(f"import importlib.util\nimportlib.util.find_spec = lambda name: None\n{text}")
    done = subprocess.run(["python", "-m", "toy"], capture_output=True, text=True)
    assert done.returncode == 2 and state()["error"]["kind"] == "usage"
    assert done.stderr.startswith("error[usage]: launch.by is ray, and Ray is not installed")


@pytest.mark.parametrize(("code", "stays"), [(3, True), (1, False), (0, False)])
def test_a_worker_says_what_no_other_try_would_change(code: int, stays: bool, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    stage = f"calls = []\ndef main():\n    calls.append(1)\n    raise SystemExit({code})\n"
    (tmp_path / "a_stage.py").write_text(stage)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = tmp_path / "ended"
    config = {"module": "a_stage", "project": str(tmp_path), "ended": str(ended)}
    if code:
        with pytest.raises(RuntimeError, match=f"a_stage ended with {code}"):
            train._work(config)
    else:
        train._work(config)
    assert (ended.read_text() == str(code)) if stays else not ended.exists()
    if stays:
        train._work(config)  # the next try does nothing
    assert len(importlib.import_module("a_stage").calls) == 1
    del __import__("sys").modules["a_stage"]


def test_a_process_on_a_node_is_told_project_and_home(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
    told = connect.told()
    assert told["PYTHONPATH"].split(":")[0] == str(project) and told["AJUSTE_HOME"] == str(project.resolve())
    assert told["GOMP_SPINCOUNT"] == "2000" and json.dumps(told)
