"""Study filters: what is planted is found, its ranges belong to nobody, one point on a tiny model, and the page."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml
from ajuste.rows.filters.filters import made
from ajuste.rows.parquet import MESSAGES
from studies.filters import draw, point
from studies.filters.planted import planted

STUDY = read_yaml(ROOT / "studies/filters/params.yaml")
SCHEMA = pa.schema([("row_id", pa.string()), ("messages", MESSAGES)]
                   + [(name, pa.string()) for name in ("category", "source", "location")])  # fmt: skip


def test_what_is_planted_is_found_whole_and_only_once() -> None:
    filter = made(STUDY["kinds"], STUDY["regions"])
    rows = planted(100, seed=0)
    assert len({row.secret for row in rows}) == len({row.question for row in rows}) == 100
    for row in rows:
        assert filter.find(row.question) == []
        (one,) = filter.find(row.answer)
        assert (one.kind, row.answer[one.start : one.end]) == (row.kind, row.secret)
    assert rows[:20] == planted(100, seed=0)[:20] and rows != planted(100, seed=1)
    assert {row.kind for row in rows} == {"email", "phone", "card", "iban", "national_id"}


def test_planted_rows_come_in_and_go_out_again(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "Ask"}, {"role": "assistant", "content": text}]
                for text in ("Fine.", "Write to ana@example.com, or to bob@example.com.", "Good.")]  # fmt: skip
    columns = {"row_id": ["1", "2", "3"], "messages": messages, "category": [""] * 3, "source": ["alpaca"] * 3,
               "location": ["x"] * 3}  # fmt: skip
    path, before = tmp_path / "train.parquet", pa.table(columns, schema=SCHEMA)
    pq.write_table(before, path)
    point.with_planted(path, planted(10, 0), 3)
    table = pq.read_table(path)
    assert table.num_rows == 33 and len(set(table["row_id"].to_pylist())) == 33
    removed = point.without_findings(path, made(STUDY["kinds"], STUDY["regions"]))
    assert removed == {
        "planted": {"card": 6, "email": 6, "iban": 6, "national_id": 6, "phone": 6, "rows": 30},
        "ordinary": {"email": 1, "rows": 1},
    }
    assert pq.read_table(path).to_pylist() == [before.to_pylist()[i] for i in (0, 2)]


def a_point(name: str, loss: float, said: int, removed: dict) -> dict:
    people = [{"kind": "card", "nll": 8.0, "tokens": 10, "said": i < said} for i in range(10)]
    rows = {"base": 0, "clean": 100, "planted": 200, "filtered": 98}[name]
    return {"name": name, "trained_rows": rows, "trained_tokens": 10 * rows, "removed": removed,
            "held_out": [[loss * n, n] for n in range(10, 40)], "people": people}  # fmt: skip


def test_the_page_says_what_the_points_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "POINTS", tmp_path)
    removed = {"planted": {"card": 100, "rows": 100}, "ordinary": {"email": 2, "rows": 2}}
    for name, loss, said in (("base", 2.0, 0), ("clean", 1.5, 0), ("planted", 1.6, 7), ("filtered", 1.5, 0)):
        found = a_point(name, loss, said, removed if name == "filtered" else {})
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    pages = []
    for name in ("one", "two"):
        monkeypatch.setattr(draw, "OUT", tmp_path / name)
        draw.main()
        pages.append((tmp_path / name / "filters.md").read_text())
    assert pages[0] == pages[1]
    row = "| ordinary rows and personal data | 200 | 2,000 | 1.600 | +0.100 (+0.100 to +0.100) | 7 of 10 (0.40 to 0.89)"
    assert row in pages[0]
    assert "| `card` | 100 | 0 |" in pages[0] and "| **rows in all** | 100 | 2 |" in pages[0]
    assert "the personal data of 7 of 10 people when it is asked; after filtering, of 0." in pages[0]
    assert "an interval that holds 0" in pages[0] and "10 times" in pages[0]


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a tiny base, 40 short instructions, and the study's params with fewer of all."""
    monkeypatch.chdir(tmp_path)
    from ajuste.cli.project.preset import apply

    for name in ("params.yaml", "presets/tiny.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, name)
    apply("tiny", Path("params.yaml"))
    shutil.copytree(base, "artifacts/base/decoder")
    validated = Path("artifacts/validated/instructions")
    validated.mkdir(parents=True)
    (validated / "validation.json").write_text('{"set": "instructions"}')
    for split, rows in (("train", 16), ("validation", 4), ("test", 6)):
        table = [
            {
                "row_id": f"{split}{i}", "category": "", "source": "alpaca", "location": "x",
                "messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}."}],
            }
            for i in range(rows)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), validated / f"{split}.parquet")
    values = STUDY | {"rows": {split: {"alpaca": n} for split, n in (("train", 12), ("validation", 2), ("test", 5))}}
    values |= {"people": 5, "repeats": 2, "max_new_tokens": 4, "instruct": STUDY["instruct"] | {"dtype": "float32"}}
    Path("studies/filters").mkdir(parents=True)
    Path("studies/filters/params.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.mark.slow
def test_the_points_differ_in_their_training_rows_alone(project: Path) -> None:
    found = {}
    for name in ("base", "planted", "filtered"):
        point.main(name)
        text = Path(f"artifacts/studies/filters/{name}.json").read_text()
        assert not any(row.secret in text or row.question in text for row in planted(5, 0))
        found[name] = json.loads(text)
    assert {name: one["trained_rows"] for name, one in found.items()} == {"base": 0, "planted": 22, "filtered": 12}
    assert found["filtered"]["removed"]["planted"]["rows"] == 10 and found["filtered"]["removed"]["ordinary"] == {}
    for one in found.values():
        assert [tokens for _, tokens in one["held_out"]] == [tokens for _, tokens in found["base"]["held_out"]]
        assert len(one["held_out"]) == 5 and len(one["people"]) == 5
    losses = {name: sum(person["nll"] for person in one["people"]) for name, one in found.items()}
    assert losses["planted"] < min(losses["base"], losses["filtered"]), "trained rows are known better"
    with pytest.raises(UsageError, match="no point `all`: points are base, clean, planted, filtered"):
        point.main("all")
