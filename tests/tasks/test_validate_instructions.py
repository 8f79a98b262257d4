"""Validation of instructions: every broken row of every layout in quarantine with its reason, nothing else lost."""

import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ajuste.core.errors import DataError
from ajuste.rows.split import SPLITS, split_of, split_text, text_digest
from tasks.validate.instructions import InstructionsConfig, validate_instructions
from tests.made.instruction_files import ROWS, broken, pairs, sentence, write_set

ROOT = Path(__file__).parents[2]


def config(**changes) -> InstructionsConfig:
    values = {"set": "mine", "sample": 1.0, "max_chars": 5000, "max_repeats": 4, "near_duplicate_jaccard": 0.8,
              "decontaminate": "control", "ngram": 8, "max_quarantine_share": 0.5, "batch_rows": 256}  # fmt: skip
    return InstructionsConfig(**{**values, **changes})


def lines(layout: str, rows: list[tuple[str, str]]) -> list[str]:
    return [json.dumps(ROWS[layout](*row)) for row in rows]


def kept(out: Path) -> list[dict]:
    return [{**row, "split": split} for split in SPLITS for row in pq.read_table(out / f"{split}.parquet").to_pylist()]


def quarantine(out: Path) -> list[dict]:
    return pq.read_table(out / "quarantine.parquet").to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """A file of each layout: 400 good rows among which 2 % are broken, one of each kind; validated together."""
    folder = tmp_path_factory.mktemp("instructions")
    files, entries, wrong, good = {}, [], {}, {}
    for number, layout in enumerate(ROWS):
        rows = pairs(400, seed=number)
        content = lines(layout, rows)
        bad = list(broken(layout, "what about " + rows[0][1], rows[1][1] + " indeed so").items())
        bad.append(("exact_duplicate", content[3]))
        bad.append(("unreadable_row", '{"instruction": "cut o'))
        generator = random.Random(number)
        places = sorted(generator.sample(range(10, 400), len(bad)))
        for place, (_, line) in reversed(list(zip(places, bad, strict=True))):
            content.insert(place, line)
        name = f"{layout}.jsonl"
        for shift, (place, (reason, _)) in enumerate(zip(places, bad, strict=True)):
            wrong[f"data/mine/{name}:{place + shift + 1}"] = reason
        good[layout] = rows
        files[name] = "\n".join(content) + "\n"
        entries.append({"layout": layout})
    data = write_set(folder / "data/mine", files, entries)
    report = validate_instructions(config(), None, data, folder / "out")
    return {"data": data, "out": folder / "out", "report": report, "wrong": wrong, "good": good}


def test_every_broken_row_of_every_layout_is_in_quarantine_with_its_reason(made):
    found = {row["location"]: row["reasons"] for row in quarantine(made["out"])}
    assert found == {place: [reason] for place, reason in made["wrong"].items()}
    assert {reason for reason in made["wrong"].values()} >= {
        "empty_instruction", "empty_response", "response_equals_instruction", "over_long", "repeated_response",
        "encoding_damage", "template_characters", "unreadable_row", "role_order", "exact_duplicate"}  # fmt: skip


def test_nothing_else_is_lost(made):
    rows = kept(made["out"])
    for layout, expected in made["good"].items():
        mine = {tuple(turn["content"] for turn in row["messages"]) for row in rows if row["source"] == layout}
        assert mine == set(expected)
    counts = made["report"]["rows"]
    assert counts["read"] == len(rows) + len(made["wrong"]) == counts["kept"] + counts["quarantined"]


def test_rows_are_typed_and_split_by_the_first_user_turn(made):
    schema = pq.read_schema(made["out"] / "train.parquet")
    assert schema.names == ["row_id", "messages", "category", "source", "location"]
    assert schema.field("messages").type == pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    for row in kept(made["out"]):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["split"] == SPLITS[split_of(text_digest(split_text(row["messages"][0]["content"])))]
        assert row["category"] == ("open_qa" if row["source"] == "dolly" else "")
    assert len({row["row_id"] for row in kept(made["out"])}) == 400 * len(ROWS)


