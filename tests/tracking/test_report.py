"""The report page: honest from partial artifacts, safe against hostile data, self-contained, and shown by a browser."""

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ajuste.core import stage
from ajuste.tracking.pages import marks, report
from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages import report_trust as trust
from ajuste.tracking.pages import svg as svg
from ajuste.tracking.project import lock
from ajuste.tracking.registry import registry
from tests.tracking import made_run

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder as current folder and home."""
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    stage.home.cache_clear()
    yield tmp_path
    stage.home.cache_clear()


class Balanced(HTMLParser):
    """Collects the tags, and fails on a tag that closes another than the last one opened."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


def parsed(path: Path) -> Balanced:
    parser = Balanced()
    parser.feed(path.read_text(encoding="utf-8"))
    assert not parser.open
    return parser


def test_a_page_is_made_from_nothing(place):
    text = report.write_report(Path("reports/index.html")).read_text()
    assert "Nothing is evaluated yet" in text and "Nothing is registered" in text
    assert not (place / "mlruns").exists()  # looking does not make a database


@pytest.mark.parametrize(
    "kept",
    [[], ["validated"], ["validated", "encoded"], ["merged"], ["evaluated"], ["merged", "adapters", "evaluated"]],
)
def test_a_page_is_made_from_partial_artifacts(place, kept):
    made_run.make(place)
    for folder in (place / "artifacts").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    page = parsed(report.write_report(Path("index.html")))
    assert [tag for tag, _ in page.seen].count("h1") == 1


def test_a_validation_that_stopped_the_run_is_shown(place):
    made_run.make(place)
    folder = place / "artifacts/validated/reviews"
    folder.rename(folder.with_name("reviews.failed"))
    shutil.rmtree(place / "artifacts/evaluated")
    path = folder.with_name("reviews.failed") / "validation.json"
    path.write_text(path.read_text().replace('"passed": true', '"passed": false'))
    text = report.write_report(Path("index.html")).read_text()
    assert '<li class="bad"><b>Data checks</b>1 failed: empty text (12 rows)' in text


def test_hostile_labels_and_names_are_text(place):
    made_run.make(place, hostile=True)
    page = parsed(report.write_report(Path("index.html")))
    tags = [tag for tag, _ in page.seen]
    assert "script" not in tags and tags.count("style") == 1
    assert any("<script>alert('x')</script>" in text for text in page.text)  # shown, not run
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)


def test_the_page_is_self_contained_and_shows_no_text_of_rows(place):
    made_run.make(place, hostile=True)
    text = report.write_report(Path("index.html")).read_text()
    assert not re.search(r"https?://|url\(|@import|src=|<link|<iframe", text)
    assert "secret" not in text  # the texts in quarantine


def test_figures_of_the_page_are_those_of_the_run(place):
    made_run.make(place)
    text = " ".join(parsed(report.write_report(Path("index.html"))).text)
    for figure in ("80.6%", "0.779", "0.832", "148,226", "0.65%", "91.0 MB", "adapter 600.0 kB", "4.8e-07", "33,530"):
        assert figure in text, figure


def test_the_study_is_drawn_where_it_was_run(place):
    made_run.make(place)
    assert "Few data against more data" not in report.write_report(Path("index.html")).read_text()
    for rows in (100, 400):
        point = {
            "strategy": "lora",
            "rows": rows,
            "test_rows": 888,
            "accuracy": {"value": 0.6, "low": 0.5, "high": 0.7},
        }
        made_run.write(place / f"artifacts/studies/data-size/{rows}-lora.json", point)
    page = "|".join(parsed(report.write_report(Path("index.html"))).text)
    assert "Few data against more data" in page and "LoRA: 0.806 at 4,000" in page  # the run itself


def test_times_of_another_run_are_not_shown(place):
    made_run.make(place)
    assert data.strategies()[1]["seconds"] is not None
    path = Path("dvc.lock")
    path.write_text(path.read_text().replace("tasks.classify.full", "tasks.classify.full --again"))  # another stage key
    full = next(row for row in data.strategies() if row["id"] == "full")
    assert full["seconds"] is None and full["peak_memory_mb"] is None
    assert "not measured on this machine" in report.write_report(Path("index.html")).read_text()


def test_the_best_is_chosen_on_validation_not_on_test(place):
    made_run.make(place)
    result = place / "artifacts/evaluated/classify/frozen.json"
    result.write_text(result.read_text().replace('"value": 0.743', '"value": 0.999'))
    assert trust.verdict(data.strategies(), data.predictions())["best"]["id"] == "lora"


def test_versions_and_aliases_stand_in_table_and_lineage(place, monkeypatch):
    made_run.make(place)
    tags = {"strategy": "full", "sha256": "e" * 64, "stage_key": lock.stage_key("classify_full")}
    found = [
        registry.Version("reviews-classifier", "7", "champion", None, tags, "run", ("champion", "challenger")),
        registry.Version("reviews-classifier", "6", None, None, tags | {"stage_key": "of an earlier run"}, "run"),
    ]
    monkeypatch.setattr(registry, "names", lambda: ["reviews-classifier"])
    monkeypatch.setattr(registry, "versions", lambda name: found)
    page = parsed(report.write_report(Path("index.html")))
    text = "|".join(page.text)
    assert "version 7" in text and "@champion" in text and "@challenger" in text and "e" * 12 in text
    assert "version 6" not in text  # in the table alone, as 6: this run did not make it


