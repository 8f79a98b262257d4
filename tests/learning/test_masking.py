"""What is trained, and what is cut of a conversation that is too long: by hand, and for any lengths."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.learning.text import chat, masking
from ajuste.learning.text.masking import KEPT, _without, fit

LONG = " ".join(f"w{n}" for n in range(60))


@pytest.fixture(scope="module")
def tokenizer(tiny_decoder: Path):
    return AutoTokenizer.from_pretrained(tiny_decoder)


def talk(*contents: str, system: str | None = None) -> list[dict]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_row_that_fits_is_whole(tokenizer) -> None:
    messages = talk("Why?", "Because.", "And then?", "The end.", system="Be kind.")
    row = fit(tokenizer, messages, 512)
    found = chat.segments(tokenizer, messages)
    assert row.input_ids == [token for ids, _ in found for token in ids]
    assert row.prompt_tokens == len(chat.prompt_ids(tokenizer, messages[:-1]))
    assert (row.length, row.prompt_cut, row.response_cut) == (len(row.input_ids), 0, 0)
    trained = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    assert text(tokenizer, trained) == "Because.<|im_end|>The end.<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    assert fit(tokenizer, messages, row.length) == row
    assert fit(tokenizer, messages, row.length - 1) != row


def test_the_beginning_of_a_question_is_cut_first(tokenizer) -> None:
    row = fit(tokenizer, talk(LONG, "The end."), 64)
    assert len(row.input_ids) == 64 and row.response_cut == 0
    assert row.prompt_cut == row.length - 64 > 0
    asked, answered = text(tokenizer, row.input_ids).split("assistant\n")
    assert asked.startswith("<|im_start|>user\n") and asked.endswith("w58 w59<|im_end|>\n<|im_start|>")
    assert "w0 " not in asked and answered == "The end.<|im_end|>"


def test_old_exchanges_go_before_the_last_question_and_the_system_message_stays(tokenizer) -> None:
    messages = talk("One?", "One.", "Two?", "Two.", "Three?", "Three.", system="Be kind.")
    whole = fit(tokenizer, messages, 512)
    row = fit(tokenizer, messages, whole.length - 1)
    assert row.input_ids == fit(tokenizer, [messages[0], *messages[3:]], 512).input_ids
    assert row.prompt_cut == whole.length - len(row.input_ids) and row.response_cut == 0
    assert fit(tokenizer, messages, len(row.input_ids)) == row  # what just fits stays
    row = fit(tokenizer, messages, 40)
    assert row.input_ids == fit(tokenizer, [messages[0], *messages[5:]], 512).input_ids
    row = fit(tokenizer, messages[1:], whole.length - 30)  # without a system message the first question goes too
    assert row.input_ids == fit(tokenizer, messages[5:], 512).input_ids


def test_a_long_question_is_cut_at_once(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some hundred tokens too many in a few steps, not in a hundred."""
    asked: list[int] = []
    monkeypatch.setattr(masking, "_without", lambda *given: asked.append(given[2]) or _without(*given))
    row = fit(tokenizer, talk(LONG, "The end."), 64)
    assert len(row.input_ids) == 64 and asked[0] == row.length - 64 > 50 and len(asked) <= 4


def test_a_long_response_keeps_its_question_and_loses_its_end(tokenizer) -> None:
    row = fit(tokenizer, talk("Count the words.", LONG), 100)
    asked = chat.prompt_ids(tokenizer, talk("Count the words."))
    assert row.input_ids[: len(asked)] == asked and len(asked) <= 100 // KEPT
    assert (len(row.input_ids), row.prompt_cut, row.response_cut) == (100, 0, row.length - 100)
    assert row.labels[-1] == row.input_ids[-1] != tokenizer.eos_token_id


