"""Runs: one a stage key, complete, never doubled, whatever is killed or started twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.errors import UsageError
from ajuste.tracking.project import lock
from ajuste.tracking.runs import facts, runs, store
from tests.tracking import projects


def run_of(stage: str):
    """All runs of the stage's key that are not deleted."""
    key = lock.stage_key(stage)
    return store.client().search_runs([store.experiment_id()], f"tags.`ajuste.stage_key` = '{key}'")


def history_of(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.client().get_metric_history(run_id, name)]


def frozen(run) -> tuple:
    """Everything that a second `record` could change."""
    curves = {name: history_of(run.info.run_id, name) for name in run.data.metrics}
    return run.info.status, run.info.end_time, run.data.params, run.data.tags, curves, run.inputs.to_dictionary()


def test_a_run_holds_all_that_dvc_lock_and_the_outs_say(project: Path) -> None:
    (run,) = run_of("classify_lora")
    assert run.info.status == "FINISHED" and run.info.run_name == "classify_lora"
    assert run.data.params == {
        "lr": "0.0005", "r": "8", "target_modules": '["query"]', "task": "sequence", "compute.seed": "0",
        "compute.dtype": "float32",
    }
    expected = {"validation/accuracy": 0.82, "cost/parameters_trainable": 600, "cost/seconds": 10.0,
                "cost/peak_memory_mb": 800, "cost/tokens_per_second": 1200, "cost/seconds_train": 2, "cost/size_mb": 1}
    assert expected.items() <= run.data.metrics.items()
    assert history_of(run.info.run_id, "curve/loss") == [(step, 1 / step) for step in range(1, 7)]
    assert history_of(run.info.run_id, "curve/validation_accuracy") == [(3, 0.65), (6, 0.8)]
    entry = lock.entry("classify_lora")
    inputs = {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs}
    assert inputs == {*((d["path"], d["md5"], "dep") for d in entry["deps"]),
                      *((o["path"], o["md5"], "out") for o in entry["outs"])}
    assert all(len(digest) == 36 for _, digest, _ in inputs)
    for kind in ("dep", "out"):
        assert all(run.data.tags[f"dvc.{kind}.{item['path']}"] == item["md5"] for item in entry[f"{kind}s"])
    assert run.data.tags["ajuste.dirty"] == "unknown"  # no git here
    files = {f.path for f in store.client().list_artifacts(run.info.run_id)}
    assert files == {"dvc.lock", "params.yaml", "environment.txt", "state.json", "results", "cards"}
    assert f"torch=={facts.metadata.version('torch')}" in facts.environment()


def test_evaluation_and_proof_are_metrics(project: Path) -> None:
    (run,) = run_of("evaluate_classify")
    found = json.loads(Path("artifacts/evaluated/classify/lora.json").read_text())["accuracy"]
    for suffix, bound in (("", "value"), ("_low", "low"), ("_high", "high")):
        assert run.data.metrics[f"accuracy/lora{suffix}"] == found[bound]
    results = {f.path for f in store.client().list_artifacts(run.info.run_id, "results")}
    assert results == {f"results/{n}" for n in ("frozen.json", "full.json", "lora.json", "predictions.parquet")}
    (run,) = run_of("merge_classify")
    assert run.data.metrics["proof/max_logit_difference"] == 4.8e-7
    assert not any(name.startswith("curve/") for name in run.data.metrics)  # they are the adapter's


def test_children_hang_under_one_finished_parent_that_sums_up(project: Path) -> None:
    client = store.client()
    parents = {run_of(stage)[0].data.tags["mlflow.parentRunId"] for stage in lock.stages()}
    (parent,) = parents
    run = client.get_run(parent)
    assert run.info.status == "FINISHED" and runs.parent("a" * 64) == parent
    client.set_terminated(parent)
    assert run.data.metrics["cost/seconds"] == sum(2.5 * n for n in range(1, 7))
    note = run.data.tags["mlflow.note.content"]
    assert all(f"| {stage} |" in note for stage in lock.stages()) and "accuracy/lora" in note


def test_recording_again_changes_nothing(project: Path) -> None:
    for stage in lock.stages():
        (before,) = run_of(stage)
        assert runs.record(stage, None) == before.info.run_id
        assert runs.begin(stage, lock.stage_key(stage), "another-parent") == before.info.run_id
        (after,) = run_of(stage)
        assert frozen(after) == frozen(before)
        assert runs.is_recorded(lock.stage_key(stage))


def test_two_processes_at_once_make_one_run(other) -> None:
    root = other(seed=20)
    code = "from ajuste.tracking.runs import runs; p = runs.parent('b' * 64); print(p, runs.record('classify_full', p))"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": path}, text=True,
                         stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0] and len(answers) == 1
    (run,) = run_of("classify_full")
    assert answers == {f"{run.data.tags['mlflow.parentRunId']} {run.info.run_id}"}
    assert [step for step, _ in history_of(run.info.run_id, "curve/loss")] == list(range(1, 7))
    assert len(run.inputs.dataset_inputs) == 3


