"""Study filters: what is planted is found, its ranges belong to nobody, one point on a tiny model, and the page."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
