"""Sweep: what is wrong with a grid is said before anything runs; ranked by validation; the user's tree stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.core.params import parse_yaml
from ajuste.tracking.registry.families.classifier import CLASSIFIER
from ajuste.tracking.registry.families.sft import SFT
from ajuste.tracking.sweeps import grid
from ajuste.tracking.sweeps.points import Point, ranked
from tests.made.projects import ROOT, ajuste, environment, mlflow_runs, run, tiny_project


@pytest.fixture
def here(monkeypatch) -> None:
    """In this repository, which is only read."""
    monkeypatch.chdir(ROOT)


def test_words_become_typed_values() -> None:
    assert grid.parse(["a.b=4,8", "c=1e-4,3e-4", "d=[query,value],[key]", "e='x,y',null,true"]) == {
        "a.b": [4, 8], "c": [1e-4, 3e-4], "d": [["query", "value"], ["key"]], "e": ["x,y", None, True]}  # fmt: skip
    assert grid.parse(["params.yaml:a=1"]) == {"a": [1]}


@pytest.mark.parametrize(("words", "said"), [
    ([], "at least one -S"), (["a"], "write a key"), (["=4"], "write a key"), (["a="], "write a key"),
    (["a=1,,2"], "a value is empty"), (["a=1,1"], "the value 1 is given twice"), (["a=1", "a=2"], "`a` is given twice"),
    (["a=" + ",".join(map(str, range(300)))], "300 points, more than 256"), (["a=[1"], "no YAML value"),
])
def test_wrong_words_are_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        grid.parse(words)
    assert "\n" not in str(caught.value)


def test_points_are_every_combination_and_are_checked(here) -> None:
    lora = "classify.lora"
    found = grid.points("classify_lora", {f"{lora}.r": [4, 8], f"{lora}.lr": [1e-4, 3e-4, 1e-3]})
    assert len(found) == 6 and found[1] == {f"{lora}.r": 4, f"{lora}.lr": 3e-4}
    # a key of a stage that it reads from counts too; one of another stage does not
    assert len(grid.points("classify_lora", {"encode.reviews.max_tokens": [64, 128], "compute.seed": [0, 1]})) == 4
    for wrong, said in (({f"{lora}.rr": [1]}, "`classify.lora.rr` is missing"),
                        ({f"{lora}.r": [4, "x"]}, "the point classify.lora.r=x is refused.*valid integer"),
                        ({lora: [1]}, "is a section of params.yaml"),
                        ({"instruct.r": [4]}, "`instruct.r` changes nothing about stage `classify_lora`"),
                        ({f"{lora}.r": [-1]}, "r=-1 is refused"), ({"compute.threads": [0]}, "threads=0 is refused")):
        with pytest.raises(UsageError, match=said):
            grid.points("classify_lora", wrong)
    with pytest.raises(UsageError, match="sweep one of classify_frozen, classify_full, classify_lora, instruct"):
        grid.swept_family("summary")


def test_what_the_best_runs_through(here) -> None:
    wanted = {"merge_classify", "evaluate_classify"}
    assert grid.downstream("classify_lora", wanted) == ["merge_classify", "evaluate_classify"]
    assert grid.downstream("classify_full", wanted) == ["evaluate_classify"]
    assert grid.downstream("instruct", {"merge_instruct", "evaluate_instruct"}) == ["merge_instruct",
                                                                                   "evaluate_instruct"]


def test_ranked_by_validation() -> None:
    points = [Point({}, "a", figure=0.8, trainable=9), Point({}, "b"), Point({}, "c", figure=0.8, trainable=3),
              Point({}, "d", figure=0.7), Point({}, "e", figure=float("nan"))]
    assert [p.name for p in ranked(points, CLASSIFIER)] == ["c", "a", "d", "b", "e"]
    assert [p.name for p in ranked(points, SFT)] == ["d", "c", "a", "b", "e"]


def state(project: Path) -> tuple[str, ...]:
    """The user's tree, index, data and lock."""
    return (run(project, "git", "status", "--porcelain").stdout, run(project, "git", "diff").stdout,
            run(project, "git", "diff", "--cached").stdout, run(project, "git", "rev-parse", "HEAD").stdout,
            run(project, "git", "stash", "list").stdout,
            *(str(p.stat().st_mtime_ns) for p in sorted(project.glob("data/**/*"))))


@pytest.mark.slow
def test_a_sweep_is_ranked_registered_and_repeats_nothing_when_killed(tmp_path: Path) -> None:
    project = tiny_project(tmp_path / "ajuste")
    ajuste(project, "run", "--until", "evaluate_classify")
    before = state(project)
    words = ["sweep", "classify_lora", "-S", "classify.lora.lr=5e-3,1e-3"]
    # killed when the first point is recorded: the second is under way
    process = subprocess.Popen([sys.executable, "-m", "ajuste.cli.main", *words], cwd=project, env=environment(project),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = next(line for line in process.stdout if line.startswith("1 of 2"))
        assert " ran " in line
    finally:
        process.kill()
        process.wait()
    done = ajuste(project, *words)
    assert "restored" in next(line for line in done.stdout.splitlines() if line.startswith("1 of 2"))
    assert "The best point is reviews-classifier/" in done.stdout and "0.005" in done.stdout
    assert state(project) == before
    runs = mlflow_runs(project)
    parents = [one for one in runs if "ajuste.sweep" in one["tags"]]
    assert len(parents) == 1 and parents[0]["status"] == "FINISHED"
    points = [one for one in runs if "ajuste.in_sweep" in one["tags"]]
    assert len(points) == 2 and len({one["tags"]["ajuste.stage_key"] for one in points}) == 2
    assert all(one["tags"]["ajuste.dirty"] == "false" for one in points)
    commits = {one["tags"]["ajuste.git_commit"] for one in points}
    assert len(commits) == 2  # the parameters of each stand in its commit, which this clone has
    params = [parse_yaml(run(project, "git", "show", f"{commit}:params.yaml").stdout) for commit in commits]
    assert sorted(one["classify"]["lora"]["lr"] for one in params) == [0.001, 0.005]
    assert not (project / ".sweeps/classify_lora/tree").exists()
    # once more: nothing new
    count = len(runs)
    ajuste(project, *words)
    assert len(mlflow_runs(project)) == count and state(project) == before
    wrong = ajuste(project, "sweep", "classify_lora", "-S", "classify.lora.nope=1", check=False)
    assert wrong.returncode == 2 and wrong.stderr.count("error:") == 1
