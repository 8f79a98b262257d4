"""Encoded comparisons and prompts: ids by hand, margins and limits, what is left out is counted and named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from ajuste.core.errors import DataError, UsageError
from ajuste.learning.text import chat
from ajuste.rows.split import SPLITS
from tasks.encode.preferences import PreferencesConfig, encode_preferences
from tasks.validate.comparisons import KEPT, PROMPTS
from tests.made.preference_files import messages

MARGINS = (0.25, 0.5, 1.0, 3.0)


def config(**changes) -> PreferencesConfig:
    none = {"train": None, "validation": None, "test": None}
    values = {"max_tokens": 128, "max_prompt_tokens": 96, "min_margin": {"train": 1.0, "validation": 0.5, "test": 0.0},
              "rows": none, "prompts": none, "batch_rows": 7}  # fmt: skip
    return PreferencesConfig(**{**values, **changes})


def a_row(n: int, prompt: list[dict] | None = None, responses: list[str] | None = None, **more) -> dict:
    margin = MARGINS[n % 4]
    row = {"row_id": f"{(n + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}", "prompt": prompt or messages(f"Rate film {n}."),
           "responses": responses or [f"good film {n}", f"a bad film, {n} of them"], "ratings": [margin, 0.0],
           "agreement": 0.75, "margin": margin, "one_against_rest": 0.8, "split_half": 0.9, "source": "s",
           "location": f"data/x/a.jsonl:{n + 1}"}  # fmt: skip
    return {**row, **more}


def a_prompt(n: int, text: str = "Rate a film.", prefill: str = "the film is a good one") -> dict:
    return {"row_id": f"{(n + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}", "prompt": messages(text), "prefill": prefill,
            "source": "s", "location": f"data/x/a.jsonl:{n + 1}"}  # fmt: skip


def write(folder: Path, rows: list[dict], prompts: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        pq.write_table(pa.Table.from_pylist(rows, schema=KEPT), folder / f"{split}.parquet")
        pq.write_table(pa.Table.from_pylist(prompts, schema=PROMPTS), folder / f"prompts_{split}.parquet")
    (folder / "validation.json").write_text('{"set": "x"}')
    return folder


def read(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> Path:
    rows = [a_row(n) for n in range(40)]
    rows.append(a_row(40, messages("hi", "yes?", "which film?"), ["one", "two", "three"], ratings=None, agreement=None,
                      margin=None, one_against_rest=None, split_half=None))  # fmt: skip
    prompts = [a_prompt(n, prefill=f"the film {n} is a good") for n in range(20)] + [a_prompt(20, prefill="")]
    return write(tmp_path_factory.mktemp("made") / "preferences", rows, prompts)


def test_ids_are_those_of_a_generation_and_a_response_ends_its_turn(validated, tiny_decoder, tmp_path):
    report = encode_preferences(config(), None, validated, tiny_decoder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    given = {row["row_id"]: row for row in read(validated, "test")}
    rows = read(tmp_path / "out", "test")
    assert [row["row_id"] for row in rows] == list(given)  # a margin of 0 is asked for, and one row has none
    for row in rows:
        source = given[row["row_id"]]
        assert row["prompt_ids"] == chat.prompt_ids(tokenizer, source["prompt"])
        for ids, text in zip(row["responses"], source["responses"], strict=True):
            whole = chat.segments(tokenizer, [*source["prompt"], {"role": "assistant", "content": text}])
            assert row["prompt_ids"] + ids == [token for part, _ in whole for token in part]
            assert ids[-1] == chat.end_of_turn(tokenizer)[0] and chat.response_text(tokenizer, ids) == text
        carried = ("ratings", "agreement", "margin", "one_against_rest", "split_half", "source", "location")
        assert {name: row[name] for name in carried} == {name: source[name] for name in carried}
    split = report["splits"]["test"]
    assert report == json.loads((tmp_path / "out/encoding.json").read_text()) and report["set"] == "x"
    assert (split["rows"], split["responses"], split["prompts_cut"]) == (41, 83, 0)
    assert split["tokens"] == sum(len(row["prompt_ids"]) + len(ids) for row in rows for ids in row["responses"])


def test_prompts_end_with_the_first_words_of_their_answer(validated, tiny_decoder, tmp_path):
    report = encode_preferences(config(), None, validated, tiny_decoder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    asked = chat.prompt_ids(tokenizer, messages("Rate a film."))
    rows = read(tmp_path / "out", "prompts_train")
    assert len(rows) == 21 == report["splits"]["train"]["prompts"]["rows"]
    for row in rows:
        begun = row["prompt_ids"][len(asked) :]
        assert row["prompt_ids"][: len(asked)] == asked and len(begun) == row["prefill_tokens"]
        assert tokenizer.decode(begun) == row["prefill"]
    assert rows[-1]["prefill_tokens"] == 0


def test_margins_and_limits_choose_the_lowest_row_ids(validated, tiny_decoder, tmp_path):
    report = encode_preferences(config(rows={"train": 5, "validation": None, "test": 100},
                                       prompts={"train": 4, "validation": None, "test": None}), None, validated,
                                tiny_decoder, tmp_path / "out")  # fmt: skip
    given = read(validated, "train")
    enough = sorted(row["row_id"] for row in given if row["margin"] is None or row["margin"] >= 1.0)
    assert sorted(row["row_id"] for row in read(tmp_path / "out", "train")) == enough[:5]
    assert {row["margin"] for row in read(tmp_path / "out", "validation")} == {0.5, 1.0, 3.0, None}
    assert len(read(tmp_path / "out", "test")) == 41
    lowest = sorted(row["row_id"] for row in read(validated, "prompts_train"))[:4]
    assert sorted(row["row_id"] for row in read(tmp_path / "out", "prompts_train")) == lowest
    assert report["splits"]["train"]["rows"] == 5


def test_a_margin_of_rounded_means_counts_as_what_it_is(tmp_path, tiny_decoder):
    folder = write(tmp_path / "in", [a_row(0, margin=3.3 - 2.8)], [a_prompt(0)])  # 0.4999999999999996
    least = {"train": 0.5, "validation": 0.5, "test": 0.5}
    report = encode_preferences(config(min_margin=least), None, folder, tiny_decoder, tmp_path / "out")
    assert report["splits"]["train"]["rows"] == 1


def test_what_does_not_fit_is_cut_or_left_out_and_named(tmp_path, tiny_decoder, capsys):
    long = "a long film " * 60
    rows = [a_row(1), a_row(2, messages(f"{long} Rate it."), margin=3.0), a_row(3, responses=["good", long]),
            a_row(4, messages("say <|im_end|>"), margin=3.0)]  # fmt: skip
    prompts = [a_prompt(0), a_prompt(1, long), a_prompt(2, "a <|im_start|> film")]
    folder = write(tmp_path / "in", rows, prompts)
    least = {"train": 0, "validation": 0, "test": 0}
    report = encode_preferences(config(min_margin=least), None, folder, tiny_decoder, tmp_path / "out")
    split = report["splits"]["train"]
    assert (split["rows"], split["prompts_cut"]) == (2, 1) and split["rows_dropped"] == {"too_long": 1, "unwritable": 1}
    assert split["prompts"]["rows"] == 1 and split["prompts"]["rows_dropped"] == {"too_long": 1, "unwritable": 1}
    cut = next(row for row in read(tmp_path / "out", "train") if row["location"].endswith(":3"))
    assert len(cut["prompt_ids"]) + max(map(len, cut["responses"])) <= 128
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    assert tokenizer.decode(cut["prompt_ids"]).count("Rate it.") == 1  # the beginning went
    said = capsys.readouterr().err
    assert "comparisons of train: 1 prompts lost their beginning" in said
    assert "comparisons of train: 2 left out; first: data/x/a.jsonl:4: a response has" in said
    assert "prompts of train: 2 left out; first: data/x/a.jsonl:2: the prompt has" in said


def test_two_runs_and_other_batches_write_the_same_bytes(validated, tiny_decoder, tmp_path):
    for name, rows in (("one", 7), ("other", 1000)):
        encode_preferences(config(batch_rows=rows), None, validated, tiny_decoder, tmp_path / name)
    first, again = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert first == again


@pytest.mark.parametrize(
    ("rows", "prompts", "changes", "message"),
    [
        ([a_row(0)], [a_prompt(0)], {}, "no comparisons to encode with a margin of 1"),
        ([a_row(2, responses=["a", "b " * 300])], [a_prompt(0)], {}, "no comparisons to encode; left out: data/x"),
        ([a_row(2)], [], {}, "no prompts to encode: add data, or raise validate's `prompt_share`"),
        ([a_row(2)], [a_prompt(0)], {"max_prompt_tokens": 8}, "no prompts to encode; left out: .*prompt_tokens is 8"),
        ([], [], {}, "no comparisons to encode: add data"),
    ],
)
def test_nothing_left_is_one_line(tmp_path, tiny_decoder, rows, prompts, changes, message):
    folder = write(tmp_path / "in", rows, prompts)
    with pytest.raises(DataError, match=message) as caught:
        encode_preferences(config(**changes), None, folder, tiny_decoder, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_missing_inputs_name_the_stage(tmp_path, tiny_decoder, validated):
    with pytest.raises(UsageError, match="run `dvc repro validate_preferences`"):
        encode_preferences(config(), None, tmp_path / "preferences", tiny_decoder, tmp_path / "out")
    with pytest.raises(UsageError, match="run `dvc repro base_decoder`"):
        encode_preferences(config(), None, validated, tmp_path, tmp_path / "out")
