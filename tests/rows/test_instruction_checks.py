"""What is measured on a row of messages, against values worked out by hand or by brute force."""

import random

import pytest

from ajuste.rows.checks.instructions import LOOP_LEAST, LOOP_WORDS, measure, repeats
from ajuste.rows.checks.turns import TEMPLATE, clean, pii
from tests.made.instruction_files import WORDS


def chat(*turns: str, roles=("user", "assistant")) -> list[dict]:
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def test_measures_of_a_chat():
    found = measure([{"role": "system", "content": "Be kind."}, *chat("One?", "Two.", "Three?", "Four.")], None)
    assert found["roles"] == "system user assistant user assistant"
    assert (found["instruction_chars"], found["response_chars"], found["text_chars"]) == (4, 4, None)
    assert found["chars"] == 8 + 4 + 4 + 6 + 5 and found["echoes"] == 0 and found["template"] is None
    found = measure([{"role": "text", "content": "Plain text."}], None)
    assert (found["instruction_chars"], found["response_chars"], found["text_chars"]) == (None, None, 11)


def test_an_instruction_must_be_there_whatever_its_input_says():
    assert measure(chat("some input", "x"), "  ")["instruction_chars"] == 0


def test_echoes_are_judged_turn_by_turn_and_without_case_or_blanks():
    assert measure(chat("Say  it", "say it", "more", "More. "), None)["echoes"] == 1
    assert measure(chat("", ""), None)["echoes"] == 0  # empty is another check's business


def loops(words: list[str]) -> int:
    """The longest run of a repeated block of words, by trying all of them."""
    most = 1
    for period in range(1, LOOP_WORDS + 1):
        for begin in range(len(words) - period):
            rounds = 1
            while words[begin + rounds * period : begin + (rounds + 1) * period] == words[begin : begin + period]:
                rounds += 1
            end = begin + rounds * period
            tail = 0
            while end + tail < len(words) and words[end + tail] == words[begin + tail % period]:
                tail += 1
            if rounds > 1 and rounds * period + tail >= LOOP_LEAST:
                most = max(most, rounds)
    return most


@pytest.mark.parametrize("seed", range(40))
def test_loops_against_brute_force(seed):
    generator = random.Random(seed)
    words = generator.choices(WORDS[: generator.choice([2, 5, 50])], k=generator.randint(5, 40))
    block = generator.choices(WORDS, k=generator.randint(1, LOOP_WORDS))
    words = words + block * generator.randint(0, 6) + generator.choices(WORDS, k=5)
    assert repeats(" ".join(words)) == loops(words)


def test_repeated_sentences_and_lines():
    assert repeats("") == repeats("Yes. Yes. Yes. Yes. Yes.") == 1  # two words and fewer are no sentence
    assert repeats("I do not know. Is it so? I do not know! i  do not KNOW.") == 3
    assert repeats("one two three\nfour five six\none two three\n") == 2
    assert repeats("very " * 30) == 30
    assert repeats("- a b\n- c d\n- e f\n- g h") == 1


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user", "x<|endoftext|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "[INST] hi [/INST]", "<<SYS>>",
     "a</s>", "<s>a", "<end_of_turn>",
     "<instruction>", "</response>", "### Instruction:\nAdd", "x\n### Response: y", "<bos>"],
)  # fmt: skip
def test_template_characters_are_seen(text):
    assert TEMPLATE.search(text)


@pytest.mark.parametrize(
    "text",
    ["a < b | c > d", "x <b>bold</b>", "array[INS]", "## Instruction", "the instruction: add", "std::vector<int>",
     "if (a < |b|) {}", "<section>", "### Steps:"],
)  # fmt: skip
def test_ordinary_text_has_none(text):
    assert not TEMPLATE.search(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write to ana.perez+x@mail.example.com or b@c.org.", {"email": 2}),
        ("Call +34 600 123 456, (020) 7946 0958 or 555-123-4567.", {"phone": 3}),
        ("Card 4111 1111 1111 1111 and 5500-0000-0000-0004.", {"card": 2}),
        ("Card 4111 1111 1111 1112.", {}),
        ("0000 0000 0000 0000", {}),
        ("IBAN GB82 WEST 1234 5698 7654 32, DE89370400440532013000.", {"iban": 2}),
        ("IBAN GB82 WEST 1234 5698 7654 33", {}),
        ("Server 192.168.0.1 and 10.0.0.256, version 1.2.3.4.5.", {"ip": 1}),
        ("In 2019-2020 it cost 1,000,000 or 10 000 000 of 123456789.", {}),
        ("f(x) = 3.14159265358979, @decorator, a@b", {}),
    ],
)
def test_patterns_of_personal_data(text, found):
    assert dict(pii(text)) == found


def test_cleaning_leaves_markup_and_code_alone():
    assert clean(" <br>a &lt; b\r\n\tc\r ") == ("<br>a &lt; b\n\tc", [])
    assert clean("it\x92s") == ("it’s", ["windows_1252"])