def test_both_are_cut_when_both_are_long(tokenizer) -> None:
    row = fit(tokenizer, talk(LONG, LONG), 100)
    assert row.prompt_tokens <= 100 // KEPT < row.prompt_tokens + 3  # the text is cut at a token's border
    assert len(row.input_ids) == 100 and row.prompt_cut > 0 and row.response_cut > 0
    assert row.prompt_cut + row.response_cut == row.length - 100


def test_the_system_message_is_cut_last(tokenizer) -> None:
    row = fit(tokenizer, talk("Why is it?", LONG, system=LONG), 100)
    kept = text(tokenizer, row.input_ids[: row.prompt_tokens])
    assert "<|im_start|>system\n" in kept and "<|im_start|>user\n<|im_end|>" in kept
    assert row.prompt_tokens <= 100 // KEPT


def test_a_response_without_room_is_no_row(tokenizer) -> None:
    messages = talk("Why?", "Because.", system="Be kind.")
    asked = len(chat.prompt_ids(tokenizer, talk("", system="")))
    assert fit(tokenizer, messages, asked) is None
    assert fit(tokenizer, messages, asked + 1).trained == 1


def test_general_text_loses_its_end_and_its_first_token_is_no_term(tokenizer) -> None:
    row = fit(tokenizer, [{"role": "text", "content": LONG}], 50)
    assert text(tokenizer, row.input_ids) == LONG[: len(text(tokenizer, row.input_ids))]
    assert (row.prompt_tokens, row.prompt_cut, row.response_cut, row.trained) == (0, 0, row.length - 50, 49)
    assert row.labels == [IGNORED, *row.input_ids[1:]]
    assert fit(tokenizer, [{"role": "text", "content": "a"}], 50) is None  # one token: nothing to predict


def test_the_loss_is_the_mean_over_the_trained_tokens_alone(tokenizer, tiny_decoder: Path) -> None:
    """L by hand, from the log-probabilities of responses and ends of turn, against transformers' loss on our labels."""
    messages = talk("Why?", "Because it is.", "And then?", "The end.")
    row = fit(tokenizer, messages, 512)
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder, dtype=torch.float32).eval()
    ids = torch.tensor([row.input_ids])
    with torch.inference_mode():
        scores = model(ids).logits[0].log_softmax(-1)
        loss = model(ids, labels=torch.tensor([row.labels])).loss
    terms, place = [], 0
    for part, trained in chat.segments(tokenizer, messages):
        for token in part:
            if trained:
                terms.append(-float(scores[place - 1, token]))
            place += 1
    assert len(terms) == row.trained
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-6)


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=60)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(CONTENT, min_size=2, max_size=6).filter(lambda found: len(found) % 2 == 0), st.none() | CONTENT,
       st.integers(16, 120))  # fmt: skip
