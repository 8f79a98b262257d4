"""The items of a JSON Lines file or of a JSON list, one at a time, with the line where each begins.

Each item is (line, value, problem); of a line that is not JSON the value is its text.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.read.opened import open_bytes

MAX_ITEM = 1 << 23  # characters of one item of a list; what is longer counts as a syntax error
HEAD = 1 << 16
WRAPPED = re.compile(r'\{\s*"([^"\\]*)"\s*:\s*([\[{])')
BLANKS = re.compile(r"[ \t\r\n]*")

Item = tuple[int, object, str | None]


def json_items(path: Path, lines: bool) -> Iterator[Item]:
    """The items of a file that says by its name whether it holds lines or one list. What it holds decides: a list that
    is called .jsonl is read as a list, and lines that are called .json as lines. Raises DataError for other shapes."""
    with open_bytes(path) as file:
        head = file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    first, _, rest = head.partition(b"\n")
    if head[:1] == b"[":
        try:
            listed = not lines or any(isinstance(item, dict) for item in json.loads(first))
        except (ValueError, RecursionError, TypeError):
            listed = not lines or not first.strip(b"[ \t\r") or len(head) == HEAD or not rest.strip()
        return json_array(path) if listed else json_lines(path)
    if lines and first.strip() == b"{":
        raise DataError(f"{path}: an object stands over several lines: write one object a line, or a list `[...]`")
    if lines or head[:1] != b"{":
        return json_lines(path) if lines else json_array(path)
    if rest.strip()[:1] == b"{" and _is_object(first):
        return json_lines(path)
    inner = WRAPPED.match(head.decode("utf-8", "replace"))
    if inner and inner[2] == "[":
        raise DataError(f"{path} is one object, with a list under `{inner[1][:40]}`: save that list alone as the file")
    if inner and inner[2] == "{":
        raise DataError(f"{path} holds columns, not rows: write it with orient=\"records\", a list of objects")
    return json_array(path)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_lines(path: Path) -> Iterator[Item]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode("utf-8", "surrogateescape")
            if not text.strip():
                continue
            try:
                yield number, json.loads(text), None
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else "a value is out of bounds"
                yield number, text, f"the line is not JSON: {what}"


def json_array(path: Path) -> Iterator[Item]:
    """The items of a top-level list, one at a time. A syntax error is the whole file's fault."""
    decoder = json.JSONDecoder()
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        buffer, position, line, ended, begun = "", 0, 1, False, False

        def more() -> None:
            nonlocal buffer, position, ended
            chunk = file.read(max(1 << 20, len(buffer) - position))
            buffer, position, ended = buffer[position:] + chunk, 0, not chunk

        def skip(extra: str = "") -> str:
            """Pass blanks (and one of `extra`); the next character, or "" at the end."""
            nonlocal position, line
            while True:
                end = BLANKS.match(buffer, position).end()
                line += buffer.count("\n", position, end)
                position = end
                if position == len(buffer) and not ended:
                    more()
                    continue
                character = buffer[position : position + 1]
                if character and character in extra:
                    position, extra = position + 1, ""
                    continue
                return character

        if skip() != "[":
            raise DataError(
                f"{path} is no JSON list of objects: it must begin with `[`; for one object a line use .jsonl"
            )
        position += 1
        while True:
            character = skip("," if begun else "")
            if character == "]":
                return
            if not character:
                raise DataError(f"{path} line {line}: the list ends without `]`: is the file cut off?")
            try:
                item, end = decoder.raw_decode(buffer, position)
                partial = end == len(buffer) and not ended
            except (ValueError, RecursionError) as error:
                partial = not ended and len(buffer) - position < MAX_ITEM
                if not partial:
                    wrong = line + buffer.count("\n", position, getattr(error, "pos", position))
                    raise DataError(f"{path} line {wrong} is not JSON: {getattr(error, 'msg', error)}") from None
            if partial:
                more()
                continue
            yield line, item, None
            line += buffer.count("\n", position, end)
            position, begun = end, True