def test_a_registry_that_does_not_answer_is_named_and_the_page_is_made(place, monkeypatch):
    def unreachable():
        raise stage.UsageError("MLflow's store http://nowhere does not answer")

    monkeypatch.setattr(registry, "names", unreachable)
    assert "nowhere does not answer" in report.write_report(Path("index.html")).read_text()


def test_a_leader_that_is_no_better_than_guessing_is_not_called_the_best(place):
    made_run.make(place)
    for strategy in ("frozen", "full", "lora"):
        result = place / f"artifacts/evaluated/classify/{strategy}.json"
        found = json.loads(result.read_text())
        result.write_text(json.dumps(found | {"accuracy": {"value": 0.52, "low": 0.48, "high": 0.56}}))
    assert "leads, but no better than guessing" in report.write_report(Path("index.html")).read_text()


def test_findings_turn_bad(place):
    made_run.make(place)
    proof = {"max_logit_difference": 2e-4, "tolerance": 1e-4, "equal_predictions": 1.0}
    provenance = {"commit": "c" * 40, "dirty": False, "stale": ["classify_full"], "data": "", "lock": ""}
    best = trust.verdict(data.strategies(), data.predictions())
    best["accuracy"] = {"value": 0.5, "low": 0.45, "high": 0.55}
    states = {f["what"]: f["state"] for f in trust.findings(best, {}, {}, {}, proof, provenance)}
    assert states["Better than guessing"] == states["Merge proof"] == states["Can be made again"] == "bad"
    assert states["Data checks"] == "unknown"
    assert states["Enough test rows"] == "good"


def test_few_test_rows_are_named_even_when_all_are_right(place):
    made_run.make(place)
    best = trust.verdict(data.strategies(), data.predictions()) | {"rows": 40}
    best["accuracy"] = {"value": 1.0, "low": 1.0, "high": 1.0}
    provenance = {"commit": "", "dirty": False, "stale": [], "data": "", "lock": ""}
    found = {f["what"]: f for f in trust.findings(best, {}, {}, {}, {}, provenance)}
    assert found["Enough test rows"]["state"] == "warn" and "0.912 and 1.000" in found["Enough test rows"]["detail"]


def test_rightness_refuses_other_rows():
    rows = [{"row_id": 1, "label": 1, "prediction": 1}, {"row_id": 2, "label": 1, "prediction": 0}]
    assert data.rightness(rows, rows) == ([True, False], [True, False])
    with pytest.raises(ValueError, match="same rows"):
        data.rightness(rows, rows[::-1])


def test_reliability_of_a_known_set():
    sure = [{"label": 0, "prediction": 0 if i < 9 else 1, "probabilities": [0.1, 0.9]} for i in range(12)]
    few = [{"label": 0, "prediction": 0, "probabilities": [0.55, 0.45]}] * 3  # under ten rows: not shown
    assert data.reliability(sure + few) == [(pytest.approx(0.9), 9 / 12)]


def test_averaging_keeps_the_mean_and_leaves_few_points_alone():
    points = [(float(step), float(step % 7)) for step in range(300)]
    means = data.averaged(points)
    assert len(means) == 30
    assert sum(y for _, y in means) / 30 == pytest.approx(sum(y for _, y in points) / 300)
    assert data.averaged(points[:59]) == points[:59]


def test_transitive_reduction_keeps_what_can_be_reached():
    names = "abcdef"
    edges = [(x, y) for x, y in itertools.combinations(names, 2) if (x, y) != ("b", "c")]
    kept = svg._reduced(edges)
    assert ("a", "f") not in kept and ("b", "d") in kept

    def reach(pairs, start):
        found, queue = set(), [start]
        while queue:
            here = queue.pop()
            new = {y for x, y in pairs if x == here} - found
            found |= new
            queue += new
        return found

    assert all(reach(kept, x) == reach(edges, x) for x in names)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.71, 0.84), (10, 500), (0.30001, 0.30004), (5, 5)])
def test_ticks_are_inside_and_few(low, high):
    found = marks.ticks(low, high)
    assert 1 <= len(found) <= 9 and all(low - 1e-9 <= mark <= high + 1e-9 for mark in found)


def test_points_that_are_not_finite_are_left_out():
    drawn = svg.lines([svg.Line("loss", "c-full", [(1, float("nan")), (2, 0.5), (3, 0.4)])], "step", "loss")
    assert "nan" not in drawn and drawn.count("<circle") == 2


def test_command_writes_the_page_and_names_it(place):
    import typer

    from ajuste.cli.models import report as command

    app = typer.Typer()
    app.command()(command.command)
    result = CliRunner().invoke(app, ["--output", "somewhere/page.html"])
    assert result.exit_code == 0 and "somewhere/page.html" in result.output
    assert Path("somewhere/page.html").stat().st_size > 5000
    with pytest.raises(stage.UsageError, match="is a folder"):
        report.write_report(place)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is missing: `make system` installs it")
def test_a_browser_shows_the_page(place, tmp_path_factory):
    made_run.make(place, hostile=True)
    page = report.write_report(Path("index.html")).resolve()
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ]
    done = subprocess.run(["chromium", *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=90)
    assert f"<title>Ajuste: reviews{made_run.HOSTILE.split('<')[0]}" in done.stdout
    assert "LoRA, level with full fine-tuning" in done.stdout
    assert done.stdout.count("<svg") >= 9
