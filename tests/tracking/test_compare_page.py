"""The comparison page: one file without scripts and outside hosts, right about 2 and about 50 versions, safe."""

import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ajuste.cli.main import app
from ajuste.core.errors import UsageError
from ajuste.tracking.comparing import compare
from ajuste.tracking.pages import compare_page as page
from ajuste.tracking.pages import compare_svg as svg
from tests.tracking.test_report import parsed

NAME = "reviews-classifier"
HOSTILE = "<script>alert('x')</script>\"&"


def many(found: dict, number: int) -> dict:
    """`number` versions, made of one by another number; each is 0.01 better than the last."""
    rows = []
    for index in range(1, number + 1):
        value = 0.3 + 0.01 * index
        row = {**found["versions"][index % 3], "version": str(index), "aliases": ["champion"] if index == 2 else []}
        row["test"] = {**row["test"], "accuracy": {"value": value, "low": value - 0.02, "high": value + 0.02},
                       "rows_digest": "a" if index < 4 else "b"}
        rows.append(row)
    pairs = [{"version": str(i), "against": "2", "metric": "accuracy", "difference": 0.01 * (i - 2),
              "low": 0.01 * (i - 2) - 0.02, "high": 0.01 * (i - 2) + 0.02, "rows": 60, "unit": "test rows",
              "verdict": "better" if i > 4 else "no clear difference"} for i in range(1, number + 1) if i != 2]
    differing = {"lr": {str(i): f"{i}e-5" for i in range(1, number + 1)}}
    return {**found, "versions": rows, "paired": pairs, "differing_parameters": differing, "same_test_rows": False}


def test_the_command_writes_a_page_of_all_versions(project: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", NAME, "--html", "--output", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    seen = parsed(tmp_path / "page.html")
    written = "".join(seen.text)
    assert f"{NAME}: 3 versions" in written and "challenger: version 3 (lora)" in written
    tags = [tag for tag, _ in seen.seen]
    assert "script" not in tags and "link" not in tags and "img" not in tags and tags.count("svg") >= 4
    addresses = [value for _, attrs in seen.seen for key, value in attrs.items() if key in ("href", "src")]
    assert addresses == [] and "http" not in (tmp_path / "page.html").read_text().replace("http-equiv", "")
    for heading in ("Quality over time", "Is the difference real?", "Curves", "Cost against quality",
                    "Parameters that differ", "Data and code", "History of the aliases"):
        assert heading in written
    assert "target_modules" in written and "best validation" in written


@pytest.mark.parametrize("number", [2, 50])
def test_every_version_is_in_every_picture(project: Path, tmp_path: Path, number: int) -> None:
    found = many(compare.compare(NAME), number)
    html = page.write_page(found, tmp_path / "page.html").read_text()
    parsed(tmp_path / "page.html")
    for index in range(1, number + 1):
        assert len(re.findall(rf"<title>version {index}[:( ]", html)) >= 1
        assert f"{index}e-5" in html
    quality = html[html.index("Quality over time") : html.index("Is the difference real?")]
    assert quality.count('class="dot') == number
    assert ("other test rows" in quality) == (number == 50)
    forest = html[html.index("Is the difference real?") : html.index("<h2>Curves")]
    assert forest.count('class="dot') == number - 1
    # few versions have a colour each, of many only those with an alias
    assert ("v-other" in quality) == (number == 50) and "v-champion" in quality


def test_texts_of_users_are_escaped(project: Path, tmp_path: Path) -> None:
    found = compare.compare(NAME)
    found["versions"][0] |= {"strategy": HOSTILE, "alias_history": {"challenger": HOSTILE}, "data": HOSTILE}
    found["differing_parameters"][HOSTILE] = {v["version"]: HOSTILE for v in found["versions"]}
    found["answers"] = [{"id": "1", "prompt": HOSTILE, "base": HOSTILE, "versions": {"1": HOSTILE, "2": "", "3": ""}}]
    html = page.write_page(found, tmp_path / "page.html").read_text()
    assert "<script" not in html and html.count("&lt;script&gt;") >= 6
    parsed(tmp_path / "page.html")


def test_a_page_of_one_untested_version(project: Path, tmp_path: Path) -> None:
    found = compare.compare(NAME, ["1"])
    found["versions"][0] |= {"test": {}, "seconds": None, "trained_run": None, "trained_parameters": {}}
    text = "".join(parsed(page.write_page(found, tmp_path / "page.html")).text)
    assert "No version was tested" in text and "No two of these versions" in text and "No cost differs" in text
    with pytest.raises(UsageError, match="is a folder"):
        page.write_page(found, tmp_path)


def centres(picture: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'class="dot [^"]*" cx="([\d.]+)" cy="([\d.]+)"', picture)]


def test_dots_stand_where_their_numbers_are() -> None:
    points = [svg.Point(str(i), "v-0", value, value - 0.1, value + 0.1) for i, value in enumerate((0.5, 0.6, 0.8))]
    (_, a), (_, b), (_, c) = centres(svg.over_versions(points, "accuracy"))
    assert (a - b) / (b - c) == pytest.approx(0.1 / 0.2, abs=0.02)  # up is higher
    rows = [("1", "v-0", -0.1, -0.2, 0.0, "x"), ("2", "v-0", 0.1, 0.0, 0.2, "x")]
    picture = svg.forest(rows, "difference")
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', picture)[1])
    (left, _), (right, _) = centres(picture)
    assert left < zero < right and zero - left == pytest.approx(right - zero, abs=0.2)
    # costs a factor of 1000 apart: equal factors are equal distances
    (x1, _), (x2, _), (x3, _) = centres(svg.scatter(list(zip((1, 10, 1000), points, strict=True)), "seconds", "a"))
    assert (x3 - x2) / (x2 - x1) == pytest.approx(math.log(100) / math.log(10), abs=0.02)
