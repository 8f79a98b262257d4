"""The report's sections of RLHF: the run's figures, the radar, honest findings, and texts that stay texts."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ajuste.tracking.pages import report, svg
from ajuste.tracking.pages import report_rlhf as section
from ajuste.tracking.pages.marks import number
from ajuste.tracking.registry.families.ppo import PPO
from ajuste.tracking.registry.families.reward import REWARD
from tests.tracking import assistants, made_run, rlhf
from tests.tracking.test_report import parsed, place  # noqa: F401
from tests.tracking.test_report_instruct import text_of


def test_figures_of_the_sections_are_those_of_the_run(place):  # noqa: F811
    made_run.make(place)
    rlhf.figures(place)
    answers = place / "artifacts/evaluated/ppo/answers.jsonl"
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    lines[0] |= {"prefill": "it is the", "ppo": "it is the best of all"}
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = text_of(report.write_report(Path("index.html")))
    for figure in ("Of 60 pairs that it never saw, the reward model puts 75.0% in the order of the people",
                   "0.850 0.800 to 0.900 0.875 0.900", "10 to 20 30",
                   "Calibration error 0.040 (0.020 to 0.060), Brier score 0.120, NLL 0.350",
                   "the better one 20 0.800", "neither 0 –", "Correlation of reward and length: +0.12",
                   "train 1,024, validation 128, test 128", "exact 3, contradictory 2, near 5",
                   "3 comparisons of 1 prompts", "47.0% (44.0% to 50.0%)", "9 of 1,280 pairs", "right on 71.0%",
                   "people agree on 77.0% of these, on 85.0%",
                   "reviews/rotten_tomatoes: train 40", "1 rows in quarantine", "equal texts",
                   "On 12 test prompts the reward model's score went from +0.05 to +0.80",
                   "0.600 to 0.680 (difference +0.080, +0.050 to +0.110)", "the weights of update 4 are kept",
                   "KL 31.0 nats a response is above 30", "+0.080 +0.050 to +0.110", "ratio 0.90", "3.50 3.10 to 3.90",
                   "right on 75.0% of 90 rated texts", "sft says 3", "-3.150", "F of PPO",
                   "Margin 1.5 or more: 0.850 [0.800, 0.900] of 30 pairs; one person against the others: 0.875",
                   "Proxy reward +0.750 [+0.650, +0.850] at 3.5 nats a response", "Different bigrams: 0.90",
                   "4.2e-06", "1.5 or more apart, where one person reaches 87.5%"):
        assert figure in said, figure
    assert "secret" not in said
    drawn = (place / "index.html").read_text()
    assert '<span class="given">it is the</span> best of all' in drawn and "<summary>6 more</summary>" in drawn
    assert drawn.count(">kept</text>") == 3  # radar's two panels, and gold once more at the top
    for title in ("KL: 0.8 at 1", "entropy: 2.4 at 1", "score - beta KL: 0.05 at 1", "half of them: 0.9 at 1.5"):
        assert title in drawn, title


def test_the_radar_has_proxy_and_gold_with_their_intervals(place):  # noqa: F811
    rlhf.figures(place)
    rows = json.loads((place / "artifacts/adapters/ppo/radar.json").read_text())
    (_, proxy), (_, gold) = section.radar_of(rows[::-1])
    for drawn, key in ((proxy, "proxy"), (gold, "gold")):
        assert drawn.count('class="bar ') == drawn.count("<circle") == len(rows)
        for row in rows:
            assert f"{key}: {row[key]['value']:.4g} at {number(row['sqrt_kl'])}" in drawn
    points = re.search(r'points="([^"]+)"', gold)[1].split()
    xs = [float(point.split(",")[0]) for point in points]
    assert xs == sorted(xs)  # by update, left to right
    mark = re.search(r'<line class="diagonal" x1="([\d.]+)"', gold)[1]
    assert float(mark) == xs[2]  # update 4


def test_a_curve_with_bounds_stays_inside_its_picture():
    drawn = svg.lines([svg.Line("a", "c-lora", [(0, 1.0), (1, 2.0)], bounds=[(-5.0, 1.5), (1.0, 9.0)])], "x", "y")
    ys = [float(y) for y in re.findall(r'class="bar c-lora" x1="[\d.]+" y1="([\d.]+)"', drawn)]
    ys += [float(y) for y in re.findall(r'class="bar c-lora"[^>]* y2="([\d.]+)"', drawn)]
    assert len(ys) == 4 and all(22 <= y <= 166 for y in ys)


def test_findings_are_honest(place):  # noqa: F811
    rlhf.figures(place)
    adapters, evaluated = Path("artifacts/adapters"), Path("artifacts/evaluated/ppo/ppo.json")
    judged = adapters / "reward/evaluation.json"

    def found() -> dict[str, tuple[str, str]]:
        return {what: (state, detail) for family in (REWARD, PPO) for state, what, detail in family.findings()}

    def states() -> dict[str, str]:
        return {what: state for what, (state, _) in found().items()}

    assert states() == {
        "Reward model: agrees with people": "good", "PPO: learnt what it was paid for": "good",
        "PPO: really better": "good", "PPO: still says different things": "good", "PPO: alarms": "warn",
    }
    result, pairs = (json.loads(path.read_text()) for path in (evaluated, judged))
    result["gold"]["difference"] = {"value": -0.05, "low": -0.1, "high": -0.01}
    evaluated.write_text(json.dumps(result))
    assert found()["PPO: really better"][0] == "bad" and "reward hacking" in found()["PPO: really better"][1]
    result["gold"]["difference"] = {"value": 0.05, "low": -0.1, "high": 0.2}
    result["distinct2"]["ratio"] = 0.79
    result["proxy"]["difference"] = {"value": 0.05, "low": -0.1, "high": 0.2}
    evaluated.write_text(json.dumps(result))
    pairs["test"]["by_margin"][2]["accuracy"] = {"value": 0.6, "low": 0.5, "high": 0.7}
    judged.write_text(json.dumps(pairs))
    (adapters / "ppo/alarms.json").write_text("[]")
    assert set(states().values()) == {"warn", "bad"} and "PPO: alarms" not in states()
    pairs["test"]["by_margin"] = []
    judged.write_text(json.dumps(pairs))
    assert states()["Reward model: better than a coin"] == "good"
    shutil.rmtree("artifacts")
    assert found() == {}


@pytest.mark.parametrize("kept", [
    ["validated"], ["adapters/reward"], ["adapters/ppo"], ["evaluated/ppo"], ["merged/ppo"], ["adapters"],
    ["validated", "adapters/reward", "evaluated/forgetting_base"],
])  # fmt: skip
def test_a_page_is_made_from_what_there_is(kept, place, tmp_path_factory):  # noqa: F811
    whole = rlhf.figures(tmp_path_factory.mktemp("whole"))
    for folder in kept:
        shutil.copytree(whole / "artifacts" / folder, place / "artifacts" / folder)
    said = text_of(report.write_report(Path("index.html")))
    assert ("Preferences and reward model" in said) == (kept != ["merged/ppo"])
    assert ("Radar for reward hacking" in said) == ("adapters/ppo" in kept or "adapters" in kept)


def test_comparisons_without_ratings_make_a_page(place):  # noqa: F811
    rlhf.figures(place)
    path = place / "artifacts/adapters/reward/evaluation.json"
    test = json.loads(path.read_text())["test"] | {"by_margin": [], "length_correlation": None,
                                                   "length_correlation_of_ratings": None}
    path.write_text(json.dumps({"test": test}))
    path = place / "artifacts/validated/preferences/quality.json"
    quality = json.loads(path.read_text()) | {"humans": None, "humans_all": None, "length": None, "label_noise": None,
                                              "position": {"rows": 9, "best_first": 0.5, "low": 0.2, "high": 0.8},
                                              "shared_texts": []}
    path.write_text(json.dumps(quality))
    said = text_of(report.write_report(Path("index.html")))
    assert "No ratings by several people" in said and "50.0% (20.0% to 80.0%)" in said


def test_without_rlhf_there_is_no_section(place):  # noqa: F811
    made_run.make(place)
    assistants.figures(place)
    said = text_of(report.write_report(Path("index.html")))
    assert "Preferences and reward model" not in said and "After PPO" not in said


def test_hostile_texts_are_text(place):  # noqa: F811
    made_run.make(place, hostile=True)
    rlhf.figures(place, made_run.HOSTILE)
    page = parsed(report.write_report(Path("index.html")))
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags and tags.count("style") == 1
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)
    said = " ".join(page.text)
    for shown in ("ppo says 0<script>", "reviews<script>", "is above 30<script>", "equal texts<script>"):
        assert shown in said, shown
    assert not re.search(r"https?://|url\(|@import|src=|<link|<iframe", (place / "index.html").read_text())
