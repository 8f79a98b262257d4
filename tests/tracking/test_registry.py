"""The registry: a version a model and stage key, with its proof; aliases; and what a reference means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.models import classifier
from ajuste.models.folder import sha256_of
from ajuste.tracking.project import lock
from ajuste.tracking.registry import register, registry, scores
from ajuste.tracking.runs import store
from tests.tracking import projects
from tests.tracking.test_runs import history_of

NAME, ADAPTER = "reviews-classifier", "reviews-classifier-adapter"
TEXTS = ["a warm film", "dull", "the plot is not very good and the actor is bad"]


@pytest.fixture
def apart(project: Path, monkeypatch: pytest.MonkeyPatch):
    """A registered name of one's own for each test, in the shared store: what is changed here disturbs nobody."""
    def rename(root: Path, name: str) -> None:
        for card in (*root.glob("artifacts/merged/*/ajuste.json"), *root.glob("artifacts/adapters/*/ajuste.json")):
            card.write_text(json.dumps(json.loads(card.read_text()) | {"set": name}))
        if not (root / "artifacts/encoded" / name).exists():
            (root / "artifacts/encoded" / name).symlink_to("reviews")
        projects.lock(root)

    return rename


def by_strategy(name: str) -> dict[str, registry.Version]:
    return {version.tags["strategy"]: version for version in registry.versions(name)}


def aliases(name: str) -> dict[str, str]:
    return {alias: version.version for version in registry.versions(name) for alias in version.aliases}


def test_what_a_run_that_ended_too_early_left_is_seen(project: Path, other) -> None:
    stages = set(lock.stages())
    assert not register.unfinished(stages)
    opened, (version, *_) = store.client(), registry.versions(NAME)
    opened.set_model_version_tag(NAME, version.version, "unranked", "true")
    assert register.unfinished(stages) and not register.unfinished({"encode_reviews"})
    opened.delete_model_version_tag(NAME, version.version, "unranked")
    assert not register.unfinished(stages)
    other(seed=101)
    assert register.unfinished(set(lock.stages())), "these models have no version"


def test_every_strategy_is_a_version_and_the_adapter_too(project: Path) -> None:
    found = by_strategy(NAME)
    assert {NAME, ADAPTER} <= set(registry.names()) and set(found) == {"frozen", "full", "lora"}
    for strategy, version in found.items():
        folder = Path(f"artifacts/merged/classify_{strategy}")
        assert version.tags["sha256"] == sha256_of(folder / "model.safetensors")
        assert version.tags["method"] == "classify" and version.tags["base_id"] == "tiny"
        result = json.loads(Path(f"artifacts/evaluated/classify/{strategy}.json").read_text())
        assert float(version.tags["test.accuracy.low"]) == result["accuracy"]["low"]
        run = store.client().get_run(version.run_id)  # what MLflow's own compare page shows
        assert run.data.metrics["test/accuracy_high"] == result["accuracy"]["high"]
        assert version.tags["stage_key"] == run.data.tags["ajuste.stage_key"]
    (adapter,) = registry.versions(ADAPTER)
    assert found["lora"].tags["adapter_version"] == adapter.version
    assert float(found["lora"].tags["proof.max_logit_difference"]) == 4.8e-7
    assert "head_sha256" in found["frozen"].tags and "head_sha256" not in found["full"].tags
    trained = store.client().get_run(adapter.run_id)
    assert trained.data.metrics["test/accuracy"] == float(found["lora"].tags["test.accuracy"])
    assert aliases(NAME) == {"challenger": found["lora"].version}  # as good as `full`, with fewer trained parameters
    assert aliases(ADAPTER) == {} and "unranked" not in found["lora"].tags


def test_registering_again_changes_nothing(project: Path) -> None:
    client = store.client()
    before = [registry.versions(name) for name in registry.names()]
    models = len(client.search_logged_models([store.experiment_id()]))
    assert registry.register_all(None) == []
    assert [registry.versions(name) for name in registry.names()] == before
    assert len(client.search_logged_models([store.experiment_id()])) == models
    assert len(history_of(before[0][0].run_id, "test/accuracy")) == 1