@pytest.mark.parametrize("broken", ["log_inputs", "log_artifacts", "set_terminated"])
def test_a_record_that_was_cut_off_is_completed(other, monkeypatch, broken: str) -> None:
    other(seed=30 + len(broken))
    parent, key = runs.parent("c" * 64), lock.stage_key("classify_lora")
    begun = runs.begin("classify_lora", key, parent)
    assert store.client().get_run(begun).info.status == "RUNNING" and not runs.is_recorded(key)

    def cut(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store.client()), broken, cut)
        with pytest.raises(KeyboardInterrupt):
            runs.record("classify_lora", parent)
    runs._logged.clear()  # a new process knows nothing
    assert runs.record("classify_lora", parent) == begun
    (run,) = run_of("classify_lora")
    assert run.info.status == "FINISHED" and runs.is_recorded(key)
    assert all(len(set(steps)) == len(steps) for steps in
               ([step for step, _ in history_of(begun, name)] for name in run.data.metrics))


def test_following_a_stage_that_is_killed_and_resumed(other, tmp_path: Path) -> None:
    other(seed=40)
    run_id = runs.begin("classify_full", lock.stage_key("classify_full"), runs.parent("d" * 64))
    history = tmp_path / "history.jsonl"
    assert runs.follow(run_id, history, 0) == 0  # not there yet
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 7)]
    history.write_text("".join(lines[:4]) + lines[4][:6])  # the fifth is half written
    seen = runs.follow(run_id, history, 0)
    assert seen == 4
    history.write_text("".join(lines[:2]))  # resumed from step 2
    seen = runs.follow(run_id, history, seen)
    runs._logged.clear()  # and the flow with it
    history.write_text("".join(lines))
    assert runs.follow(run_id, history, seen) == 6
    assert history_of(run_id, "curve/loss") == [(step, 1 / step) for step in range(1, 7)]
    runs.record("classify_full", None)  # its own history has the same steps
    assert [step for step, _ in history_of(run_id, "curve/loss")] == list(range(1, 7))


def test_a_failed_run_is_taken_up_again_and_a_deleted_one_made_anew(other) -> None:
    other(seed=50)
    key, parent, client = lock.stage_key("classify_full"), runs.parent("e" * 64), store.client()
    first = runs.begin("classify_full", key, parent)
    runs.fail(first, "out of disk")
    run = client.get_run(first)
    assert run.info.status == "FAILED" and run.data.tags["ajuste.error"] == "out of disk"
    assert runs.begin("classify_full", key, parent) == first
    run = client.get_run(first)
    assert run.info.status == "RUNNING" and "ajuste.error" not in run.data.tags
    client.delete_run(first)
    second = runs.record("classify_full", parent)
    assert second != first and [run.info.run_id for run in run_of("classify_full")] == [second]


def test_mlflows_global_state_is_neither_read_nor_written(other, monkeypatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    other(seed=60)
    run_id = runs.record("encode_reviews", None)
    run = store.client().get_run(run_id)
    assert run_id != "0" * 32 and run.info.experiment_id == store.experiment_id()
    assert run.data.params["rows.train"] == "null" and run.data.metrics["splits/train/percentiles/50"] == 7
    assert mlflow.active_run() is None and "MLFLOW_TRACKING_URI" not in os.environ
    assert not list(Path.cwd().glob("mlflow.db"))  # MLflow's own default store


def test_a_measurement_of_another_run_is_not_recorded(other, project: Path) -> None:
    root = other(seed=70)
    recorded = json.loads(json.dumps(projects.PARAMS))
    recorded["classify_full"]["classify.full"]["lr"] = 1.0
    projects.lock(root, recorded)
    shutil.rmtree(root / ".state")  # the home has one, of the first project's run
    assert facts.state("classify_full", lock.stage_key("classify_full")) == {}
    run = store.client().get_run(runs.record("classify_full", None))
    assert "cost/seconds" not in run.data.metrics and run.data.params["lr"] == "1.0"


def test_the_store_is_absolute_and_a_wrong_one_is_one_line(project: Path, monkeypatch) -> None:
    assert runs.tracking_uri() == f"sqlite:///{project}/mlruns/mlflow.db" and project.is_absolute()
    experiment = store.client().get_experiment(store.experiment_id())
    assert experiment.artifact_location == (project / "mlruns/artifacts").as_uri()
    for wrong in ("postgresql://user:secret@127.0.0.1:1/none", "http://user:secret@127.0.0.1:1", "nonsense://x"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert runs.tracking_uri() == wrong
        with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI") as caught:
            store.client()
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_a_user_chose_are_metrics_that_mlflow_takes(other) -> None:
    root = other(seed=80)
    odd = {"../x": 1, "/abs": 2, "a//b": 3, "..": 4, "<b>&|": 5, "ñandú": 6, "x" * 300: 7, "nan": float("nan")}
    report = root / "artifacts/encoded/reviews/encoding.json"
    report.write_text(json.dumps({"sources": odd, "names": ["no number"]}))
    projects.lock(root, {**projects.PARAMS, "encode_reviews": {"encode.reviews": {"max_tokens": 31}}})
    numbers = store.client().get_run(runs.record("encode_reviews", None)).data.metrics
    assert {1, 2, 3, 4, 5, 6, 7} <= {value for name, value in numbers.items() if name.startswith("sources/")}
    assert numbers["sources/ñandú"] == 6 and numbers["sources/_b___"] == 5


def test_a_stage_that_did_not_run_is_named(project: Path) -> None:
    with pytest.raises(UsageError, match="dvc.lock has no stage `classify_gpt`"):
        runs.record("classify_gpt", None)
