"""Every layout is recognised by its columns and gives the same messages; what does not fit says why."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajuste.rows.layouts.instructions import LAYOUTS, columns_needed, recognise, to_row
from ajuste.rows.read.records import Record
from ajuste.rows.split import split_of, split_text, text_digest
from tests.made.instruction_files import ROWS

TURNS = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A test."}]


def row(values: dict, layout: str, columns: dict | None = None, **more):
    return to_row(Record(1, values), layout, columns or {}, **more)


@pytest.mark.parametrize("layout", ROWS)
def test_a_layout_is_recognised_and_gives_the_messages(layout):
    values = ROWS[layout]("What is it?", "A test.")
    assert recognise(list(values), {}, tagged=layout == "tagged") == layout
    assert recognise([*values, "id", "category"], {}, tagged=layout == "tagged") == layout
    found = row(values, layout)
    assert found.messages == TURNS and found.problem is None
    assert found.category == ("open_qa" if layout == "dolly" else "")


def test_columns_of_other_names_are_recognised_by_the_map():
    assert recognise(["q", "a"], {"prompt": "q", "completion": "a"}, tagged=False) == "prompt_completion"
    assert recognise(["q", "a"], {}, tagged=False) is None
    assert recognise(["text"], {}, tagged=False) == "text" and recognise(["body"], {"text": "body"}, True) == "tagged"
    assert recognise(["instruction", "input", "output", "text"], {}, tagged=True) == "alpaca"
    assert recognise(["prompt", "messages"], {}, tagged=False) == "messages"
    assert row({"q": "What is it?", "a": "A test."}, "flan", {"inputs": "q", "targets": "a"}).messages == TURNS
    assert columns_needed("alpaca", {"output": "answer", "category": "topic"}) == ["instruction", "answer", "topic"]


def test_input_and_context_follow_the_instruction_and_a_system_turn_leads():
    found = row({"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}, "alpaca")
    assert [turn["content"] for turn in found.messages] == ["Be brief.", "Add.\n\n1 2", "3"]
    found = row({"instruction": "Who?", "context": "It was Ana.", "response": "Ana", "category": "closed_qa"}, "dolly")
    assert found.messages[0]["content"] == "Who?\n\nIt was Ana." and found.category == "closed_qa"
    assert row({"instruction": "Who?", "context": None, "response": "Ana"}, "dolly").messages[0]["content"] == "Who?"


def test_roles_of_sharegpt_are_translated_and_unknown_ones_stay():
    turns = [{"from": who, "value": who} for who in ("system", "human", "gpt", "user", "assistant", "tool")]
    roles = [turn["role"] for turn in row({"conversations": turns}, "sharegpt").messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "tool"]


def test_a_chat_in_a_text_column_is_its_json():
    assert row({"messages": json.dumps(TURNS)}, "messages").messages == TURNS


@pytest.mark.parametrize(
    ("layout", "values", "problem"),
    [
        ("alpaca", {"instruction": "a", "output": 3}, "the output is of type int, not text"),
        ("flan", {"inputs": ["a"], "targets": "b"}, "the inputs is of type list"),
        ("messages", {"messages": None}, "the row has no messages"),
        ("messages", {"messages": "hello"}, "nor the JSON of one"),
        ("messages", {"messages": {"role": "user"}}, "of type dict, not a list of messages"),
        ("messages", {"messages": [{"role": "user"}]}, "message 1 of the messages has no"),
        ("messages", {"messages": [*TURNS, {"role": "user", "content": 1}]}, "`content` of message 3 of the messages"),
        ("messages", {"messages": [{"role": None, "content": "x"}]}, "`role` of message 1 of the messages is"),
        ("sharegpt", {"conversations": [{"role": "user", "content": "x"}]}, "message 1 of the conversations has"),
        ("tagged", {"text": "<instruction>a</instruction><response>b"}, "has no </response>"),
        ("tagged", {"text": "x <instruction>a</instruction><response>b</response>"}, "something outside its tags"),
        ("text", {"text": {"a": 1}}, "the text is of type dict"),
    ],
)
def test_what_does_not_fit_says_why_and_keeps_the_row(layout, values, problem):
    found = row(values, layout)
    assert problem in found.problem and found.messages == []
    assert json.loads(found.raw) == values


def test_a_record_that_could_not_be_read_stays_so():
    found = to_row(Record(7, text="{broken", problem="the line is not JSON"), "alpaca", {})
    assert (found.line, found.raw, found.problem, found.messages) == (7, "{broken", "the line is not JSON", [])


TEMPLATES = [{"prompt": f"{i}: is this good? {{text}}", "response": "{label}"} for i in range(4)]


def test_templates_make_instructions_and_are_chosen_by_the_row():
    names = {"0": "bad", "1": "good"}
    rows = [row({"text": f"review {i}", "label": i % 2}, "templates", templates=TEMPLATES, label_names=names)
            for i in range(400)]  # fmt: skip
    assert all(found.messages[1]["content"] == ("good" if i % 2 else "bad") for i, found in enumerate(rows))
    assert all(found.messages[0]["content"].endswith(f"good? review {i}") for i, found in enumerate(rows))
    chosen = [found.messages[0]["content"][0] for found in rows]
    assert all(70 < chosen.count(str(i)) < 130 for i in range(4))  # 100 expected, standard deviation 8.7
    again = row({"label": "1", "text": " review 1 "}, "templates", templates=TEMPLATES, label_names=names)
    assert again.messages == rows[1].messages


def test_a_templated_row_is_split_by_what_it_is_about():
    """So a review is in the same split here and in its classification set, under every phrasing."""
    for i in range(50):
        text = f"some review {i}"
        found = row({"text": text, "label": "1"}, "templates", templates=TEMPLATES)
        assert split_of(text_digest(split_text(found.split))) == split_of(text_digest(split_text(text)))


@pytest.mark.parametrize(("values", "problem"), [
    ({"text": "x", "label": "7"}, "label `7` is not among label_names"),
    ({"text": "x"}, "the templates need `label`, and the row has none"),
    ({"text": " ", "label": "1"}, "need `text`"),
    ({"text": "x", "label": []}, "need `label`"),
])  # fmt: skip
def test_a_row_that_a_template_cannot_use_says_why(values, problem):
    assert problem in row(values, "templates", templates=TEMPLATES, label_names={"1": "good"}).problem


def test_of_several_right_answers_the_first_is_taken():
    found = row({"text": "x", "label": ["a", "b"]}, "templates", templates=TEMPLATES)
    assert found.messages[1]["content"] == "a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(
        ["role", "content", "from", "value", "x"]) | st.text(max_size=3), part, max_size=3), max_leaves=8)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*LAYOUTS, "templates"]), st.data())
def test_any_json_object_becomes_messages_or_a_problem(layout, data):
    names = ["text", "label", "category", "source", *sum(LAYOUTS.get(layout, ()), ())]
    values = {name: data.draw(JSON) for name in random.Random(0).sample(names, data.draw(st.integers(0, len(names))))}
    found = row(values, layout, templates=TEMPLATES)
    assert (found.problem is None) != (found.raw != "")
    assert all(isinstance(turn["role"], str) and isinstance(turn["content"], str) for turn in found.messages)