def test_a_figure_that_is_measured_later_joins_those_that_are_there(project: Path) -> None:
    version = by_strategy(NAME)["full"]
    (model,) = [one for one in register.models() if one.folder == Path("artifacts/merged/classify_full")]
    figures = {**scores.scores_of(model, None), **{f"test.later{i}": "0.5" for i in range(120)}}
    for _ in range(2):
        scores.log_scores(model, version.run_id, version.version, figures)
    found = [metric.key for metric in store.client().get_logged_model(version.tags["model_id"]).metrics]
    assert found.count("test/later119") == 1 and found.count("test/accuracy") == 1


def test_the_page_of_a_logged_model_has_its_metrics_params_and_version(project: Path) -> None:
    version = by_strategy(NAME)["lora"]
    model = store.client().get_logged_model(version.tags["model_id"])
    numbers = {metric.key: metric.value for metric in model.metrics}
    assert numbers["test/accuracy"] == float(version.tags["test.accuracy"]) and numbers["validation/macro_f1"] == 0.82
    assert {metric.dataset_name for metric in model.metrics} == {"artifacts/encoded/reviews"}
    assert model.params["r"] == "8" and model.params["merge.dtype"] == "float32"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": version.version}]
    assert len(store.client().get_model_version(NAME, version.version).tags) <= 12  # a row of MLflow's list


def test_a_version_answers_from_plain_text_and_is_the_model_that_was_saved(project: Path, monkeypatch) -> None:
    import mlflow
    import numpy as np
    import pandas as pd

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", store.tracking_uri())
    for strategy, version in by_strategy(NAME).items():
        model = mlflow.pyfunc.load_model(f"models:/{NAME}/{version.version}")
        answers = [model.predict(TEXTS), model.predict(pd.DataFrame({"text": TEXTS}))]
        expected = classifier.predict(*classifier.load(Path(f"artifacts/merged/classify_{strategy}")), TEXTS)
        for answer in answers:
            assert list(answer.columns) == ["label", "probability", "probabilities"]
            assert np.array(answer["probabilities"].tolist()) == pytest.approx(expected.numpy(), abs=1e-6)
            assert list(answer["label"]) == [projects.LABELS[i] for i in expected.argmax(-1).tolist()]
            assert list(answer["probability"]) == pytest.approx(expected.max(-1).values.tolist(), abs=1e-6)
        assert not list(Path(registry.resolve(f"{NAME}/{version.version}").path).parents[1].rglob("*.pkl"))


def test_a_version_loads_where_ajuste_is_not_installed(project: Path, tmp_path: Path) -> None:
    folder = registry.resolve(NAME).path.parents[1]
    code = ("import sys, mlflow; m = mlflow.pyfunc.load_model(sys.argv[1]); print(list(m.predict(['dull'])['label']));"
            "print(sys.modules['ajuste.models.classifier'].__file__)")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, file = done.stdout.strip().splitlines()[-2:]
    assert json.loads(label.replace("'", '"'))[0] in projects.LABELS and Path(file).is_relative_to(folder / "code")


