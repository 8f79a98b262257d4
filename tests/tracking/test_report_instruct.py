"""The report's section of instruction fine-tuning: the run's figures, honest intervals, and texts that stay texts."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ajuste.tracking.pages import report
from ajuste.tracking.pages import report_instruct as instruct
from tests.tracking import assistants, made_run
from tests.tracking.test_report import parsed, place  # noqa: F401


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", " ".join(parsed(page).text))


def test_figures_of_the_section_are_those_of_the_run(place):  # noqa: F811
    made_run.make(place)
    assistants.figures(place)
    said = text_of(report.write_report(Path("index.html")))
    for figure in ("On 40 answers that it never saw, the loss went from 2.400 to 2.000", "-0.400", "-0.450 to -0.350",
                   "perplexity 11.02 to 7.39", "ROUGE-L", "3 of 4", "the classifier 0.800", "+0.100 +0.080 to +0.120",
                   "forgotten", "no clear change", "answer 0 of 0", "base 1", "1,234", "role order", "contaminated",
                   "Assistant: learnt", "Lost on general", "3.1e-05", "W0 x"):
        assert figure in said, figure
    assert "not measured on this machine" in said and "secret" not in said
    answers = [{"id": str(i), "prompt": "p", "base": "b", "instruct": f"the answer {i}"} for i in range(11)]
    (place / "artifacts/evaluated/instruct/answers.jsonl").write_text(
        "".join(json.dumps(answer) + "\n" for answer in answers))
    drawn = report.write_report(Path("index.html")).read_text()
    assert "<summary>3 more</summary>" in drawn and all(f"the answer {i}<" in drawn for i in range(11))
    assert "<title>training loss</title>" in drawn and "validation loss: 0.3 at 3" in drawn


def test_seconds_a_review_are_those_of_the_run_that_dvc_lock_records(place):  # noqa: F811
    assistants.figures(place)
    (place / "artifacts/adapters/instruct").mkdir(exist_ok=True)
    for stage, (deps, _) in assistants.STAGES.items():
        for path in (*deps, assistants.STAGES[stage][1]):
            (place / path).mkdir(parents=True, exist_ok=True)
    assistants.lock(place, "lora")
    state = place / ".state/evaluate_instruct.json"
    found = json.loads(state.read_text()) | {"phases": {"reviews_instruct": 5.0, "reviews_classifier": 0.5}}
    state.write_text(json.dumps(found))
    said = text_of(report.write_report(Path("index.html")))
    assert "100.0 ms" in said and "10.0 ms" in said and "1,200 tokens/s" in said
    state.write_text(json.dumps(found | {"key": "of another run"}))
    assert "100.0 ms" not in text_of(report.write_report(Path("index.html")))


def test_the_mask_marks_the_response_and_its_end_of_turn(place):  # noqa: F811
    assistants.figures(place)
    (first, _) = instruct.section()["mask"]
    marked = re.findall(r'<span class="trained">(.*?)</span>', first["html"], re.S)
    assert marked == [f"{assistants.tiny.ANSWERED[0]}&lt;|im_end|&gt;"]
    assert "&lt;|im_start|&gt;user\nName a warm film." in first["html"] and "tokens are trained" in first["caption"]


def test_hostile_texts_are_text(place):  # noqa: F811
    made_run.make(place, hostile=True)
    assistants.figures(place, made_run.HOSTILE)
    page = parsed(report.write_report(Path("index.html")))
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags and tags.count("style") == 1
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)
    said = " ".join(page.text)
    for shown in ("answer 0 of 0<script>", "Name a <b>warm</b> film.<script>", "Name a warm film.<script>"):
        assert shown in said, shown
    assert not re.search(r"https?://|url\(|@import|src=|<link|<iframe", (place / "index.html").read_text())


@pytest.mark.parametrize("kept", [
    ["base", "encoded"], ["validated"], ["adapters"], ["evaluated"], ["merged"], ["evaluated/instruct"],
    ["evaluated/forgetting_base"], ["evaluated/forgetting_instruct"], ["adapters", "evaluated/forgetting_base"],
])  # fmt: skip
def test_a_page_is_made_from_what_there_is(kept, place, tmp_path_factory):  # noqa: F811
    whole = assistants.figures(tmp_path_factory.mktemp("whole"))
    for folder in kept:
        shutil.copytree(whole / "artifacts" / folder, place / "artifacts" / folder)
    drawn = report.write_report(Path("index.html"))
    assert "Instruction fine-tuning" in text_of(drawn)


def test_without_an_instruction_run_there_is_no_section(place):  # noqa: F811
    made_run.make(place)
    assert "Instruction fine-tuning" not in report.write_report(Path("index.html")).read_text()
    assert instruct.findings(instruct.section()) == []


def test_findings_are_honest(place):  # noqa: F811
    assistants.figures(place)
    found = instruct.section()
    states = {finding["what"]: finding["state"] for finding in instruct.findings(found)}
    assert states == {"Assistant: learnt": "good", "Assistant: what it knew": "warn", "Assistant: merge proof": "good"}
    found["held_out"]["difference"] = {"value": 0.1, "low": 0.05, "high": 0.2}
    assert instruct.findings(found)[0]["state"] == "bad"
    found["held_out"]["difference"] = {"value": -0.1, "low": -0.25, "high": 0.05}
    assert instruct.findings(found)[0]["state"] == "warn"
    found["proof"]["max_logit_difference"] = 1.0
    assert instruct.findings(found)[2]["state"] == "bad"
    found["proof"] = {"merged": False, "why": "prefix is no change of a matrix"}
    assert "prefix is no change" in instruct.findings(found)[2]["detail"]
    assert instruct.change({"low": -0.2, "high": -0.1, "value": -0.15}) == "better than before"
