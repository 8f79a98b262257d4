"""The registry holds reward models and PPO: linked to the assistant that they were made from, ranked honestly."""

import json
import subprocess
import sys

import pytest
import yaml

from ajuste.core.errors import DataError
from ajuste.learning.text import chat
from ajuste.models import reward
from ajuste.models.folder import sha256_of
from ajuste.tracking.comparing import compare
from ajuste.tracking.comparing import text as text
from ajuste.tracking.project import lock
from ajuste.tracking.registry import registry
from ajuste.tracking.runs import store as runs_store
from tests.tracking import assistants, rlhf
from tests.tracking.stored import stored, within
from tests.tracking.test_runs import history_of, run_of

NAME, REWARD = "assistant", "ratings-reward"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two runs in one store: a PPO whose gold rose, and one whose gold rose more, but from a worse SFT."""
    folder = tmp_path_factory.mktemp("rlhf")
    roots = {
        "good": rlhf.make(folder / "good"),
        "other": rlhf.make(folder / "other", 32, instruct_seed=11, loss=2.5, gold_gain=0.9, gold_gain_low=0.8),
    }
    with stored(folder, roots):
        yield folder, roots


@pytest.fixture
def project(store, monkeypatch):
    """In the folder of the first run."""
    folder, roots = store
    with within(folder, roots["good"], monkeypatch):
        yield roots


def of(root, name: str = NAME, folder: str = "ppo") -> registry.Version:
    """The version that was made from that run's model folder."""
    weights = root / "artifacts" / ("adapters" if name.endswith("-adapter") else "merged") / folder
    file = next(f for f in ("model.safetensors", "adapter_model.safetensors") if (weights / f).is_file())
    return next(v for v in registry.versions(name) if v.tags["sha256"] == sha256_of(weights / file))


def test_names_methods_and_links(project) -> None:
    assert registry.names() == [NAME, f"{NAME}-adapter", REWARD, f"{REWARD}-adapter"]
    root = project["good"]
    sft, ppo = of(root, folder="instruct"), of(root)
    assert (sft.tags["method"], ppo.tags["method"], ppo.tags["strategy"]) == ("sft", "ppo", "ppo")
    assert "base_version" not in sft.tags and ppo.tags["base_version"] == f"{NAME}/{sft.version}"
    assert ppo.tags["base_sha256"] == sft.tags["sha256"]
    assert ppo.tags["adapter_version"] == of(root, f"{NAME}-adapter").version
    assert of(root, f"{NAME}-adapter").tags["base_version"] == f"{NAME}/{sft.version}"
    judge = of(root, REWARD, "reward")
    assert judge.tags["base_version"] == f"{NAME}/{sft.version}" and judge.tags["method"] == "reward"
    assert judge.tags["adapter_version"] == of(root, f"{REWARD}-adapter", "reward").version
    card = json.loads((root / "artifacts/merged/reward/ajuste.json").read_text())
    assert float(judge.tags["bias"]) == card["bias"] and float(judge.tags["normalisation.gain"]) == 2.0


def test_figures_are_tags_and_metrics(project) -> None:
    tags = of(project["good"]).tags
    result = json.loads((project["good"] / "artifacts/evaluated/ppo/ppo.json").read_text())
    for tag, (figure, model) in {"gold": ("gold", "ppo"), "sft_gold": ("gold", "sft"), "ended": ("ended", "ppo"),
                                 "gold_gain": ("gold", "difference"), "proxy_gain": ("proxy", "difference")}.items():
        for bound in ("value", "low", "high"):
            key = f"test.{tag}" + ("" if bound == "value" else f".{bound}")
            assert float(tags[key]) == result[figure][model][bound], key
    assert float(tags["test.kl"]) == 3.5 and float(tags["test.distinct2_ratio"]) == 0.9
    assert "test.length_gain" not in tags and tags["test.rows"] == str(rlhf.PROMPTS)
    assert float(tags["forgetting.general"]) == 0.15 and float(tags["validation.gold_gain_low"]) == 0.04
    recorded = lock.stages()
    assert tags["judge.gold"] == recorded["gold"]["outs"][0]["md5"]
    assert tags["judge.reward"] == recorded["merge_reward"]["outs"][0]["md5"]
    assert float(tags["test.loss"]) == 2.03 and float(tags["test.rules"]) == 0.4 and tags["run.assistant_ppo"]
    tags = of(project["good"], REWARD, "reward").tags
    assert float(tags["test.accuracy_margin_1.5"]) == 0.85 and float(tags["test.ece"]) == 0.04
    assert float(tags["validation.accuracy"]) == 0.75 and tags["test.rows"] == "60"