def test_the_adapter_loads_with_plain_peft(project: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained("artifacts/base/encoder", num_labels=2)
    path = registry.resolve(f"{ADAPTER}/1").path
    model = PeftModel.from_pretrained(base, path)
    assert model.peft_config["default"].base_model_name_or_path == "tiny"
    assert sha256_of(path / "adapter_model.safetensors") == registry.versions(ADAPTER)[0].tags["sha256"]


def test_what_a_reference_means(other, apart) -> None:
    apart(other(seed=100), "meaning")
    registry.register_all(None)
    name, client = "meaning-classifier", store.client()
    found = by_strategy(name)
    assert registry.resolve(name).version == found["lora"].version and registry.resolve(name).alias == "challenger"
    client.set_registered_model_alias(name, "champion", found["frozen"].version)
    for reference in (name, f"models:/{name}", f"{name}@champion", f"models:/{name}@champion"):
        version = registry.resolve(reference)
        assert (version.version, version.alias) == (found["frozen"].version, "champion")
        assert (version.path / "ajuste.json").is_file()
    assert registry.resolve(f"{name}/2").version == registry.resolve(f"models:/{name}/2").version == "2"
    assert registry.resolve(f"{name}/2").alias is None
    assert registry.summary()[name].startswith("champion is version 1 (frozen, test accuracy ")
    assert "challenger is version 3 (lora" in registry.summary()[name]
    for wrong, named in {"nobody": NAME, f"{name}@best": "challenger, champion", f"{name}/9": "1, 2, 3",
                         "a@b@c": "NAME@ALIAS", f"{ADAPTER}": "aliases are none", f"{name}/../x": "NAME"}.items():
        with pytest.raises(UsageError) as caught:
            registry.resolve(wrong)
        assert named in str(caught.value) and "\n" not in str(caught.value), wrong


def test_a_folder_that_was_moved_is_named(other, apart) -> None:
    apart(other(seed=110), "moved")
    registry.register_all(None)
    model = registry.resolve("moved-classifier").path.parents[1]
    model.rename(model.with_name("elsewhere"))
    with pytest.raises(UsageError, match="files of moved-classifier/3 are gone .*ajuste doctor"):
        registry.resolve("moved-classifier")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("weights", {"merged_sha256": "0" * 64}, "`merged_sha256` of"),
        ("adapter", {"adapter_sha256": "0" * 64}, "`adapter_sha256` of"),
        ("base", {"base_sha256": "0" * 64}, "another base"),
        ("above", {"max_logit_difference": 2e-4}, "differs from base and adapter by 0.0002"),
        ("nan", {"max_logit_difference": float("nan")}, "differs from base and adapter by nan"),
        ("missing", None, "proof.json is missing"),
    ],
)
def test_a_merged_model_without_a_passing_proof_is_refused(
    other, apart, name: str, change: dict | None, reason: str
) -> None:
    root = other(seed=120)
    proof = root / "artifacts/merged/classify_lora/proof.json"
    if change is None:
        proof.unlink()
    else:
        proof.write_text(json.dumps(json.loads(proof.read_text()) | change))
    name = f"refused-{name}"
    apart(root, name)
    with pytest.raises(DataError, match=reason):
        registry.register_all(None)
    assert set(by_strategy(f"{name}-classifier")) == {"frozen", "full"}  # the others are there, and ranked
    assert aliases(f"{name}-classifier") == {"challenger": by_strategy(f"{name}-classifier")["full"].version}


def test_bytes_that_dvc_lock_does_not_name_are_refused(other, apart) -> None:
    root = other(seed=130)
    apart(root, "edited")
    weights = root / "artifacts/merged/classify_full/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DataError, match="classify_full is not what dvc.lock names.*dvc checkout"):
        registry.register_all(None)
    assert set(by_strategy("edited-classifier")) == {"frozen", "lora"}


def test_a_kill_at_any_step_leaves_no_second_version(other, apart, monkeypatch) -> None:
    apart(other(seed=140), "killed")
    name, client = "killed-classifier", store.client()

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    steps = [(register, "_name"), (type(client), "finalize_logged_model"), (type(client), "log_outputs"),
             (type(client), "create_model_version"), (register, "log_scores"), (register, "rank"),
             (type(client), "set_registered_model_alias")]
    for owner, step in steps:
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, kill)
            with pytest.raises(KeyboardInterrupt):
                registry.register_all(None)
    registry.register_all(None)
    found = registry.versions(name)
    assert [version.tags["strategy"] for version in found] == ["frozen", "full", "lora"]
    assert aliases(name) == {"challenger": "3"} and not any("unranked" in version.tags for version in found)
    logged = client.search_logged_models([store.experiment_id()], f"tags.`registered` = '{name}'")
    assert len(logged) == 3 and all(str(model.status) == "READY" for model in logged)
    for version in found:
        classifier.load(registry.resolve(f"{name}/{version.version}").path)


