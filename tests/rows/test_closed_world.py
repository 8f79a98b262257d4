"""What changes the meaning of a row is used, refused or in quarantine; every other dropped column is named once."""

import json

import pytest

from ajuste.core.errors import DataError
from tests.made.added import add, asked, jsonl, project, sentence, texts
from tests.made.stand_in import stand_in


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


CALL = [{"id": "c0", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}]


def chats(count: int, role: str = "role", said: str = "content", names=("user", "assistant")) -> list[list[dict]]:
    return [[{role: names[0], said: row["instruction"]}, {role: names[1], said: row["output"]}]
            for row in asked(count)]  # fmt: skip


@pytest.mark.parametrize("column, value", [
    ("tools", [{"type": "function"}]), ("functions", [{"name": "f"}]), ("weight", 0), ("weight", 0.5),
    ("train", False), ("history", [["a", "b"]]), ("input", "more"), ("reasoning_content", "hm")])  # fmt: skip
@pytest.mark.parametrize("layout", ["messages", "pairs"])
def test_a_column_that_changes_the_meaning_and_is_not_used_is_quarantine(column, value, layout):
    if layout == "messages":
        rows = [{"messages": turns} for turns in chats(40)]
    else:
        rows = [{"prompt": f"What of {sentence(i)}?", "chosen": sentence(i + 500), "rejected": sentence(i + 900)}
                for i in range(40)]  # fmt: skip
    rows[4][column] = value
    found = add(jsonl("mine.jsonl", rows))
    assert found.reasons() == {5: ["unreadable_row"]} and f"`{column}`" in found.quarantine[0]["detail"]


@pytest.mark.parametrize("key, value", [
    ("tool_calls", CALL), ("function_call", {"name": "f"}), ("reasoning_content", "hm")])  # fmt: skip
@pytest.mark.parametrize("form", [("role", "content"), ("from", "value")])
def test_a_key_of_an_answer_that_changes_the_meaning_is_quarantine(key, value, form):
    column = "messages" if form[0] == "role" else "conversations"
    rows = [{column: turns} for turns in chats(40, *form)]
    rows[4][column][1][key] = value
    assert add(jsonl("mine.jsonl", rows)).reasons() == {5: ["unreadable_row"]}


def test_neutral_values_change_nothing():
    rows = [{"messages": turns, "tools": [], "weight": 1.0, "history": None, "input": " ", "train": True}
            for turns in chats(40)]  # fmt: skip
    for row in rows:
        row["messages"][0]["weight"] = 0  # of a question: nothing is learnt of it anyway
        row["messages"][1] |= {"tool_calls": [], "weight": 1, "reasoning_content": "", "train": True, "name": "bot"}
    assert len(add(jsonl("mine.jsonl", rows)).kept) == 40


def test_the_history_of_alpaca_is_used():
    rows = [{**row, "input": "", "history": [[f"Who of {sentence(i)}?", f"Me, {sentence(i)}."]]}
            for i, row in enumerate(asked(40))]  # fmt: skip
    rows[3]["history"], rows[4]["history"] = [], "not a list"
    found = add(jsonl("mine.jsonl", rows))
    assert found.reasons() == {5: ["unreadable_row"]}
    turns = {row["location"].rsplit(":", 1)[1]: row["messages"] for row in found.kept}
    assert [turn["role"] for turn in turns["1"]] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in turns["1"]][:2] == [f"Who of {sentence(0)}?", f"Me, {sentence(0)}."]
    assert len(turns["4"]) == 2


def test_prompts_and_completions_may_be_lists_of_turns_or_texts_that_look_like_lists():
    rows = [{"prompt": [{"role": "system", "content": "Be kind."}, *chat[:1]], "completion": chat[1:]}
            for chat in chats(40)]  # fmt: skip
    rows[5]["prompt"] = json.dumps(rows[5]["prompt"])
    rows[6] = {"prompt": "[3, 1, 2]", "completion": "[1, 2, 3]"}
    found = add(jsonl("mine.jsonl", rows))
    assert len(found.kept) == 40
    said = {row["location"].rsplit(":", 1)[1]: [turn["role"] for turn in row["messages"]] for row in found.kept}
    assert said["1"] == said["6"] == ["system", "user", "assistant"] and said["7"] == ["user", "assistant"]


@pytest.mark.parametrize("values", [(True, False), (1, 0), (1.0, 0.0), ("true", "False"), ("desirable", "undesirable"),
                                    ("good", "bad"), (1, -1)])  # fmt: skip
def test_unpaired_preferences_are_refused_by_name(values):
    rows = [{"prompt": row["instruction"], "completion": row["output"], "label": values[i % 2]}
            for i, row in enumerate(asked(40))]  # fmt: skip
    with pytest.raises(DataError, match=r"unpaired preferences \(KTO\)"):
        add(jsonl("kto.jsonl", rows))
    with pytest.raises(DataError, match=r"unpaired preferences \(KTO\)"):
        add("kto.jsonl", "--layout", "prompt_completion")


def test_roles_are_known_in_any_case_and_unknown_ones_are_said():
    rows = [{"conversations": turns} for turns in chats(20, "from", "value", ("Human", "GPT"))]
    rows += [{"conversations": turns} for turns in chats(40, "from", "value", ("USER", "Assistant"))[20:]]
    rows[3]["conversations"][1]["from"] = "bing"
    found = add(jsonl("mine.jsonl", rows))
    assert found.reasons() == {4: ["role_order"]} and "`bing` 1" in found.said
    assert [turn["role"] for turn in found.kept[0]["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("rows", [texts(40), asked(40)])
def test_columns_that_are_dropped_are_named_once(rows):
    rows = [{**row, "id": i, "lang": "en"} for i, row in enumerate(rows)]
    found = add(jsonl("mine.jsonl", rows))
    assert found.said.count("not used, so dropped: columns id, lang\n") == 1 and len(found.kept) == 40
