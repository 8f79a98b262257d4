"""The registry holds assistants as it holds classifiers: a version a model and stage key, with its evidence."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.models import decoder
from ajuste.models.folder import sha256_of
from ajuste.tracking.comparing import compare
from ajuste.tracking.comparing import text as text
from ajuste.tracking.project import lock
from ajuste.tracking.registry import registry
from ajuste.tracking.runs import store as runs_store
from tests.tracking import assistants
from tests.tracking.stored import stored, within
from tests.tracking.test_runs import history_of, run_of

NAME, ADAPTER = "assistant", "assistant-adapter"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three runs in one store: LoRA, prefix tuning (not to be merged), full fine-tuning; {method: folder}."""
    folder = tmp_path_factory.mktemp("assistants")
    losses = {"lora": 1.9, "prefix": 2.1, "full": 2.0}
    roots = {method: assistants.make(folder / method, method, 10 + i, losses[method])
             for i, method in enumerate(losses)}
    with stored(folder, roots):
        yield folder, roots


@pytest.fixture
def project(store, monkeypatch):
    """In the folder of the run of LoRA."""
    folder, roots = store
    with within(folder, roots["lora"], monkeypatch):
        yield roots


def by_strategy(name: str = NAME) -> dict[str, registry.Version]:
    return {version.tags["strategy"]: version for version in registry.versions(name)}


def test_a_version_has_the_evidence_of_its_training(project) -> None:
    found = by_strategy()
    assert set(found) == {"lora", "prefix", "full"} and set(by_strategy(ADAPTER)) == {"lora", "prefix"}
    tags = found["lora"].tags
    merged = project["lora"] / "artifacts/merged/instruct"
    proof = json.loads((merged / "proof.json").read_text())
    card = json.loads((merged / "ajuste.json").read_text())
    assert tags["method"] == "sft" and tags["sha256"] == sha256_of(merged / "model.safetensors")
    assert float(tags["proof.max_logit_difference"]) == proof["max_logit_difference"]
    assert tags["adapter_version"] == by_strategy(ADAPTER)["lora"].version
    assert (tags["base_sha256"], tags["tokenizer_sha256"], tags["template_sha256"]) == tuple(
        card["base"][key] for key in ("sha256", "tokenizer_sha256", "template_sha256"))
    assert float(tags["validation.loss"]) == 1.9 and float(tags["test.base_loss"]) == 2.4
    result = json.loads((project["lora"] / "artifacts/evaluated/instruct/instruct.json").read_text())
    for key in ("value", "low", "high"):
        suffix = "" if key == "value" else f".{key}"
        assert float(tags[f"test.loss{suffix}"]) == result["held_out"]["instruct"]["loss"][key]
        assert float(tags[f"test.difference{suffix}"]) == result["held_out"]["difference"][key]
        assert float(tags[f"forgetting.general{suffix}"]) == assistants.interval(0.1, 0.02)[key]
    assert tags["dvc"] == lock.entry("merge_instruct")["outs"][0]["md5"]


def test_the_challenger_has_the_lowest_validation_loss(project) -> None:
    assert by_strategy()["lora"].aliases == ("challenger",)
    note = by_strategy()["lora"].tags["alias.challenger"]
    assert "best validation loss 1.9000" in note
    number = by_strategy()["lora"].version
    assert registry.summary()[NAME] == f"challenger is version {number} (lora, held-out loss 2.000)"
    assert not [version for version in registry.versions(ADAPTER) if version.aliases]


def test_what_cannot_be_merged_is_served_as_adapter_and_says_so(project) -> None:
    version = by_strategy()["prefix"]
    assert version.tags["served_as"] == "adapter" and version.tags["proof.merged"] == "false"
    assert "prefix is no change of a matrix" in version.tags["proof.why"]
    path = registry.resolve(f"{NAME}/{version.version}").path
    assert version.tags["sha256"] == sha256_of(path / "adapter_model.safetensors")
    decoder.load(path, project["prefix"] / "artifacts/base/decoder")
    page = runs_store.client().get_model_version(NAME, version.version).description
    assert "It cannot be merged: this version is the adapter itself" in page
    full = by_strategy()["full"]
    assert full.tags["served_as"] == "whole" and "nothing to merge" in full.tags["proof.why"]
    assert "adapter_version" not in full.tags


def test_pages_say_what_was_found(project) -> None:
    client = runs_store.client()
    page = client.get_model_version(NAME, by_strategy()["lora"].version).description
    assert page.startswith("lora, held-out loss 2.000\n")
    for said in ("merged into its base", "held-out (40 rows): loss 2.0000 [1.9000, 2.1000], of the base 2.4000",
                 "general 0.1000 [0.0800, 0.1200]", "100.00% equal greedy tokens", "template `"):
        assert said in page, said
    assert len(client.get_model_version(NAME, by_strategy()["lora"].version).tags) <= 12
    about = client.get_registered_model(NAME).description
    assert "follow instructions" in about and "ajuste chat" in about