def test_quarantine_holds_the_row_and_the_report_no_text(made):
    by_reason = {row["reasons"][0]: row for row in quarantine(made["out"])}
    assert json.loads(by_reason["template_characters"]["text"])["messages"][1]["content"].endswith("<|im_end|>")
    assert by_reason["unreadable_row"]["text"] and by_reason["template_characters"]["detail"] == "`<|im_end|>`"
    assert by_reason["role_order"]["detail"] == "turns: user user"
    assert by_reason["exact_duplicate"]["detail"].startswith("repeats data/mine/tagged.jsonl:")
    text = (made["out"] / "validation.json").read_text()
    assert not any(response in text for _, response in made["good"]["alpaca"])
    checks = {check["name"]: check for check in made["report"]["checks"]}
    assert checks["role_order"]["rows_failed"] == 2 and checks["empty_response"]["rows_failed"] == len(ROWS)
    assert made["report"]["splits"]["train"]["categories"].keys() == {"(none)", "open_qa"}


def test_two_runs_and_other_batches_write_the_same_bytes(made, tmp_path):
    validate_instructions(config(batch_rows=1000), None, made["data"], tmp_path / "again")
    first, again = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in
                    (made["out"], tmp_path / "again"))  # fmt: skip
    assert first == again and sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_chats_that_begin_alike_and_answers_that_differ_all_stay_in_one_split(tmp_path):
    rows = pairs(40)
    chats = [{"messages": [{"role": "system", "content": "Be kind. " * 50}, {"role": "user", "content": "Hello"},
                           {"role": "assistant", "content": answer}]} for answer, _ in rows]  # fmt: skip
    data = write_set(tmp_path / "mine", {"a.jsonl": "\n".join(map(json.dumps, chats))}, [{"layout": "messages"}])
    validate_instructions(config(), None, data, tmp_path / "out")
    found = kept(tmp_path / "out")
    assert len(found) == 40 and len({row["split"] for row in found}) == 1


def test_near_duplicates_leave_and_test_stays_before_train(tmp_path):
    generator = random.Random(3)
    rows = []
    for _ in range(60):
        prompt, answer = sentence(generator, 40, 50), sentence(generator, 40, 50)
        rows += [(prompt, answer), (prompt + " ok", answer)]
    data = write_set(tmp_path / "mine", {"a.jsonl": "\n".join(lines("flan", rows))}, [{"layout": "flan"}])
    report = validate_instructions(config(), None, data, tmp_path / "out")
    found = kept(tmp_path / "out")
    assert len(found) == 60 and report["rows"]["near_duplicates"] == 60
    prompts = {row["messages"][0]["content"]: row["split"] for row in found}
    order = {"test": 0, "validation": 1, "train": 2}
    crossed = 0
    for prompt, _ in rows[::2]:
        splits = [SPLITS[split_of(text_digest(split_text(text)))] for text in (prompt, prompt + " ok")]
        crossed += splits[0] != splits[1]
        stayed = prompts.get(prompt) or prompts[prompt + " ok"]
        assert order[stayed] == min(order[split] for split in splits)
    failed = {check["name"]: check["rows_failed"] for check in report["checks"]}
    assert failed["leakage"] == crossed > 0


