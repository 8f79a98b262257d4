"""Text that no file can store, and values that JSON has no form for: the row in quarantine, the others kept."""

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.rows.read.as_json import as_json
from tests.made.added import add, asked, jsonl, project, sentence, texts


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)


def pairs(count: int) -> list[dict]:
    return [{"prompt": f"What of {sentence(i)}?", "chosen": sentence(i + 500), "rejected": sentence(i + 900)}
            for i in range(count)]  # fmt: skip


@pytest.mark.parametrize("make, key", [
    (texts, "text"), (texts, "label"), (asked, "instruction"), (asked, "output"), (pairs, "prompt"), (pairs, "chosen"),
    (pairs, "rejected")])  # fmt: skip
@pytest.mark.parametrize("end", ["cut\ud83d", "latin-1 \udce9"])
def test_a_lone_surrogate_in_any_column_is_encoding_damage_of_its_row_alone(make, key, end):
    rows = make(40)
    rows[4][key] += end
    found = add(jsonl("mine.jsonl", rows))
    assert list(found.reasons()) == [5] and "encoding_damage" in found.reasons()[5]
    assert len(found.kept) == 39


@pytest.mark.parametrize("make, key", [(texts, "text"), (asked, "category"), (asked, "source"), (pairs, "source")])
def test_a_byte_that_is_no_utf8_is_encoding_damage(make, key):
    rows = make(40)
    rows[4][key] = rows[4].get(key, "") + " cafXX"
    Path("mine.jsonl").write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode().replace(b"XX", b"\xe9"))
    found = add("mine.jsonl")
    assert found.reasons() == {5: ["encoding_damage"]} and len(found.kept) == 39


@pytest.mark.parametrize("more", [
    pa.array([datetime(2024, 1, 2)] * 40), pa.array([b"\x89PNG\xe9"] * 40), pa.array([Decimal("1.50")] * 40),
    pa.array([{"bytes": b"\xff", "at": datetime(2024, 1, 2)}] * 40),
    pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int32()))])  # fmt: skip
@pytest.mark.parametrize("kind", ["messages", "pairs"])
def test_a_bad_row_is_kept_whatever_its_other_columns_hold(more, kind):
    if kind == "messages":
        rows = [[{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
                for row in asked(40)]  # fmt: skip
        rows[17] = None
        table = pa.table({"messages": rows, "more": more})
    else:
        columns = {key: [row[key] for row in pairs(40)] for key in ("prompt", "chosen", "rejected")}
        ranks = [(2.0, 1.0)] * 17 + [(1.0, 2.0)] + [(2.0, 1.0)] * 22
        table = pa.table({**columns, "chosen_rating": [a for a, _ in ranks], "rejected_rating": [b for _, b in ranks],
                          "more": more})  # fmt: skip
    pq.write_table(table, "mine.parquet")
    found = add("mine.parquet")
    assert found.reasons() == {18: ["unreadable_row" if kind == "messages" else "order_contradicted"]}
    assert '"more": ' in found.quarantine[0]["text"]


def test_as_json_is_total_and_changes_nothing_that_json_can_hold():
    plain = {"a": [1, 2.5, None, True, "é\ud83d"], "b": {"c": "d"}}
    assert as_json(plain) == json.dumps(plain, ensure_ascii=False)
    odd = {(1, 2): {b"k": datetime(2024, 1, 2)}, "d": Decimal("1.50"), "s": {3}, "b": b"caf\xe9"}
    assert json.loads(as_json(odd)) == {
        "(1, 2)": {"k": "2024-01-02 00:00:00"}, "d": "1.50", "s": [3], "b": "caf\udce9"}  # fmt: skip
    deep: list = []
    deep.append(deep)
    assert "..." in as_json(deep)
    nest = None
    for _ in range(100_000):
        nest = [nest]
    assert json.loads(as_json(nest))
