"""Conversations as token ids: which belong to a prompt, and which are a response that is learnt.

    messages = [{"role": "system" | "user" | "assistant", "content": text}, ...]    or one {"role": "text", ...}
    an assistant's turn with "weight": 0 is read and not learnt
    ids      = prompt_1, response_1 + end of turn, prompt_2, response_2 + end of turn, ...

The tokenizer's own chat template writes the text. A tokenizer without one writes the lecture's tagged form,
`<instruction>...</instruction><response>...</response>` and eos. Each piece is tokenized apart: no token reaches over
the border of prompt and response, and a prompt has the same ids in training and in generation (`prompt_ids`).

What differs from `apply_chat_template(tokenize=True)`: the border above; nothing follows the last end of turn (ChatML's
line feed there is never seen by a generation); a template that asks for today's date gets a fixed one; a content that
holds a control token of the tokenizer is refused, since a role or an end of turn could be forged with it.

    segments(tokenizer, messages)  ->  [(ids, trained), ...]
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Message = dict[str, str]
Segment = tuple[list[int], bool]

INSTRUCTION = "<instruction>{}</instruction><response>"
RESPONSE = "{}</response>"
CLOSING = RESPONSE.format("")
TAGS = ["<instruction>", "</instruction>", "<response>", CLOSING]
CLOCK = "strftime_now"  # what a template asks for today's date; Llama 3's writes this one where there is no clock
NO_CLOCK = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"


def segments(tokenizer: "Tokenizer", messages: list[Message]) -> list[Segment]:
    """The conversation in order, as (token ids, whether they are trained); the end of turn is in the response.

    Every assistant turn is trained but those of weight 0. A message of role `text` is trained whole, without a template
    and without an end.
    Raises ValueError: roles out of order, a control token inside a content, or a template that cannot write this
    conversation or writes its beginning in another way once it goes on.
    """
    if messages and messages[0]["role"] == "text":
        return _text(tokenizer, messages)
    _check(tokenizer, messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's: there is no response")
    return _turns(tokenizer, messages)


def prompt_ids(tokenizer: "Tokenizer", messages: list[Message]) -> list[int]:
    """The ids that a generation starts from: the conversation and the opening of the assistant's turn.

    Exactly the ids that `segments` has before that turn. Raises ValueError as `segments`.
    """
    _check(tokenizer, messages)
    if messages[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's: there is nothing to answer")
    turns = _turns(tokenizer, [*messages, {"role": "assistant", "content": ""}])
    return [token for ids, _ in turns[:-1] for token in ids]


def end_of_turn(tokenizer: "Tokenizer") -> list[int]:
    """The ids any of which ends a turn; the first one is what `segments` writes."""
    own = _end_token(tokenizer)
    return list(dict.fromkeys(token for token in (own, tokenizer.eos_token_id) if token is not None))


def response_text(tokenizer: "Tokenizer", ids: list[int]) -> str:
    """The text of a generated response: without its end of turn, without the tagged form's closing tag."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text if tokenizer.chat_template else text.removesuffix(CLOSING)


def template_sha256(tokenizer: "Tokenizer") -> str:
    """The digest of what writes the text: the chat template, or the tagged form."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else INSTRUCTION + RESPONSE
    return hashlib.sha256(template.encode()).hexdigest()


def encode(tokenizer: "Tokenizer", text: str, control: bool = True) -> list[int]:
    """Token ids of a piece of text; with `control` false, control tokens written in it are ordinary characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not control, verbose=False)["input_ids"]


# --- pieces ---------------------------------------------------------------------------------------------------------


def _check(tokenizer: "Tokenizer", messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise ValueError(f"the roles are {', '.join(roles) or 'none'}: after a system message, user and assistant "
                         "take turns, the user first")  # fmt: skip
    control = [*_control(tokenizer).values(), *([] if tokenizer.chat_template else TAGS)]
    for number, message in enumerate(messages, 1):
        for token in control:
            if token in message["content"]:
                raise ValueError(f"message {number} holds `{token}`, with which this base marks a turn")


def _control(tokenizer: "Tokenizer") -> dict[int, str]:
    return {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _text(tokenizer: "Tokenizer", messages: list[Message]) -> list[Segment]:
    if len(messages) != 1:
        raise ValueError("a text row has one message")
    start = _start(tokenizer)
    body = encode(tokenizer, messages[0]["content"], control=False)
    return [(start, False), (body, True)] if start else [(body, True)]


def _start(tokenizer: "Tokenizer") -> list[int]:
    """The beginning-of-sequence token if this tokenizer puts one before every text; templates write it themselves."""
    first = tokenizer("", verbose=False)["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def _turns(tokenizer: "Tokenizer", messages: list[Message]) -> list[Segment]:
    """Segments of a conversation that ends with the assistant's turn."""
    if not tokenizer.chat_template:
        return _tagged(tokenizer, messages)
    end = _end_token(tokenizer)
    end_text = _control(tokenizer).get(end, "")
    found: list[Segment] = []
    written = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:number], opening=True)
        whole = _render(tokenizer, messages[: number + 1], opening=False)
        if not prompt.startswith(written) or not whole.startswith(prompt):
            raise ValueError(f"the chat template writes what is before message {number + 1} differently once the "
                             "conversation goes on: which tokens are a response cannot be told")  # fmt: skip
        response, ended, _ = whole[len(prompt) :].partition(end_text) if end_text else (whole[len(prompt) :], "", "")
        found.append((encode(tokenizer, prompt[len(written) :]), False))
        found.append((encode(tokenizer, response) + ([] if end is None else [end]), message.get("weight", 1) != 0))
        written = prompt + response + ended
    return found


def _tagged(tokenizer: "Tokenizer", messages: list[Message]) -> list[Segment]:
    system = messages[0]["content"] + "\n\n" if messages[0]["role"] == "system" else ""
    turns = messages[1:] if system else messages
    found: list[Segment] = []
    for number in range(0, len(turns), 2):
        prompt = INSTRUCTION.format((system if number == 0 else "") + turns[number]["content"])
        start = _start(tokenizer) if number == 0 else []
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        found.append((start + encode(tokenizer, prompt), False))
        answer = turns[number + 1]
        found.append((encode(tokenizer, RESPONSE.format(answer["content"])) + end, answer.get("weight", 1) != 0))
    return found


def _end_token(tokenizer: "Tokenizer") -> int | None:
    """What ends a turn: the first control token that the template writes after a response, else eos."""
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    asked, answered = "question", "answer"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    tail = _render(tokenizer, turns, opening=False).rpartition(answered)[2]
    control = _control(tokenizer)
    return next((token for token in encode(tokenizer, tail) if token in control), tokenizer.eos_token_id)


def _render(tokenizer: "Tokenizer", messages: list[Message], opening: bool) -> str:
    from jinja2 import TemplateError

    template = tokenizer.get_chat_template()
    template = NO_CLOCK + template if CLOCK in template else template
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=opening
        )
    except TemplateError as error:
        raise ValueError(f"the chat template of this base refuses the conversation: {error}") from None