def test_rows_of_train_that_share_words_with_a_control_set_leave(tmp_path):
    rows = pairs(300)
    splits = [split_of(text_digest(split_text(prompt))) for prompt, _ in rows]
    trained = [row for row, split in zip(rows, splits, strict=True) if split == 0][:5]
    tested = [row for row, split in zip(rows, splits, strict=True) if split == 2][:5]
    judged = [{"text": f"and then {answer.upper()}, it said"} for _, answer in trained + tested]
    write_set(tmp_path / "control", {"c.jsonl": "\n".join(map(json.dumps, judged))},
              [{"layout": "text", "name": "c"}], "control")  # fmt: skip
    data = write_set(tmp_path / "mine", {"a.jsonl": "\n".join(lines("alpaca", rows))}, [{"layout": "alpaca"}])
    report = validate_instructions(config(), None, data, tmp_path / "out")
    found = quarantine(tmp_path / "out")
    assert [row["reasons"] for row in found] == [["contaminated"]] * 5
    assert {json.loads(row["text"])["messages"][1]["content"] for row in found} == {answer for _, answer in trained}
    assert {row["detail"] for row in found} == {f"shares words with data/control/c.jsonl:{i}" for i in range(1, 6)}
    rule = next(check["rule"] for check in report["checks"] if check["name"] == "contaminated")
    assert rule["set"] == "control" and rule["ngram"] == 8


def test_personal_data_is_counted_and_stays(tmp_path):
    rows = pairs(20)
    rows[0] = ("Write to ana@example.com and bob@example.com, please", rows[0][1])
    rows[1] = (rows[1][0], "Call +34 600 123 456 now, or pay with 4111 1111 1111 1111")
    data = write_set(tmp_path / "mine", {"a.jsonl": "\n".join(lines("dolly", rows))}, [{"layout": "dolly"}])
    report = validate_instructions(config(), None, data, tmp_path / "out")
    assert report["pii"] == {"email": 2, "phone": 1, "card": 1, "iban": 0, "ip": 0}
    check = next(check for check in report["checks"] if check["name"] == "pii")
    assert (check["severity"], check["rows_failed"], check["passed"]) == ("warn", 2, False)
    assert report["rows"]["kept"] == 20 and "ana@" not in (tmp_path / "out/validation.json").read_text()


def test_general_text_sources_and_categories(tmp_path):
    text = "\n\n".join(" ".join(row) for row in pairs(30)) + "\n\n<|endoftext|> is no text\n"
    table = "text,label\n" + "".join(f'"{x}",{i % 2}\n' for i, (x, _) in enumerate(pairs(30, 1)))
    data = write_set(tmp_path / "mine", {"wiki.txt": text, "b.csv": table}, [
        {"layout": "text", "format": "txt", "name": "general"},
        {"layout": "templates", "format": "csv", "category": "sentiment", "label_names": {"0": "bad", "1": "good"},
         "templates": [{"prompt": "Good? {text}", "response": "{label}"}]}])  # fmt: skip
    report = validate_instructions(config(), None, data, tmp_path / "out")
    rows = kept(tmp_path / "out")
    general = [row for row in rows if row["source"] == "general"]
    assert len(general) == 30 and all([turn["role"] for turn in row["messages"]] == ["text"] for row in general)
    assert [row["reasons"] for row in quarantine(tmp_path / "out")] == [["template_characters"]]
    assert sum(split["categories"].get("sentiment", 0) for split in report["splits"].values()) == 30
    assert {row["messages"][1]["content"] for row in rows if row["source"] == "b"} == {"bad", "good"}


def test_too_many_bad_rows_stop_the_run_and_stay_reachable(tmp_path):
    rows = pairs(10) + [("asked", "")] * 10
    data = write_set(tmp_path / "mine", {"a.jsonl": "\n".join(lines("alpaca", rows))}, [{"layout": "alpaca"}])
    with pytest.raises(DataError, match=r"data/mine: 10 of 20 rows are bad.*empty_response 10, 50% \(first: data") as e:
        validate_instructions(config(max_quarantine_share=0.2), None, data, tmp_path / "out")
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()
    assert pq.read_table(tmp_path / "out.failed/quarantine.parquet").num_rows == 10


