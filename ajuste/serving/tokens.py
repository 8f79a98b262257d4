"""A generated token as OpenAI's interface shows it: its text, its bytes, and log-probabilities.

    logprob   log softmax(logits)[token]: of the model itself, before temperature and top_p change what is drawn
    top       the k most probable tokens, the most probable first, whether drawn or not

A token may be a part of a character: its text is then `bytes:\\xe6\\x97`, and its bytes are these.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

BYTE = re.compile(r"<0x([0-9A-F]{2})>")     # a byte of its own, as sentencepiece writes it


@dataclass(frozen=True)
class Token:
    """One token of an answer. `data` is None for a control token, which has no text."""

    text: str
    data: bytes | None
    logprob: float
    top: tuple["Token", ...] = ()


def token_of(tokenizer: Any, logits: Tensor, number: int, k: int) -> Token:
    """The token `number` drawn from logits [V] float32, with its k most probable alternatives."""
    logp = torch.log_softmax(logits.double(), -1)
    values, ids = logp.topk(min(k, len(logp)))
    best = tuple(Token(*shown(tokenizer, i), value)
                 for i, value in zip(ids.tolist(), values.tolist(), strict=True))
    return Token(*shown(tokenizer, number), float(logp[number]), best)


def shown(tokenizer: Any, number: int) -> tuple[str, bytes | None]:
    """Text and bytes of a token id; (text, None) of a control token."""
    added = tokenizer.added_tokens_decoder.get(number)
    if added is not None and added.special:
        return added.content, None
    written = tokenizer.convert_ids_to_tokens(number)
    if written is None:                     # the model's head is wider than its vocabulary
        return f"<{number}>", None
    data = bytes_of(written, added is None and "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder))
    try:
        return data.decode(), data
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data


def bytes_of(written: str, byte_level: bool) -> bytes:
    """The bytes that a token of the vocabulary stands for."""
    if byte_level and all(character in letters() for character in written):
        return bytes(letters()[character] for character in written)
    if found := BYTE.fullmatch(written):
        return bytes([int(found[1], 16)])
    return written.replace("\u2581", " ").encode("utf-8", "replace")


@cache
def letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
