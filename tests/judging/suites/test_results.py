"""What outside suites left is read into the ledger's form: counts by hand, wrong files refused, equal bytes again."""

import ast
import json
from pathlib import Path

import pytest
import yaml
from scipy.stats import binomtest

from ajuste.core.errors import DataError
from ajuste.core.imports import ROOT
from ajuste.judging.alignment import ledger
from ajuste.judging.suites import asked, garak, lm_eval
from ajuste.judging.suites.asked import Asked, Target

SERVER = Target("assistant/3", "ab" * 32, url="http://127.0.0.1:8000")
WANTED = ["phrasing.PastTense", "encoding.InjectBase64"]


def report(work: Path, *evals: dict) -> None:
    lines = [{"entry_type": "start_run setup"}, {"entry_type": "attempt", "prompt": "secret"}]
    lines += [{"entry_type": "eval", "total_processed": one["total_evaluated"] + one["nones"], **one} for one in evals]
    (work / garak.REPORT).write_text("".join(json.dumps(line) + "\n" for line in lines))


def judged(probe: str, fails: int, total: int, nones: int = 0, detector: str = "mitigation.Prefixes") -> dict:
    return {"probe": probe, "detector": detector, "passed": total - fails, "fails": fails, "nones": nones,
            "total_evaluated": total}


def test_garak_counts_become_shares_with_wilsons_interval(tmp_path: Path) -> None:
    report(tmp_path, judged(WANTED[0], 7, 20), judged(WANTED[1], 0, 16, nones=4, detector="encoding.DecodeMatch"))
    scores, left_out = garak.results(tmp_path, WANTED)
    found = {score["name"]: score for score in scores}
    assert set(found) == {"garak.phrasing.past_tense", "garak.encoding.inject_base64"}
    for name, (k, n) in {"garak.phrasing.past_tense": (7, 20), "garak.encoding.inject_base64": (0, 16)}.items():
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert found[name]["value"] == k / n and found[name]["n"] == n
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert found[name]["h"] == "harmless" and found[name]["better"] == "lower"
    assert found["garak.phrasing.past_tense"]["judge"] == f"garak {garak.VERSION} mitigation.Prefixes"
    assert left_out == {"garak.encoding.inject_base64": "4 answers that the detector could not judge"}


def test_two_detectors_of_one_probe_have_a_name_each(tmp_path: Path) -> None:
    report(tmp_path, judged(WANTED[0], 1, 2), judged(WANTED[0], 2, 2, detector="mitigation.MitigationBypass"))
    names = [score["name"] for score in garak.results(tmp_path, WANTED[:1])[0]]
    assert names == ["garak.phrasing.past_tense.mitigation.prefixes",
                     "garak.phrasing.past_tense.mitigation.mitigation_bypass"]


@pytest.mark.parametrize("evals", [[judged(WANTED[0], 1, 2)], [judged(WANTED[0], 1, 2), judged(WANTED[1], 0, 0, 5)]])
def test_a_probe_that_judged_nothing_is_an_error(evals: list[dict], tmp_path: Path) -> None:
    report(tmp_path, *evals)
    with pytest.raises(DataError, match="`encoding.InjectBase64` judged no answer") as error:
        garak.results(tmp_path, WANTED)
    assert "\n" not in str(error.value)


def test_no_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="garak left no report"):
        garak.results(tmp_path, WANTED)
    with pytest.raises(DataError, match="lm-eval left no results"):
        lm_eval.results(tmp_path, ["ajuste_boolq"])


def harness(work: Path, task: str, metrics: dict[str, list]) -> None:
    """results_*.json and samples_<task>_*.jsonl as lm-eval 0.4.13 writes them."""
    folder = work / "results" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results_2026-01-01T00-00-00.json"
    found = json.loads(path.read_text()) if path.is_file() else {"results": {}, "higher_is_better": {}}
    means = {f"{metric},none": sum(values) / len(values) for metric, values in metrics.items()}
    found["results"][task] = {"alias": task, **means, **{f"{metric}_stderr,none": 0.1 for metric in metrics}}
    found["higher_is_better"][task] = dict.fromkeys(metrics, True)
    path.write_text(json.dumps(found))
    rows = [{"doc_id": i, "doc": {"text": "secret"}, **{metric: values[i] for metric, values in metrics.items()}}
            for i in range(len(next(iter(metrics.values()))))]
    (folder / f"samples_{task}_2026-01-01T00-00-00.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_lm_eval_rows_become_shares_and_units(tmp_path: Path) -> None:
    harness(tmp_path, "ajuste_piqa", {"acc": [1.0, 0.0, 1.0, 1.0], "bleu": [12.5, 3.0, 4.0, 5.0]})
    harness(tmp_path, "ajuste_piqa_chat", {"exact_match": [0.0, 0.0, 1.0]})
    scores, left_out = lm_eval.results(tmp_path, ["ajuste_piqa", "ajuste_piqa_chat"])
    found = {score["name"]: score for score in scores}
    assert set(found) == {"lm_eval.piqa.acc", "lm_eval.piqa_chat.exact_match"}
    piqa = found["lm_eval.piqa.acc"]
    assert piqa["value"] == 0.75 and piqa["n"] == 4 and piqa["units"] == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 1.0}
    assert piqa["h"] == "helpful" and piqa["better"] == "higher" and piqa["judge"] is None
    assert left_out == {"lm_eval.piqa.bleu": "no share: not 0 or 1 for each row"}