def test_nothing_is_cut_without_being_counted(tokenizer, contents, system, most: int) -> None:
    messages = talk(*contents, system=system)
    row = fit(tokenizer, messages, most)
    asked = len(chat.prompt_ids(tokenizer, messages[:-1]))
    whole = [token for ids, _ in chat.segments(tokenizer, messages) for token in ids]
    if row is None:  # what the template itself needs leaves no room
        empty = [{**m, "content": ""} for m in (*messages[: system is not None], messages[-2])]
        assert len(chat.prompt_ids(tokenizer, empty)) >= most
        return
    assert len(row.input_ids) <= most and len(row.labels) == len(row.input_ids)
    assert (row.length, asked - row.prompt_cut) == (len(whole), row.prompt_tokens)
    assert len(row.input_ids) == row.length - row.prompt_cut - row.response_cut
    assert 0 < row.trained <= len(row.input_ids) - row.prompt_tokens + sum(len(c.encode()) + 1 for c in contents)
    if row.length <= most:
        assert row.input_ids == whole
    response = whole[asked:]
    assert row.input_ids[row.prompt_tokens :] == response[: len(response) - row.response_cut]
    if row.response_cut:
        assert len(row.input_ids) == most
        least = [{**m, "content": ""} for m in (*messages[: system is not None], messages[-2])]
        assert row.prompt_tokens <= max(most // KEPT, len(chat.prompt_ids(tokenizer, least)))


def weigh(messages: list[dict], *learnt: bool) -> list[dict]:
    """The assistant's turns with weight 1 or 0."""
    weights = iter(learnt)
    return [{**m, "weight": int(next(weights))} if m["role"] == "assistant" else m for m in messages]


def test_an_answer_of_weight_0_is_read_and_not_learnt(tokenizer) -> None:
    messages = talk("Why?", "Because.", "And then?", "The end.", system="Be kind.")
    whole = fit(tokenizer, messages, 512)
    first = fit(tokenizer, weigh(messages, True, False), 512)
    assert first.input_ids == whole.input_ids and (first.length, first.prompt_cut) == (whole.length, 0)
    learnt = [token for token, label in zip(first.input_ids, first.labels, strict=True) if label != IGNORED]
    assert text(tokenizer, learnt) == "Because.<|im_end|>"
    assert first.prompt_tokens == len(chat.prompt_ids(tokenizer, messages[:2]))
    last = fit(tokenizer, weigh(messages, False, True), 512)
    learnt = [token for token, label in zip(last.input_ids, last.labels, strict=True) if label != IGNORED]
    assert text(tokenizer, learnt) == "The end.<|im_end|>" and last.prompt_tokens == whole.prompt_tokens
    assert fit(tokenizer, weigh(messages, False, False), 512) is None
    assert fit(tokenizer, weigh(messages, False, False), 20) is None


def test_what_follows_the_last_learnt_answer_goes_first(tokenizer) -> None:
    messages = talk("Why?", "Because.", "And then?", "The end.", "Again?", LONG)
    kept = fit(tokenizer, messages[:2], 512)
    row = fit(tokenizer, weigh(messages, True, False, False), kept.length + 3)
    assert row.input_ids == kept.input_ids and row.labels == kept.labels
    assert row.length == fit(tokenizer, messages, 4096).length
    assert (row.prompt_cut, row.response_cut, row.prompt_tokens) == (0, row.length - kept.length, kept.prompt_tokens)


def test_then_the_oldest_exchanges_of_what_is_left(tokenizer) -> None:
    messages = weigh(talk("Why?", "Because.", "And then?", "The end.", "Again?", "No."), True, True, False)
    alone = fit(tokenizer, messages[2:4], 512)
    row = fit(tokenizer, messages, alone.length)
    assert (row.input_ids, row.labels) == (alone.input_ids, alone.labels)


def test_what_is_not_learnt_goes_only_when_it_has_to_and_the_rest_is_cut_as_ever(tokenizer) -> None:
    messages = talk(LONG, "Because.", "And then?", "The end.")
    weighed = weigh(messages, True, False)
    whole = fit(tokenizer, weighed, 4096)
    assert fit(tokenizer, weighed, whole.length) == whole
    row, alone = fit(tokenizer, weighed, 64), fit(tokenizer, messages[:2], 64)
    assert (row.input_ids, row.labels, row.prompt_tokens) == (alone.input_ids, alone.labels, alone.prompt_tokens)
    assert row.prompt_cut == alone.prompt_cut > 0 and row.response_cut == whole.length - alone.length


class Pairs:
    """A tokenizer whose first character is two tokens: offsets repeat, as those of bytes do."""

    def __call__(self, text: str, **options: object) -> dict:
        assert options == {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        return {"offset_mapping": [(0, 1), *((n, n + 1) for n in range(len(text)))]}


def test_a_text_loses_its_first_tokens_and_at_least_a_character() -> None:
    for tokens, left in ((0, "bcd"), (1, "bcd"), (2, "bcd"), (3, "cd"), (4, "d"), (5, ""), (9, "")):
        assert _without(Pairs(), "abcd", tokens) == left