def test_the_challenger_follows_validation_and_only_new_versions_move_it(other, apart) -> None:
    name, client = "ranked-classifier", store.client()
    apart(other(seed=150), "ranked")
    registry.register_all(None)
    assert aliases(name) == {"challenger": "3"}
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "challenger", "1")  # somebody's own choice stands
    registry.register_all(None)
    assert aliases(name) == {"challenger": "1", "champion": "1"}
    client.delete_registered_model_alias(name, "challenger")  # a missing alias is set again
    registry.register_all(None)
    assert aliases(name) == {"challenger": "3", "champion": "1"}
    apart(other(seed=160, moved=-0.1), "ranked")  # a worse night
    assert len(registry.register_all(None)) == 4
    assert aliases(name) == {"challenger": "3", "champion": "1"}
    apart(other(seed=170, moved=0.1), "ranked")  # a better one
    registry.register_all(None)
    assert aliases(name) == {"challenger": "9", "champion": "1"}
    note = registry.versions(name)[8].tags["alias.challenger"]
    assert "0.9200 of 9 versions, before it version 3" in note


def test_versions_that_were_validated_on_other_rows_are_not_ranked_together(other, apart) -> None:
    apart(other(seed=180, moved=0.15), "rows")
    registry.register_all(None)
    root = other(seed=190)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"row_id": ["another"]}), root / "artifacts/encoded/reviews/validation.parquet")
    apart(root, "rows")
    registry.register_all(None)
    assert aliases("rows-classifier") == {"challenger": "6"}  # the best of the new rows, though 3 has a higher figure


def test_a_new_evaluation_is_no_new_version(other, apart) -> None:
    root = other(seed=200)
    apart(root, "again")
    registry.register_all(None)
    projects.evaluate(root / "artifacts/evaluated/classify", seed=200, bound=0.05)
    params = {**projects.PARAMS, "evaluate_classify": {"evaluate.classify": {"bootstrap": 500}}}
    projects.lock(root, params)
    assert registry.register_all(None) == []
    for version in registry.versions("again-classifier"):
        value, low = (float(version.tags[key]) for key in ("test.accuracy", "test.accuracy.low"))
        assert value - low == pytest.approx(0.05)
        assert store.client().get_run(version.run_id).data.metrics["test/accuracy_low"] == low
        assert f"{low:.4f}" in store.client().get_model_version(version.name, version.version).description


def test_scores_of_other_bytes_are_not_put_on_a_version(other, apart) -> None:
    """Equal inputs gave other bytes (another kind of CPU): the version keeps the scores of its own."""
    root = other(seed=210)
    apart(root, "bytes")
    registry.register_all(None)
    before = registry.versions("bytes-classifier")
    (root / "artifacts/merged/classify_full/history.jsonl").write_text("")
    projects.evaluate(root / "artifacts/evaluated/classify", seed=210, bound=0.01)
    projects.lock(root)
    assert registry.register_all(None) == []
    after = registry.versions("bytes-classifier")
    assert [a.version for a, b in zip(after, before, strict=True) if a.tags != b.tags] == ["1", "3"]
    numbers = store.client().get_run(before[1].run_id).data.metrics
    assert numbers["test/accuracy_low"] == float(before[1].tags["test.accuracy.low"])


def test_without_a_store_reading_makes_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    home.cache_clear()
    assert registry.names() == [] and registry.summary() == {}
    with pytest.raises(UsageError, match="nothing is registered yet"):
        registry.resolve(NAME)
    assert list(tmp_path.iterdir()) == []
    home.cache_clear()


def test_pages_say_where_a_version_came_from(project: Path) -> None:
    version = by_strategy(NAME)["lora"]
    text = store.client().get_model_version(NAME, version.version).description
    for part in ("merged into its base", "validation: accuracy 0.8200", "largest logit difference 4.8e-07",
                 "trained 600 of 20,000 parameters (3.00%)", "stage `merge_classify`", "adapter version 1"):
        assert part in text
    assert "ajuste compare reviews-classifier" in store.client().get_registered_model(NAME).description
    assert lock.stage_key("merge_classify") == version.tags["stage_key"]
