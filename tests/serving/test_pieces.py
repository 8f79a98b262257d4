"""Tokens to text in pieces: nothing is taken back, nothing is lost."""

import random

import pytest

from ajuste.models import decoder
from ajuste.serving.pieces import Pieces

TEXTS = ["A warm film.", "naïve café — ½ €", "日本語の文", "🎬🍿 good 👩‍👩‍👧", "\n\n two  spaces \t", "�", "a"]


@pytest.fixture(scope="module")
def tokenizer(speakers):
    return decoder.load_base(speakers["base"])[1]


def parts(tokenizer, ids, stop=()):
    pieces = Pieces(tokenizer, stop)
    given = []
    for token in ids:
        given.append(pieces.add(token))
        if pieces.stopped:
            return given, True
    return [*given, pieces.end()], pieces.stopped


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_hold_no_half_character(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    given, _ = parts(tokenizer, ids)
    assert "".join(given) == text
    if "�" not in text:
        assert not any("�" in piece for piece in given)
    if "日" in text:
        assert len(ids) > len(text) and given.count("") > 1, "no character of this text is spread over tokens"


def test_any_tokens_give_what_the_tokenizer_makes_of_them(tokenizer):
    """Random bytes, control tokens and broken characters too."""
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 30))]
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(parts(tokenizer, ids)[0]) == whole


@pytest.mark.parametrize("stop, text, left", [
    (["END"], "one END two", "one "),
    (["END"], "one EN two E", "one EN two E"),              # held back, then let go
    (["film", "warm"], "A warm film", "A "),                # the earliest
    (["mm", "m f"], "warm film", "war"),                    # across tokens
    (["€"], "costs 3 €.", "costs 3 "),
    (["A"], "A film", ""),
])
def test_a_stop_string_ends_the_text_before_it(tokenizer, stop, text, left):
    given, stopped = parts(tokenizer, tokenizer(text)["input_ids"], stop)
    assert "".join(given) == left and stopped == (left != text)
    assert not any(piece.endswith("EN") for piece in given[:-3])


def test_after_a_stop_string_nothing_more_is_said(tokenizer):
    pieces = Pieces(tokenizer, ["warm"])
    said = [pieces.add(token) for token in tokenizer("A warm film")["input_ids"]] + [pieces.end()]
    assert "".join(said) == "A " and pieces.stopped