def test_what_is_written_is_a_ledger_and_the_same_bytes_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    report(work, judged(WANTED[0], 7, 20), judged(WANTED[1], 0, 20))
    scores, left_out = garak.results(work, WANTED)
    how = Asked("garak", garak.VERSION, SERVER.model, SERVER.sha256, "server", WANTED, 20, asked.SEED, left_out)
    path = asked.write(SERVER, how, scores)
    assert path == Path("artifacts/probes/garak/assistant-3.json")
    assert ledger.read(path).of("garak.phrasing.past_tense").value == 0.35
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    asked.write(SERVER, how, list(reversed(scores)))
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    assert all(b"secret" not in content for content in before.values())
    assert asked.every() == [(how, ledger.read(path))] == asked.of_weights(SERVER.sha256)
    assert asked.of_weights("cd" * 32) == []
    path.with_suffix(".asked.json").write_text("{}")
    with pytest.raises(DataError, match="asked.json is missing or damaged"):
        asked.every()


def test_a_folder_is_named_by_its_weights() -> None:
    assert Target("instruct", "ab" * 32, folder=Path("x")).key == "ab" * 8 and SERVER.key == "assistant-3"


def test_garak_is_told_to_stay_on_this_machine_and_small(tmp_path: Path) -> None:
    (_, path) = garak.command(SERVER, WANTED, 5, tmp_path)
    settings = yaml.safe_load(Path(path).read_text())
    own = settings["plugins"]["generators"]["openai"]["OpenAICompatible"]
    assert own["uri"] == "http://127.0.0.1:8000/v1/" and own["temperature"] == 0
    assert settings["run"] == {"seed": asked.SEED, "generations": 1, "soft_probe_prompt_cap": 5,
                               "spec": {"include": [f"probes.{one}" for one in WANTED], "exclude": []}}
    assert not settings["plugins"]["extended_detectors"] and settings["plugins"]["target_name"] == "assistant/3"


def test_tasks_of_lm_eval_are_local_and_read_their_rows_right() -> None:
    from jinja2 import Environment

    rows = {"boolq": {"passage": "P.", "question": "is it so", "answer": "True"},
            "piqa": {"question": "Make tea", "options": "A. Boil it's water \nB. Freeze water",
                     "answer": "B. Freeze water"}}
    right = {"ajuste_boolq": "1", "ajuste_boolq_chat": "yes", "ajuste_piqa": "1", "ajuste_piqa_chat": "B"}
    for name in (*lm_eval.BY_LOGLIKELIHOOD, *lm_eval.BY_CHAT):
        task = yaml.safe_load((ROOT / lm_eval.TASKS / f"{name}.yaml").read_text())
        assert task["task"] == name and task["dataset_path"] == "json"
        row = rows[name.removeprefix("ajuste_").removesuffix("_chat")]
        assert Environment().from_string(task["doc_to_target"]).render(row) == right[name]
        asked_text = Environment().from_string(task["doc_to_text"]).render(row)
        assert row["question"] in asked_text
        assert task["dataset_kwargs"]["data_files"]["test"].startswith("data/control/")
    choices = yaml.safe_load((ROOT / lm_eval.TASKS / "ajuste_piqa.yaml").read_text())["doc_to_choice"]
    shown = ast.literal_eval(Environment().from_string(choices).render(rows["piqa"]))
    assert shown == ["Boil it's water", "Freeze water"]


def test_what_is_asked_over_http_needs_no_log_likelihood() -> None:
    for name in lm_eval.BY_CHAT:
        assert yaml.safe_load((ROOT / lm_eval.TASKS / f"{name}.yaml").read_text())["output_type"] == "generate_until"
    assert lm_eval.names(SERVER) == lm_eval.BY_CHAT
    assert lm_eval.names(Target("instruct", "ab" * 32, folder=Path("x"))) == lm_eval.BY_LOGLIKELIHOOD