def test_runs_hold_the_curves_of_ppo(project) -> None:
    run = next(run for run in run_of("ppo") if run.data.metrics["validation/gold_gain_low"] == 0.04)
    assert history_of(run.info.run_id, "curve/kl") == [(step, pytest.approx(0.8 * step)) for step in range(1, 7)]
    assert history_of(run.info.run_id, "curve/beta")[0] == (1, pytest.approx(0.06))
    assert run.data.metrics["test/gold_gain"] == 0.08 and run.data.params["beta"] == "0.05"
    results = {file.path for file in runs_store.client().list_artifacts(run.info.run_id, "results")}
    assert {f"results/{name}" for name in ("radar.json", "alarms.json", "samples.jsonl", "ajuste.json")} <= results
    (run, *_) = run_of("evaluate_ppo")
    assert run.data.metrics["gold/difference_low"] == pytest.approx(0.05) and run.data.metrics["kl/ppo"] == 3.5
    assert run.data.metrics["forgetting/general"] == 0.15
    parent = runs_store.client().get_run(run.data.tags["mlflow.parentRunId"])
    assert "| ppo | validation/gold_gain 0." in parent.data.tags["mlflow.note.content"]
    (run, *_) = run_of("reward")
    assert run.data.metrics["accuracy_margin_1.5/test"] == 0.85 and run.data.metrics["ece/test"] == 0.04
    assert history_of(run.info.run_id, "curve/validation_loss") == [(1, 0.6)]


def test_the_challenger_is_a_ppo_only_where_gold_says_so(project) -> None:
    aliased = [version for version in registry.versions(NAME) if version.aliases]
    assert [version.version for version in aliased] == [of(project["good"]).version]
    why = aliased[0].tags["alias.challenger"]
    sft = of(project["good"], folder="instruct").version
    assert f"0.1000 (at least 0.0400) above version {sft}" in why and "best validation loss 2.0000 of 1 versions" in why
    assert registry.summary()[NAME] == (f"challenger is version {aliased[0].version} (ppo, gold +0.080 against "
                                        f"{NAME}/{sft})")
    assert registry.versions(REWARD)[0].aliases == ("challenger",)


@pytest.mark.parametrize(("best", "gains", "expected"), [
    (1, {}, "1"),  # SFT alone
    (1, {3: (1, 0.1, 0.05)}, "3"),  # its own PPO, for sure better
    (1, {3: (1, 0.4, -0.01)}, "1"),  # maybe better
    (1, {3: (1, 0.0, 0.0)}, "1"),  # the update 0 was kept
    (1, {3: (2, 0.9, 0.8)}, "1"),  # made from the worse SFT: nothing says that it beats version 1
    (1, {3: (1, 0.1, 0.05), 4: (1, 0.2, 0.15)}, "4"),  # the larger gain
    (1, {3: (1, 0.1, 0.05), 4: (1, 0.2, 0.01)}, "3"),  # which may be chance: of overlapping ones the older
    (2, {3: (1, 0.1, 0.05)}, "2"),
])  # fmt: skip
def test_the_rule_of_the_challenger(best, gains, expected) -> None:
    from types import SimpleNamespace

    from ajuste.tracking.registry.rank import _best

    losses = {1: 2.0, 2: 2.5} if best == 1 else {1: 2.5, 2: 2.0}
    facts = {str(n): {"method": "sft", "validation.loss": str(loss), "parameters.trainable": "9",
                      "validation_rows": "a"} for n, loss in losses.items()}
    facts |= {str(n): {"method": "ppo", "base_version": f"{NAME}/{base}", "validation.gold_gain": str(gain),
                       "validation.gold_gain_low": str(low), "parameters.trainable": "9", "validation_rows": "b"}
              for n, (base, gain, low) in gains.items()}
    found = [SimpleNamespace(version=number, name=NAME, tags=tags) for number, tags in facts.items()]
    assert _best(found, facts)[0].version == expected
    assert _best([version for version in found if facts[version.version]["method"] == "ppo"], facts)[0] is None


