"""studies/*/dvc.yaml: each step depends on exactly the code it imports, and the points draw a picture and a table."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.imports import ROOT, closure

STEPS = {
    (path.parent.name, name): stage
    for path in sorted((ROOT / "studies").glob("*/dvc.yaml"))
    for name, stage in yaml.safe_load(path.read_text())["stages"].items()
}


@pytest.mark.parametrize("study,name", STEPS)
def test_a_step_depends_on_exactly_the_files_it_imports(study: str, name: str) -> None:
    expected = sorted(map(str, closure(Path(f"studies/{study}/{name}.py"))))
    assert [dep for dep in STEPS[study, name]["deps"] if dep.endswith(".py")] == expected


@pytest.mark.parametrize("study,name", STEPS)
def test_a_step_runs_in_the_projects_folder(study: str, name: str) -> None:
    assert STEPS[study, name]["wdir"] == "../.."
    assert STEPS[study, name]["cmd"].split(" ${")[0] == f"python -m studies.{study}.{name}"


def test_the_picture_and_the_table_of_data_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up points come out in the table, and two drawings are the same bytes."""
    spec = importlib.util.spec_from_file_location("draw", ROOT / "studies/data-size/draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    monkeypatch.setattr(draw, "POINTS", tmp_path / "points")
    monkeypatch.setattr(draw, "ARTIFACTS", tmp_path)
    for folder in ("points", "encoded/reviews", "evaluated/classify"):
        (tmp_path / folder).mkdir(parents=True)
    pq.write_table(pa.table({"row_id": ["x"] * 400}), tmp_path / "encoded/reviews/train.parquet")
    for i, strategy in enumerate(("frozen", "full", "lora")):
        for rows in (400, 100):
            value = 0.6 + i / 10 + rows / 4000
            accuracy = {"value": value, "low": value - 0.02, "high": value + 0.02}
            point = {"rows": rows, "strategy": strategy, "accuracy": accuracy, "test_rows": 50}
            name = f"points/100-{strategy}.json" if rows == 100 else f"evaluated/classify/{strategy}.json"
            if rows == 400:  # the default run's
                point = {"accuracy": accuracy, "rows": 50}
            (tmp_path / name).write_text(json.dumps(point))
    for name in ("one", "two"):
        monkeypatch.setattr(draw, "OUT", tmp_path / name)
        draw.main()
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    table = (tmp_path / "one" / "data-size.md").read_text()
    assert "| 100 | 0.625 (0.605 to 0.645) | 0.725 (0.705 to 0.745) | 0.825 (0.805 to 0.845) |" in table
    assert table.index("| 100 |") < table.index("| 400 |")
