"""Layouts of preferences: rows by hand, and what cannot be a comparison says which check it fails."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajuste.rows.layouts.preferences import FAULTS, LAYOUTS, columns_known, numbers, recognise, to_comparison
from ajuste.rows.read.records import Record
from tests.made.preference_files import ROWS, messages, transcript

USER = [{"role": "user", "content": "ask"}]


def read(layout: str, values: dict, **columns: str):
    return to_comparison(Record(3, values), layout, columns, prompt="Write.")


@pytest.mark.parametrize("layout", ROWS)
def test_every_layout_is_the_same_comparison_and_is_recognised_by_its_columns(layout):
    values = ROWS[layout]("ask", "good", "bad")
    row = read(layout, values)
    assert (row.prompt, row.responses, row.fault, row.line) == (USER, ["good", "bad"], None, 3)
    assert row.roles == "user assistant" and row.ratings is row.agreement is row.raters is None
    assert recognise(list(values), {}, [Record(1, values)]) == layout
    as_text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    again = read(layout, as_text)  # CSV has no lists
    assert (again.prompt, again.responses) == (USER, ["good", "bad"])
    assert recognise(list(as_text), {}, [Record(1, as_text)]) == layout


def test_transcripts_of_several_turns_and_with_a_prompt_beside_them():
    chosen, rejected = (transcript("hi", "yes?", "ask\n\nmore", answer) for answer in ("good", "bad"))
    row = read("transcripts", {"chosen": chosen, "rejected": rejected})
    assert row.prompt == messages("hi", "yes?", "ask\n\nmore") and row.responses == ["good", "bad"]
    assert row.roles == "user assistant user assistant"
    values = {"prompt": transcript("hi", "yes?", "ask") + "\n\nAssistant:", "chosen": " good", "rejected": " bad"}
    row = read("transcripts", values)
    assert row.prompt == messages("hi", "yes?", "ask") and row.responses == ["good", "bad"]
    assert recognise(list(values), {}, [Record(1, values)]) == "transcripts"


@pytest.mark.parametrize("prompt", [USER, "ask", json.dumps(USER)])
@pytest.mark.parametrize("whole", [True, False])
def test_conversational_pairs_hold_their_prompt_inside_or_beside_them(prompt, whole):
    sides = {side: messages("ask", said) if whole else [{"role": "assistant", "content": said}]
             for side, said in (("chosen", "good"), ("rejected", "bad"))}  # fmt: skip
    row = read("conversational", {"prompt": prompt, **sides})
    assert (row.prompt, row.responses, row.fault) == (USER, ["good", "bad"], None)


def test_a_system_message_stands_first():
    row = read("sharegpt", {**ROWS["sharegpt"]("ask", "good", "bad"), "system": "Be kind."})
    assert row.prompt == [{"role": "system", "content": "Be kind."}, *USER] and row.roles == "system user assistant"


def test_columns_are_mapped_and_a_source_is_kept():
    row = read("pairs", {"q": "ask", "a": "good", "b": "bad", "from": 3}, prompt="q", chosen="a", rejected="b",
               source="from")  # fmt: skip
    assert (row.prompt, row.responses, row.source) == (USER, ["good", "bad"], "3")


def test_rankings_are_sorted_by_ranks_or_ratings_and_remember_where_the_best_stood():
    values = {"prompt": "ask", "responses": ["b", "c", "a"]}
    assert read("rankings", values).responses == ["b", "c", "a"] and read("rankings", values).position is None
    row = read("rankings", {**values, "ranks": [2, 3, 1]})
    assert (row.responses, row.position) == (["a", "b", "c"], 2)
    row = read("rankings", {**values, "ratings": [1.0, 0.5, "[2, 4]"]})
    assert (row.responses, row.ratings, row.position) == (["a", "b", "c"], [3.0, 1.0, 0.5], 2)
    row = read("rankings", {"prompt": "ask", "responses": ["x", "y"], "ratings": [[1, 2], [2, 3]]})
    assert (row.responses, row.ratings, row.agreement) == (["y", "x"], [2.5, 1.5], 0.875)


def test_pairs_may_have_ratings_or_an_agreement():
    pair = ROWS["pairs"]("ask", "good", "bad")
    row = read("pairs", {**pair, "chosen_rating": 4, "rejected_rating": "2.5"})
    assert (row.ratings, row.agreement) == ([4.0, 2.5], None)
    row = read("pairs", {**pair, "chosen_rating": [4, 5], "rejected_rating": [4, 1]})
    assert (row.ratings, row.agreement) == ([4.5, 2.5], 0.875)
    assert read("pairs", {**pair, "agreement": 0.75}).agreement == 0.75


@pytest.mark.parametrize("given", [[3, 2, -1], "[3, 2, -1]", "3;2;-1", "3, 2 -1", "3|2|-1"])
def test_ratings_are_lists_of_numbers_in_any_writing(given):
    row = read("ratings", {"text": "A film.", "ratings": given})
    assert (row.raters, row.responses) == ([3.0, 2.0, -1.0], ["A film."])
    assert row.prompt == [{"role": "user", "content": "Write."}] and row.ratings == [pytest.approx(4 / 3)]
    assert recognise(["text", "ratings"], {}, []) == "ratings"
    assert numbers(2) == [2.0]


@pytest.mark.parametrize(
    ("layout", "values", "check", "words"),
    [
        ("pairs", {"prompt": 7, "chosen": "a", "rejected": "b"}, "unreadable_row", "the prompt is of type int"),
        ("pairs", {"prompt": "x", "chosen": "a", "rejected": "b", "agreement": 1.5}, "bad_ratings", "from 0 to 1"),
        ("pairs", {"prompt": "x", "chosen": "a", "rejected": "b", "chosen_rating": 1, "rejected_rating": 2},
         "order_contradicted", "the chosen one has 1, the rejected 2"),
        ("pairs", {"prompt": "x", "chosen": "a", "rejected": "b", "chosen_rating": 1}, "bad_ratings", "no ratings"),
        ("transcripts", {"chosen": "hello", "rejected": transcript("x", "b")}, "not_a_transcript", "the chosen text"),
        ("transcripts", {"chosen": transcript("x", "a"), "rejected": transcript("y", "b")}, "different_prompts",
         "before the last turn"),
        ("transcripts", {"chosen": transcript("x", "a", "z", "c"), "rejected": transcript("x", "b")},
         "different_prompts", "chosen dialogue has 4 turns, the rejected 2"),
        ("conversational", {"chosen": "hello", "rejected": []}, "unreadable_row", "not a list of messages"),
        ("conversational", {"chosen": [{"role": "user"}], "rejected": []}, "unreadable_row", "`role` and `content`"),
        ("conversational", {"prompt": "other", "chosen": messages("x", "a"), "rejected": messages("x", "b")},
         "different_prompts", "do not begin with the prompt"),
        ("sharegpt", {"conversations": 3, "chosen": "a", "rejected": "b"}, "unreadable_row", "of type int"),
        ("rankings", {"prompt": "x", "responses": "a"}, "unreadable_row", "no list of texts"),
        ("rankings", {"prompt": "x", "responses": ["a", "b"], "ranks": [1]}, "bad_ratings", "list of as many"),
        ("rankings", {"prompt": "x", "responses": ["a", "b"], "ranks": [1, 1]}, "tied_ranks", "the same rank"),
        ("rankings", {"prompt": "x", "responses": ["a", "b"], "ranks": [1, 2], "ratings": [0, 1]},
         "order_contradicted", "the ratings are"),
        ("ratings", {"text": "x", "ratings": "3, many"}, "bad_ratings", "`many` is no number"),
        ("ratings", {"text": "x", "ratings": []}, "bad_ratings", "there are no ratings"),
        ("ratings", {"text": "x", "ratings": [1, None]}, "bad_ratings", "`None` is no number"),
        ("ratings", {"text": "x", "ratings": ["nan"]}, "bad_ratings", "not finite"),
    ],
)  # fmt: skip
def test_what_is_no_comparison_names_its_check(layout, values, check, words):
    row = read(layout, values)
    assert row.fault[0] == check and words in row.fault[1] and row.responses == []
    assert json.loads(row.raw) == values


def test_texts_that_are_json_themselves_stay_texts():
    for layout in ("pairs", "sharegpt", "rankings"):
        row = read(layout, ROWS[layout]("[1, 2]", '{"a": 1}', "[]"))
        assert (row.prompt, row.responses) == ([{"role": "user", "content": "[1, 2]"}], ['{"a": 1}', "[]"])
    values = ROWS["pairs"]("sort", "[1, 2]", "[2, 1]")
    assert recognise(list(values), {}, [Record(1, values)]) == "pairs"
    row = read("sharegpt", {**ROWS["sharegpt"]("ask", "", ""), "chosen": '["x"]', "rejected": "plain"})
    assert row.responses == ['["x"]', "plain"]


def test_a_record_that_cannot_be_read_keeps_its_text():
    row = to_comparison(Record(9, text="{cut", problem="the line is not JSON"), "pairs", {})
    assert (row.fault, row.raw, row.line) == (("unreadable_row", "the line is not JSON"), "{cut", 9)


def test_columns_that_no_layout_has():
    assert recognise(["chosen", "rejected"], {}, [Record(1, {"chosen": "a", "rejected": "b"})]) is None
    assert recognise(["prompt", "completion"], {}, []) is None
    assert recognise(["a", "b", "prompt"], {"chosen": "a", "rejected": "b"}, []) == "pairs"
    assert set(LAYOUTS) == {*ROWS, "ratings", "raters"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
        [transcript("x", "y"), transcript("x"), "[1, 2]", "[", "{}", '[{"role": "user", "content": "x"}]', "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "raters"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_stands_in_a_row_it_is_a_comparison_or_names_a_known_check(layout, data):
    values = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(columns_known(layout), JSON)))
    row = to_comparison(Record(1, values), layout, {}, "Write.")
    if row.fault:
        assert row.fault[0] in FAULTS and row.fault[1]
        assert row.prompt == row.responses == []
    else:
        assert all(isinstance(text, str) for text in [*row.responses, *(turn["content"] for turn in row.prompt)])
        assert row.ratings is None or len(row.ratings) == len(row.responses)
    recognise(list(values), {}, [Record(1, values)])