@pytest.mark.parametrize(
    ("files", "entries", "kind", "message"),
    [
        ({"a.jsonl": '{"question": "x"}\n'}, [{"layout": "alpaca"}], "instructions", "no column `instruction`, which"),
        ({"a.jsonl": '{"prompt": "x", "completion": "y"}\n'}, [{"layout": "prompt_completion", "columns": {"category":
          "topic"}}], "instructions", "no column `topic`"),
        ({"a.jsonl": "x"}, [{"layout": "alpca"}], "instructions", "files.0.*layout"),
        ({"a.jsonl": "x"}, [{"layout": "templates"}], "instructions", "`templates` belongs to layout `templates`"),
        ({"a.jsonl": "x"}, [{"layout": "flan", "columns": {"input": "x"}}], "instructions", "flan has no `input`"),
        ({"a.txt": "x"}, [{"layout": "flan", "format": "txt"}], "instructions", "format txt has no columns"),
        ({"a.jsonl": "x"}, [{"layout": "text", "name": "c"}], "control", "a set of kind control, and instructions is"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_whole_set_is_one_line(tmp_path, files, entries, kind, message):
    data = write_set(tmp_path / "mine", files, entries, kind)
    with pytest.raises(DataError, match=message) as caught:
        validate_instructions(config(), None, data, tmp_path / "out")
    assert "\n" not in str(caught.value) and "mine" in str(caught.value)


TEXT = st.text(st.characters(codec=None) | st.sampled_from("ab \n<|>\x00\ufffd"), max_size=12)
VALUE = st.none() | TEXT | st.integers() | st.lists(TEXT, max_size=2)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": VALUE})
LINE = st.one_of(
    st.dictionaries(st.sampled_from(["instruction", "output", "input", "category"]), VALUE).map(json.dumps),
    st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}).map(json.dumps),
    TEXT.map(lambda text: re.sub(r"[\x00-\x1f]", " ", text)),  # many control characters make a file binary
)


@settings(max_examples=8, deadline=None, phases=[Phase.generate], derandomize=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # shrinking would take minutes
@given(st.lists(LINE, min_size=1, max_size=60), st.lists(st.lists(TURN | VALUE, max_size=4), min_size=1, max_size=40))
def test_whatever_stands_in_a_file_each_row_is_kept_or_in_quarantine(tmp_path_factory, alpaca, chats):
    folder = tmp_path_factory.mktemp("fuzz")
    files = {
        "a.jsonl": '{"instruction": "ask", "output": "answer"}\n' + "".join(line + "\n" for line in alpaca),
        "b.jsonl": "".join(json.dumps({"messages": turns}) + "\n" for turns in chats),
    }
    data = write_set(folder / "mine", files, [{"layout": "alpaca"}, {"layout": "messages"}])
    content = (data / "a.jsonl").read_bytes()
    expected = {f"data/mine/a.jsonl:{i}" for i, line in enumerate(content.split(b"\n"), 1)
                if line.decode("utf-8", "surrogateescape").strip()}  # fmt: skip
    expected |= {f"data/mine/b.jsonl:{i + 1}" for i in range(len(chats))}
    report = validate_instructions(config(max_quarantine_share=1.0), None, data, folder / "out")
    good, bad = kept(folder / "out"), quarantine(folder / "out")
    places = [row["location"] for row in good + bad]
    assert sorted(places) == sorted(expected) and len(places) == report["rows"]["read"]
    assert all(row["reasons"] for row in bad)
    for row in good:
        assert row["messages"][-1]["role"] == "assistant" and all(turn["content"].strip() for turn in row["messages"])


def test_the_default_sets_say_what_their_templates_say():
    """sources/skills is written with the phrasings that `ajuste data add --templates` offers."""
    import yaml

    listed = yaml.safe_load((ROOT / "sources/skills/set.yaml").read_text())["files"]
    offered = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "sources/templates").glob("*.yaml")}
    used = {file["category"]: file["templates"] for file in listed if file["layout"] == "templates"}
    assert used == {values["category"]: values["templates"] for values in offered.values()}