def test_runs_hold_curves_figures_and_datasets(project) -> None:
    (run,) = run_of("instruct")
    assert {"method": "lora", "r": "4", "lr": "0.001", "compute.seed": "0", "compute.dtype": "float32"}.items() \
        == run.data.params.items()
    assert history_of(run.info.run_id, "curve/loss") == [(step, 1 / step) for step in range(1, 7)]
    assert run.data.metrics["validation/loss"] == 1.9 and run.data.metrics["test/loss_low"] == 1.9
    (run,) = run_of("evaluate_instruct")
    figures = {"loss/instruct": 2.0, "loss/instruct_low": 1.9, "loss/base": 2.4, "loss/difference": -0.4,
               "perplexity/instruct": float(np.exp(2.0)), "rougeL/base": 0.24, "rules/instruct": 0.3,
               "reviews_accuracy/classifier": 0.8}
    assert {key: run.data.metrics[key] for key in figures} == figures
    results = {file.path for file in runs_store.client().list_artifacts(run.info.run_id, "results")}
    assert results == {f"results/{name}" for name in ("instruct.json", "answers.jsonl", "rows.parquet")}
    (run,) = run_of("forgetting_instruct")
    assert run.data.metrics["forgetting/general_low"] == 0.08 and run.data.metrics["score/boolq"] == 0.5
    (run,) = run_of("merge_instruct")
    assert run.data.metrics["proof/equal_greedy_tokens"] == 1.0 and "curve/loss" not in run.data.metrics
    inputs = {dataset.dataset.name for dataset in run.inputs.dataset_inputs}
    assert inputs == {*assistants.STAGES["merge_instruct"][0], "artifacts/merged/instruct"}
    parent = runs_store.client().get_run(run.data.tags["mlflow.parentRunId"])
    note = parent.data.tags["mlflow.note.content"]
    assert "| evaluate_instruct | loss/base 2.400" in note and parent.data.metrics["forgetting/boolq"] == 0.1


def test_registering_again_changes_nothing(project) -> None:
    before = [registry.versions(name) for name in (NAME, ADAPTER)]
    for root in project.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            assert registry.register_all(None) == []
    assert [registry.versions(name) for name in (NAME, ADAPTER)] == before


@pytest.mark.slow
def test_it_answers_where_ajuste_is_not_installed(project, tmp_path) -> None:
    version = registry.resolve(NAME)
    folder = version.path.parents[1]
    asked = ["Name a warm film.", "What is slow?"]
    code = ("import sys, json, mlflow; m = mlflow.pyfunc.load_model(sys.argv[1]);"
            "print(json.dumps(m.predict(json.loads(sys.argv[2])).to_dict('list')));"
            "print(sys.modules['ajuste.learning.text.chat'].__file__)")
    done = subprocess.run([sys.executable, "-I", "-c", code, str(folder), json.dumps(asked)], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers, file = done.stdout.strip().splitlines()[-2:]
    model, tokenizer, _ = decoder.load(version.path)
    prompts = [chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in asked]
    expected = generate(model, prompts, 256, chat.end_of_turn(tokenizer), tokenizer.pad_token_id)
    assert json.loads(answers) == {"answer": [chat.response_text(tokenizer, ids).strip() for ids in expected],
                                   "tokens": [len(ids) for ids in expected]}
    assert Path(file).is_relative_to(folder / "code") and not list(folder.rglob("*.pkl"))


@pytest.mark.parametrize(("change", "reason"), [
    ({"merged_sha256": "0" * 64}, "`merged_sha256` of"),
    ({"max_logit_difference": 2e-3}, "above merge.instruct.max_logit_difference 0.001"),
    ({"max_logit_difference": float("nan")}, "differs from base and adapter by nan"),
    ({"equal_greedy_tokens": 0.5}, "50.00% of its greedy tokens"),
    ({"merged": False}, "it was not merged, though lora can be"),
    (None, "proof.json is missing"),
])  # fmt: skip
def test_without_a_passing_proof_it_is_refused(change, reason, project, tmp_path, monkeypatch) -> None:
    root = assistants.make(tmp_path / "run", seed=77)
    proof = root / "artifacts/merged/instruct/proof.json"
    if change is None:
        proof.unlink()
    else:
        proof.write_text(json.dumps(json.loads(proof.read_text()) | change))
    assistants.lock(root, "lora")
    monkeypatch.chdir(root)
    before = len(registry.versions(NAME))
    with pytest.raises(DataError, match=reason):
        registry.register_all(None)
    assert len(registry.versions(NAME)) == before


def test_a_copy_that_is_not_what_was_trained_is_refused(project, tmp_path, monkeypatch) -> None:
    root = assistants.make(tmp_path / "run", "prefix", seed=78)
    other = assistants.tiny.tiny_adapter(root / "artifacts/base/decoder", tmp_path / "other", "prefix", 79)
    weights = "adapter_model.safetensors"
    (root / "artifacts/merged/instruct" / weights).write_bytes((other / weights).read_bytes())
    assistants.lock(root, "prefix")
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="it was not merged, and is not what"):
        registry.register_all(None)