def test_pages_say_what_was_found(project) -> None:
    client = runs_store.client()
    ppo, judge = of(project["good"]), of(project["good"], REWARD, "reward")
    page = client.get_model_version(NAME, ppo.version).description
    sft = of(project["good"], folder="instruct").version
    for said in (f"ppo, gold +0.080 against {NAME}/{sft}", "merged into its base", "gain 0.0800 [0.0500, 0.1100]",
                 "KL 3.5000", "distinct-2 0.90", f"it is {NAME}/{sft}", "general 0.1500 [0.1300, 0.1700]",
                 "as an assistant: held-out loss 2.0300"):
        assert said in page, said
    page = client.get_model_version(REWARD, judge.version).description
    for said in ("pair accuracy 0.750", "60 pairs", "1.5 or more 0.8500 [0.8000, 0.9000]", "Reward model"):
        assert said in page, said
    assert "Reward models" in client.get_registered_model(REWARD).description
    assert len(client.get_model_version(NAME, ppo.version).tags) <= 14


@pytest.mark.slow
def test_a_reward_model_scores_where_ajuste_is_not_installed(project, tmp_path) -> None:
    version = registry.resolve(REWARD)
    asked = {"prompt": ["Write a review.", "Write a review."], "response": ["It is good.", "A dull and slow film."]}
    code = ("import sys, json, mlflow, pandas; m = mlflow.pyfunc.load_model(sys.argv[1]);"
            "print(json.dumps(m.predict(pandas.DataFrame(json.loads(sys.argv[2]))).to_dict('list')))")
    done = subprocess.run([sys.executable, "-I", "-c", code, str(version.path.parents[1]), json.dumps(asked)],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model, tokenizer, _ = reward.load(version.path)
    rows = []
    for prompt, response in zip(*asked.values(), strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        rows.append([token for ids, _ in chat.segments(tokenizer, turns) for token in ids])
    expected = reward.score(model, rows).tolist()
    assert json.loads(done.stdout.strip().splitlines()[-1])["reward"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3 and not list(version.path.parents[1].rglob("*.pkl"))


def test_registering_again_changes_nothing(project) -> None:
    before = [registry.versions(name) for name in registry.names()]
    for root in project.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            assert registry.register_all(None) == []
    assert [registry.versions(name) for name in registry.names()] == before


def test_an_old_reward_model_does_not_get_the_figures_of_a_new_training(project, tmp_path, monkeypatch) -> None:
    root = rlhf.make(tmp_path / "run", seed=77, instruct_seed=77)
    recorded = yaml.safe_load((root / "dvc.lock").read_text())
    recorded["stages"]["merge_reward"]["deps"][0]["md5"] = "0" * 32 + ".dir"
    (root / "dvc.lock").write_text(yaml.safe_dump(recorded, sort_keys=False))
    monkeypatch.chdir(root)
    registry.register_all(None)
    tags = of(root, REWARD, "reward").tags
    assert not [key for key in tags if key.startswith("test.")] and "validation.accuracy" in tags


def test_without_a_passing_proof_a_policy_is_refused(project, tmp_path, monkeypatch) -> None:
    root = rlhf.make(tmp_path / "run", seed=78)
    proof = root / "artifacts/merged/ppo/proof.json"
    proof.write_text(json.dumps(json.loads(proof.read_text()) | {"max_logit_difference": 0.5}))
    rlhf.lock(root)
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="above merge.ppo.max_logit_difference 0.001"):
        registry.register_all(None)


def test_sft_and_ppo_side_by_side(project) -> None:
    sft, ppo = of(project["good"], folder="instruct").version, of(project["good"]).version
    found = compare.compare(NAME, [sft, ppo])
    assert json.loads(json.dumps(found)) == found
    first, second = found["versions"]
    assert (first["method"], second["method"], second["base_version"]) == ("sft", "ppo", f"{NAME}/{sft}")
    assert {"id": "te0", "prompt": "the film 0", "base": None,
            "versions": {sft: "sft says 0", ppo: "ppo says 0"}} in found["answers"]
    assert found["answers"][0]["versions"] == {sft: "answer 0 of 10", ppo: "ppo answers 0"}, "to the fixed prompts too"
    assert {pair["metric"] for pair in found["paired"]} == {"gold score", "proxy reward", "held-out loss"}
    loss = next(pair for pair in found["paired"] if pair["metric"] == "held-out loss")
    assert (loss["version"], loss["difference"], loss["verdict"]) == (sft, pytest.approx(-0.03), "better")
    assert second["test"]["loss"]["value"] == 2.03 and second["test"]["rougeL"]["value"] == 0.2
    lines = [json.loads(line) for line in
             (project["good"] / "artifacts/evaluated/ppo/answers.jsonl").read_text().splitlines()]
    gold = next(pair for pair in found["paired"] if pair["metric"] == "gold score")
    assert (gold["version"], gold["against"]) == (sft, ppo)  # the challenger is what others are held against
    assert gold["difference"] == pytest.approx(sum(r["gold_sft"] - r["gold_ppo"] for r in lines) / len(lines))
    assert found["differing_parameters"]["lr"] == {sft: "0.001", ppo: "0.0003"}
    assert found["differing_parameters"]["instruct.lr"] == {sft: None, ppo: "0.001"}
    assert second["seconds"] > first["seconds"]
    shown = text.to_terminal(found, 110)
    for fact in ("made from", "gold score", "KL, nats a response", "before it", "proxy reward", "held-out loss",
                 "12 prompts", "sft says 0", "validation gold gain"):
        assert fact in shown, fact


def test_a_table_shows_some_answers_and_says_so(project) -> None:
    found = compare.compare(NAME, [of(project["good"], folder="instruct").version, of(project["good"]).version])
    found["answers"] *= 3
    for shown in (text.to_terminal(found, 110), text.to_markdown(found)):
        assert shown.count("ppo says") + shown.count("ppo answers") == text.MOST
        assert "22 more answers: --format json has all 42" in shown


def test_two_policies_are_held_against_each_other_if_the_same_models_judged_them(project) -> None:
    good, other = of(project["good"]).version, of(project["other"]).version
    # another SFT, so another reward model, whose scale is its own; the gold scorer is the same
    found = compare.compare(NAME, [good, other])
    assert {pair["metric"] for pair in found["paired"]} == {"gold score", "held-out loss"}
    assert len(found["answers"]) == rlhf.PROMPTS + len(assistants.PROMPTS)


def test_reward_models_side_by_side(project) -> None:
    found = compare.compare(REWARD)
    numbers = [of(project[name], REWARD, "reward").version for name in ("good", "other")]
    assert numbers[0] in [row["version"] for row in found["versions"]] and found["answers"] == []
    pair = compare.compare(REWARD, numbers)["paired"][0]
    assert (pair["metric"], pair["rows"], pair["unit"], pair["verdict"]) == ("accuracy", 60, "pairs",
                                                                             "no clear difference")
    shown = text.to_markdown(compare.compare(REWARD, numbers))
    for fact in ("| margin 1.5 or more | 0.850 [0.800 0.900]", "| validation accuracy | 0.750", "| made from |"):
        assert fact in shown, fact
