"""The way on preset tiny, in a clone, by the command line: what a newcomer does and sees.

Twice: to the classifier and the assistant, which half of the stages make, and (slow) the whole way with RLHF and DPO.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.made.projects import ajuste, mlflow_runs, run, tiny_project


class Way(NamedTuple):
    """A clone, what was asked of `ajuste run` there, and the stages that this ran."""

    project: Path
    targets: tuple[str, ...]
    stages: frozenset[str]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("reviews-classifier", "assistant:sft"), id="half"),
        pytest.param((), id="whole", marks=pytest.mark.slow),
    ],
)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """The pipeline has run once."""
    folder = tiny_project(tmp_path_factory.mktemp("pipeline") / "ajuste")
    done = ajuste(folder, "run", *request.param)
    return Way(folder, request.param, frozenset(ran(done.stderr)))


@pytest.fixture
def project(way: Way) -> Path:
    return way.project


def stages(project: Path) -> set[str]:
    import yaml

    return set(yaml.safe_load((project / "dvc.yaml").read_text())["stages"])


def stale(way: Way) -> set[str]:
    """What DVC finds changed of the stages that have run here."""
    return json.loads(run(way.project, "dvc", "status", "--json").stdout).keys() & way.stages


def ran(output: str) -> set[str]:
    """The stages that a run says it ran."""
    return {
        line.split()[0]
        for line in output.splitlines()
        if len(line.split()) > 1 and line.split()[1] in ("ran", "restored")
    }


def test_the_targets_stages_ran_and_no_others(way: Way) -> None:
    assert {"evaluate_classify", "evaluate_instruct", "forgetting_instruct"} < way.stages <= stages(way.project)
    assert way.stages == stages(way.project) if not way.targets else not {"reward", "ppo", "dpo"} & way.stages


def test_one_mlflow_run_a_stage_under_one_parent(way: Way) -> None:
    project = way.project
    runs = [run for run in mlflow_runs(project) if "ajuste.move.id" not in run["tags"]]  # the gate may have promoted
    by_key = {run["tags"]["ajuste.stage_key"]: run for run in runs if "ajuste.stage_key" in run["tags"]}
    assert len(by_key) == len(way.stages) == len(runs) - 1
    parents = {run["tags"]["mlflow.parentRunId"] for run in by_key.values()}
    assert len(parents) == 1 and all(run["status"] == "FINISHED" for run in runs)


def test_the_second_run_does_nothing_and_says_so(way: Way) -> None:
    project = way.project
    before, count = (project / "dvc.lock").read_bytes(), len(mlflow_runs(project))
    done = ajuste(project, "run", *way.targets)
    assert "Nothing to do" in done.stderr and ran(done.stderr) == set()
    assert (project / "dvc.lock").read_bytes() == before and len(mlflow_runs(project)) == count


def test_only_what_depends_on_a_change_runs_again(way: Way) -> None:
    project = way.project
    until = ["--until", "merge_classify"] if way.targets else []
    made = {"classify_lora", "merge_classify"} | (set() if way.targets else {"evaluate_classify", "summary"})
    assert stale(way) == set()
    unused = ("ajuste/cli/main.py", "tasks/__init__.py", "ajuste/serving/app.py")
    for name in unused:
        path = project / name
        path.write_text(path.read_text() + "\n# a comment\n")
    assert stale(way) == set()
    params = project / "params.yaml"
    text = params.read_text()
    assert "    r: 4" in text
    params.write_text(text.replace("    r: 4", "    r: 2"))
    assert stale(way) == {"classify_lora"}
    done = ajuste(project, "run", *until)
    assert ran(done.stderr) == made
    # what reads the merged model and its proof, unless it was made too
    assert stale(way) == ({"evaluate_classify", "summary"} & way.stages) - made
    params.write_text(text)
    done = ajuste(project, "run", *until)
    assert ran(done.stderr) == made and stale(way) == set()
    run(project, "git", "checkout", "--quiet", *unused)


def test_registered_versions_answer_from_plain_text(project: Path) -> None:
    code = (
        "import json, mlflow; from ajuste.tracking.runs.store import tracking_uri;"
        "mlflow.set_tracking_uri(tracking_uri());"
        "m = mlflow.pyfunc.load_model('models:/reviews-classifier@challenger');"
        "print(json.dumps(list(m.predict(['a warm and funny film', 'dull'])['label'])))"
    )
    import sys

    labels = json.loads(run(project, sys.executable, "-c", code).stdout.strip().splitlines()[-1])
    assert len(labels) == 2 and set(labels) <= {"negative", "positive"}
    proof = json.loads((project / "artifacts/merged/classify_lora/proof.json").read_text())
    assert proof["max_logit_difference"] <= 1e-4 and proof["equal_predictions"] == 1.0


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("    r: 4", "    rr: 4", "classify.lora.rr"),
        ("made:tiny-encoder", "path:nowhere", "nowhere"),
        pytest.param("compute:", "clasify: {}\ncompute:", "clasify", marks=pytest.mark.slow),
        pytest.param("threads:", "threads: [", "params.yaml", marks=pytest.mark.slow),
    ],
)
def test_a_persons_mistake_is_one_line(project: Path, old: str, new: str, named: str) -> None:
    run(project, "git", "checkout", "--quiet", ".")  # no dvc.lock of this run: all is stale
    params = project / "params.yaml"
    text = params.read_text()
    assert old in text
    params.write_text(text.replace(old, new))
    done = ajuste(project, "run", check=False)
    params.write_text(text)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and len(errors) == 1 and named in errors[0], done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_stage_is_refused(project: Path) -> None:
    assert ajuste(project, "run", "--from", "nope", check=False).returncode == 2  # before Prefect is started


def test_edited_raw_data_is_refused(project: Path) -> None:
    file = next(path for path in (project / "data").rglob("*.csv"))
    content = file.read_bytes()
    file.unlink()  # it may be a link into the cache
    file.write_bytes(content + b"x")
    done = ajuste(project, "run", check=False)
    file.write_bytes(content)
    assert done.returncode == 1 and "data.dvc" in done.stderr and "Traceback" not in done.stderr


def test_no_figure_has_more_digits_than_six(project: Path) -> None:
    """Of every out of every stage, but for what a later stage computes with (tests/made/digits.py lists it)."""
    from tests.made.digits import unrounded

    assert unrounded(project / "artifacts") == [] and unrounded(project / "metrics") == []