def test_a_model_that_nobody_evaluated_is_registered_without_test_figures(project, tmp_path, monkeypatch) -> None:
    root = assistants.make(tmp_path / "run", "bottleneck", seed=80, loss=3.0)
    assistants.without(root, "evaluate_instruct", "forgetting_instruct")
    monkeypatch.chdir(root)
    new = {version.name: version for version in registry.register_all(None)}
    assert set(new) == {NAME, ADAPTER}
    tags = new[NAME].tags
    assert not [key for key in tags if key.startswith(("test.", "forgetting."))] and tags["served_as"] == "adapter"
    assert "evaluate_run" not in tags and tags["run.alignment_instruct"], "its alignment was measured all the same"
    assert tags["weights"] == "bottleneck.safetensors" and by_strategy()["lora"].aliases == ("challenger",)


def test_compare_puts_figures_and_answers_side_by_side(project) -> None:
    found = compare.compare(NAME, [version.version for version in map(by_strategy().get, ("lora", "full"))])
    lora, full = found["versions"]
    assert json.loads(json.dumps(found)) == found and lora["strategy"] == "lora"
    assert lora["test"]["loss"] == assistants.interval(2.0) and lora["test"]["base_loss"] == assistants.interval(2.4)
    assert lora["test"]["rows"] == assistants.TEST_ROWS and lora["test"]["base_rules"] == assistants.interval(0.26)
    assert lora["forgetting"] == {"boolq": assistants.interval(0.1, 0.2 + 0.01),
                                  "general": assistants.interval(0.1, 0.02)}
    assert lora["proof"]["equal_greedy_tokens"] == 1.0 and full["proof"] is None
    assert lora["seconds"] == 2.5 * 3 + 2.5 * 4  # the training and its merge
    assert found["differing_parameters"]["method"] == {lora["version"]: "lora", full["version"]: "full"}
    (pair,) = found["paired"]
    rows = {name: pq.read_table(project[name] / "artifacts/evaluated/instruct/rows.parquet").to_pydict()
            for name in ("lora", "full")}
    shared = [i for i, tokens in enumerate(rows["lora"]["tokens"]) if rows["full"]["tokens"][i] == tokens]
    total = sum(rows["lora"]["tokens"][i] for i in shared)
    expected = sum(rows["full"]["instruct"][i] - rows["lora"]["instruct"][i] for i in shared) / total
    assert (pair["version"], pair["against"]) == (full["version"], lora["version"])
    assert pair["metric"] == "held-out loss" and pair["rows"] == len(shared) > 0
    assert pair["difference"] == pytest.approx(expected) and pair["low"] <= expected <= pair["high"]
    assert found["answers"][0] == {
        "id": "p0", "prompt": assistants.PROMPTS[0], "base": "base 0",
        "versions": {lora["version"]: "answer 0 of 10", full["version"]: "answer 0 of 12"}}


def test_answers_are_shown_as_text_whatever_they_hold(project) -> None:
    found = compare.compare(NAME)
    version = found["versions"][0]["version"]
    found["answers"][1]["versions"][version] = "[bold]a|b[/]\n<script>\x1b[31m\x07"
    shown = text.to_terminal(found, 110)
    assert "Answers to the same prompts" in shown and "[bold]a|b[/]" in shown
    assert "\x1b" not in shown and "\x07" not in shown and max(map(len, shown.splitlines())) <= 110
    for fact in ("held-out loss", "of the base", "forgetting boolq", "validation perplexity", "answer 0 of 10"):
        assert fact in shown, fact
    assert "test accuracy" not in shown
    table = [line for line in text.to_markdown(found).splitlines() if line.startswith("|")]
    assert any("[bold]a\\|b[/]<br>&lt;script>" in line for line in table)
    assert "Name a &lt;b>warm&lt;/b> film." in "\n".join(table)
    start = next(i for i, line in enumerate(table) if line.startswith("| prompt | base | version 1 |"))
    assert len({line.replace("\\|", "").count("|") for line in table[start:]}) == 1
