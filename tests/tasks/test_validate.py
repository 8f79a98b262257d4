"""Validation of a user's own file: broken rows in quarantine with their reason, nothing else lost, same bytes twice."""

import csv
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import DataError
from ajuste.rows.clean import clean, damage
from ajuste.rows.split import SPLITS, split_of, split_text, text_digest
from tasks.validate.reviews import ReviewsConfig, validate_reviews

LABELS = ["bad", "fine", "good"]
EACH = 20  # broken rows of each kind: 2 % of 1,000
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def config(**changes) -> ReviewsConfig:
    values = {"set": "mine", "sample": 1.0, "max_chars": 20_000, "near_duplicate_jaccard": 0.8,
              "max_quarantine_share": 0.2, "min_class_share": 0.05, "batch_rows": 256}  # fmt: skip
    return ReviewsConfig(**{**values, **changes})


def make_set(
    folder: Path, rows: list[tuple[bytes, bytes]], labels: list[str] = LABELS, name: str = "mine.csv", **entry
) -> Path:
    """A set of one CSV file with columns review and sentiment; every field is quoted."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [b"review,sentiment"] + [b'"' + text.replace(b'"', b'""') + b'",' + label for text, label in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    file = {
        "path": name,
        "format": "csv",
        "columns": {"text": "review", "label": "sentiment"},
        "source": f"path:{name}",
    }
    values = {"kind": "classification", "labels": labels, "licence": "own", "files": [{**file, **entry}]}
    (folder / "set.yaml").write_text(yaml.safe_dump(values))
    return folder


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(10, 30)))


def broken_rows(generator: random.Random, good: list[tuple[bytes, bytes]]) -> dict[str, list[tuple[bytes, bytes]]]:
    """EACH rows of every kind; the rows they repeat or contradict are taken from `good`, all different."""
    taken = iter(generator.sample(range(len(good)), 3 * EACH))
    near = []
    for _ in range(EACH):
        text, label = good[next(taken)]
        near.append((text + b" " + generator.choice(WORDS).encode()[:2], label))
    return {
        "empty_text": [(generator.choice([b"", b"   ", b"<br />", b"&nbsp; "]), b"good") for _ in range(EACH)],
        "unknown_label": [(sentence(generator).encode(), generator.choice([b"", b"Good?", b"4"])) for _ in range(EACH)],
        "encoding_damage": [(sentence(generator).encode() + b" caf\xe9", b"bad") for _ in range(EACH)],
        "over_long_text": [(((sentence(generator).encode() + b" ") * 5000)[:100_000], b"bad") for _ in range(EACH)],
        "exact_duplicate": [(good[i][0].upper(), good[i][1]) for i in (next(taken) for _ in range(EACH))],
        "conflicting_label": [
            (good[i][0], b"bad" if good[i][1] != b"bad" else b"good") for i in (next(taken) for _ in range(EACH))
        ],
        "near_duplicate": near,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """1,000 rows of three classes, shuffled, with 2 % broken rows of each kind, validated."""
    generator = random.Random(0)
    good = [(sentence(generator).encode(), generator.choice(LABELS).encode()) for _ in range(1000 - 7 * EACH)]
    broken = broken_rows(generator, good)
    rows = [(row, "") for row in good] + [(row, kind) for kind, part in broken.items() for row in part]
    # what repeats another row comes after it, for of exact duplicates the first stays
    head, tail = rows[: len(good)], rows[len(good) :]
    generator.shuffle(tail)
    folder = tmp_path_factory.mktemp("validate")
    data = make_set(folder / "data", [row for row, _ in head + tail])
    report = validate_reviews(config(), None, data, folder / "out")
    kinds = {f"data/mine/mine.csv:{i + 2}": kind for i, (_, kind) in enumerate(head + tail)}
    return {"good": good, "kinds": kinds, "out": folder / "out", "report": report, "data": data,
            "quarantine": pq.read_table(folder / "out/quarantine.parquet").to_pylist()}  # fmt: skip


def kept(out: Path) -> list[dict]:
    return [{**row, "split": split} for split in SPLITS for row in pq.read_table(out / f"{split}.parquet").to_pylist()]


def test_every_broken_row_is_in_quarantine_with_its_reason(made):
    found = {row["location"]: row["reasons"] for row in made["quarantine"]}
    alone = ("empty_text", "unknown_label", "encoding_damage", "over_long_text", "exact_duplicate", "conflicting_label")
    for place, kind in made["kinds"].items():
        if kind in alone:
            assert found[place] == [kind], (place, kind)
    near = [reasons for reasons in found.values() if "near_duplicate" in reasons]
    assert len(near) == EACH and all(set(reasons) <= {"near_duplicate", "leakage"} for reasons in near)


def test_nothing_else_is_lost(made):
    """In quarantine: the broken rows, one row of each near pair, and the row that a conflicting one contradicts."""
    rows = kept(made["out"])
    assert len(rows) + len(made["quarantine"]) == 1000 == made["report"]["rows"]["read"]
    assert len(made["quarantine"]) == 8 * EACH
    innocent = [row for row in made["quarantine"] if made["kinds"][row["location"]] == ""]
    assert all(row["reasons"] == ["conflicting_label"] or "near_duplicate" in row["reasons"] for row in innocent)
    texts = {row["text"]: LABELS[row["label"]] for row in rows}
    original = {text.decode(): label.decode() for text, label in made["good"]}
    assert all(original[text] == label for text, label in texts.items() if text in original)
    assert sum(text in original for text in texts) >= len(original) - 2 * EACH


def test_splits_are_by_text_and_share_nothing(made):
    rows = kept(made["out"])
    assert all(SPLITS[split_of(text_digest(split_text(row["text"])))] == row["split"] for row in rows)
    grams = [{split_text(row["text"])[i : i + 5] for i in range(len(row["text"]) - 4)} for row in rows]
    for i, one in enumerate(grams[::5]):
        assert all(len(one & other) < 0.8 * len(one | other) for j, other in enumerate(grams) if j != 5 * i)


def test_the_report_counts_up_and_holds_no_text(made):
    report, text = made["report"], (made["out"] / "validation.json").read_text()
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["empty_text"]["rows_failed"] == checks["over_long_text"]["rows_failed"] == EACH
    assert checks["conflicting_label"]["rows_failed"] == 2 * EACH
    assert checks["over_long_text"]["rule"]["max_chars"] == 20_000
    assert report["rows"]["kept"] == sum(split["rows"] for split in report["splits"].values())
    for split in report["splits"].values():
        assert split["rows"] == sum(split["labels"].values()) == split["sources"]["mine"]
    assert json.loads((made["out"] / "labels.json").read_text()) == LABELS
    assert not any(row["text"][:12] in text for row in made["quarantine"] if row["text"])
    assert str(made["out"].parent) not in text


def test_quarantined_text_is_kept_with_its_damage_written_out(made):
    damaged = [row for row in made["quarantine"] if row["reasons"] == ["encoding_damage"]]
    assert all(row["text"].endswith(" caf\\xe9") and row["detail"] == "1 damaged characters" for row in damaged)
    repeated = next(row for row in made["quarantine"] if row["reasons"] == ["exact_duplicate"])
    assert repeated["detail"].startswith("repeats data/mine/mine.csv:")


def test_two_runs_and_other_batches_write_the_same_bytes(made, tmp_path):
    validate_reviews(config(batch_rows=97), None, made["data"], tmp_path / "again")
    first, again = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (made["out"], tmp_path / "again")
    )
    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]  # nothing is left behind


def test_adding_rows_never_moves_one(made, tmp_path):
    before = {row["row_id"]: row["split"] for row in kept(made["out"])}
    generator = random.Random(7)
    with (made["data"] / "mine.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [tuple(f.encode("utf-8", "surrogateescape") for f in row) for row in list(csv.reader(file))[1:]]
    more = [(sentence(generator).encode(), b"good") for _ in range(300)]
    data = make_set(tmp_path / "data", more[:150] + rows + more[150:])
    validate_reviews(config(), None, data, tmp_path / "out")
    after = {row["row_id"]: row["split"] for row in kept(tmp_path / "out")}
    assert all(after[row_id] == split for row_id, split in before.items() if row_id in after)
    assert len(before.keys() & after.keys()) >= len(before) - 2 and len(after) > len(before) + 250


def test_too_many_bad_rows_stop_the_run_and_stay_reachable(made, tmp_path):
    with pytest.raises(DataError) as caught:
        validate_reviews(config(max_quarantine_share=0.1), None, made["data"], tmp_path / "out")
    message = str(caught.value)
    assert "160 of 1000 rows" in message and "conflicting_label 40, 4% (first: data/mine/mine.csv:" in message
    assert f"{tmp_path}/out.failed/quarantine.parquet" in message and "\n" not in message
    assert not (tmp_path / "out").exists()
    assert pq.read_table(tmp_path / "out.failed/quarantine.parquet").num_rows == 160
    assert not json.loads((tmp_path / "out.failed/validation.json").read_text())["checks"][-1]["passed"]
    validate_reviews(config(), None, made["data"], tmp_path / "out")
    assert not (tmp_path / "out.failed").exists()


def test_a_sample_is_part_of_the_whole(made, tmp_path):
    report = validate_reviews(config(sample=0.5), None, made["data"], tmp_path / "out")
    assert 400 < report["rows"]["read"] < 600
    assert {r["row_id"] for r in kept(tmp_path / "out")} - {r["row_id"] for r in kept(made["out"])} <= {
        r["row_id"] for r in made["quarantine"]
    }


def test_web_residue_is_cleaned_and_counted_and_what_is_left_is_warned_about(tmp_path):
    texts = [
        b"one<br /><br>two words here",
        b"salt &amp; pepper all over",
        b"the caf\xc2\x92s menu was long",
        b"a <b>bold</b> claim it is",
        b"it said &bogus; in the end",
        "Ã©trange text read twice".encode(),
        b"a perfectly plain sentence",
    ]
    data = make_set(tmp_path / "data", [(text, b"good") for text in texts])
    report = validate_reviews(config(), None, data, tmp_path / "out")
    assert report["cleaned"] == {"line_breaks": 1, "entities": 1, "windows_1252": 1}
    found = {row["text"] for row in kept(tmp_path / "out")}
    assert {"one\n\ntwo words here", "salt & pepper all over", "the caf’s menu was long"} <= found and len(found) == 7
    failed = {check["name"]: check["rows_failed"] for check in report["checks"] if not check["passed"]}
    assert failed["html_residue"] == 2 and failed["mojibake"] == 1
    assert failed["class_balance"] >= 6  # two classes have no row at all


def test_cleaning_by_hand():
    assert clean(" a<BR/>b\r\nc &#8217; &#x41; ")[0] == "a\nb\nc ’ A"
    assert clean("AT&T &amp;amp; &copy 5 < 6 > 4") == ("AT&T &amp; &copy 5 < 6 > 4", ["entities"])
    assert [damage(text) for text in ("fine\t\n ñ😀", "\0", "\ufffd\udce9", "\x81")] == [0, 1, 2, 1]


def test_label_names_translate_the_values_of_a_file(tmp_path):
    rows = [(f"text number {i} {sentence(random.Random(i))}".encode(), b"01"[i % 2 : i % 2 + 1]) for i in range(50)]
    data = make_set(tmp_path / "data", rows, ["no", "yes"], label_names={"0": "no", "1": "yes"})
    validate_reviews(config(), None, data, tmp_path / "out")
    assert all(row["label"] == int(row["text"].split()[2]) % 2 for row in kept(tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,sentiment\na,b\n", "mine.csv has no column `review`: its columns are text, sentiment"),
        (b"", "mine.csv is empty"),
        (bytes(range(256)) * 8, "mine.csv is a binary file"),
        (None, "mine.csv is missing"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_stops_the_run(tmp_path, content, message):
    data = make_set(tmp_path / "data", [(b"x", b"y")])
    (data / "mine.csv").unlink()
    if content is not None:
        (data / "mine.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        validate_reviews(config(), None, data, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": ["one"]}, "labels"), ({"labels": ["a", "a"]}, "label `a` is named twice"), ({"kind": "x"}, "kind"),
     ({"extra": 1}, "extra"), ({"files": []}, "files")],
)  # fmt: skip
def test_a_wrong_set_yaml_names_the_key(tmp_path, change, message):
    data = make_set(tmp_path / "data", [(b"x", b"y")])
    path = data / "set.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(DataError, match=message) as caught:
        validate_reviews(config(), None, data, tmp_path / "out")
    assert str(path) in str(caught.value)
