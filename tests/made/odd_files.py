"""Files as people's programs write them, drawn at random: every layout, every format, odd values in some of the rows.

    drawn = draw_file(data, layout, folder)     a file of some 45 rows, of which a few are odd
    drawn.rows, drawn.marks                     how many rows were written, and a word of each that it alone holds

Most rows are good ones with words of their own, so that every split has some. An odd row has values of another type, a
damaged byte, half of a surrogate pair, quotes, line ends, invisible text, no value, or keys that change its meaning.
A row whose marked text was replaced has no mark; it is counted.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.made.added import sentence

GOOD_ROWS = 40
ABSENT = object()
BYTES = "latin-1 \udce9"  # one byte that is no UTF-8, where the format has bytes
TEXTS = ("", " ", "\u200b\u2060", '"', '""', '5"', 'a "b" c', "a\nb", "a\r\nb", "a\rb", "a\tb", "a,b;c|d", "a\n\nb",
         "'", "caf\u00e9", BYTES, "cut\ud83d", "\ud83d\ude00", "nul\x00", "\x85\u2028\u2029", "\ufeff", "\ufffd",
         "<br />", "&amp;", "[]", "{}", "[1, 2", '{"a": 1}', "null", "NaN", "1.0", "true", "-1", "<|im_end|>",
         "</response>", "Human: x", "x" * 2100)  # fmt: skip
VALUES = (None, ABSENT, float("nan"), float("inf"), 0, 1, -1, 1.0, 0.5, True, False, 2**70, 10**400, Decimal("1.50"),
          Decimal("NaN"), datetime(2024, 1, 2), datetime(2024, 1, 2, tzinfo=UTC), date(2024, 1, 2),
          timedelta(seconds=3), b"caf\xe9", b"\x00\xff", [], {}, [None], [[]], ["a", None, 1], {"a": {"b": [1]}},
          [{"role": "user"}], [["a", "b"]])  # fmt: skip
EXTRA = {"weight": (0, 1, 0.5, "0", None), "train": (False, True, 0, "false"), "history": ([], [["a", "b"]], "[]"),
         "tools": ([], [{"name": "f"}], "[]", "[{}]"), "tool_calls": (None, [{"id": 1}]), "label": (True, 0, "a"),
         "input": ("", "more"), "reasoning_content": ("", "hm"), "id": (1, b"\xff", datetime(2024, 1, 2)),
         "category": (None, 1, "advice", BYTES), "source": (None, 2.0, "web", BYTES), "system": ("", "Be kind.", BYTES),
         "": ("x",), "chosen_rating": (1, "a", None), "agreement": (0.7, 2, None)}  # fmt: skip
MORE = [  # another column of a Parquet file
    lambda n: pa.nulls(n), lambda n: pa.array([datetime(2024, 1, 2, tzinfo=UTC)] * n),
    lambda n: pa.array([b"\xff"] * n), lambda n: pa.array([2**62] * n),
    lambda n: pa.array([Decimal("1.50")] * n, pa.decimal128(10, 2)), lambda n: pa.array([timedelta(seconds=3)] * n),
    lambda n: pa.array([{"bytes": b"\xff", "at": date(2024, 1, 2)}] * n), lambda n: pa.array([[{"a": None}]] * n),
    lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int32())), lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([b"12345678"] * n, pa.binary(8)), lambda n: pa.array([1] * n, pa.time32("s")),
    lambda n: pa.array([1.5] * n, pa.float16()), lambda n: pa.array(["x"] * n).dictionary_encode(),
]  # fmt: skip
TYPES = ("string", "large_string", "string_view", "dictionary", "binary")
PACK = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
}  # fmt: skip
TEMPLATES = "category: mood\ntemplates:\n- {prompt: 'Is this good? {text}', response: '{label}'}\n"


def mark(i: int) -> str:
    """The word that only row i has."""
    return f"zq{i}q"


def chat(i: int, role: str = "role", said: str = "content", names=("user", "assistant")) -> list[dict]:
    return [{role: names[0], said: f"What of {mark(i)} {sentence(i)}?"}, {role: names[1], said: sentence(i + 500)}]


def _dialogue(i: int, more: int) -> str:
    return f"\n\nHuman: What of {mark(i)} {sentence(i)}?\n\nAssistant: {sentence(i + more)}"


ROWS = {  # layout -> a good row; in its first column, or inside it, stands the mark
    "classification": lambda i: {"text": f"{mark(i)} {sentence(i)}", "label": ("neg", "pos")[i % 2]},
    "alpaca": lambda i: {"instruction": f"{mark(i)} {sentence(i)}", "input": "", "output": sentence(i + 500)},
    "dolly": lambda i: {"instruction": f"{mark(i)} {sentence(i)}", "context": "so", "response": sentence(i + 500),
                        "category": "advice"},
    "flan": lambda i: {"inputs": f"{mark(i)} {sentence(i)}", "targets": sentence(i + 500)},
    "prompt_completion": lambda i: {"prompt": f"{mark(i)} {sentence(i)}", "completion": sentence(i + 500)},
    "question_answer": lambda i: {"question": f"{mark(i)} {sentence(i)}", "answer": sentence(i + 500)},
    "messages": lambda i: {"messages": chat(i)},
    "sharegpt": lambda i: {"conversations": chat(i, "from", "value", ("human", "gpt"))},
    "tagged": lambda i: {"text": f"<instruction>{mark(i)} {sentence(i)}</instruction>"
                                 f"<response>{sentence(i + 500)}</response>"},
    "text": lambda i: {"text": f"{mark(i)} {sentence(i)}"},
    "templates": lambda i: {"text": f"{mark(i)} {sentence(i)}", "label": ("neg", "pos")[i % 2]},
    "pairs": lambda i: {"prompt": f"{mark(i)} {sentence(i)}", "chosen": sentence(i + 500),
                        "rejected": sentence(i + 900)},
    "transcripts": lambda i: {"chosen": _dialogue(i, 500), "rejected": _dialogue(i, 900)},
    "conversational": lambda i: {"chosen": chat(i), "rejected": [*chat(i)[:1], chat(i + 400)[1]]},
    "pref_sharegpt": lambda i: {"conversations": chat(i, "from", "value", ("human", "gpt"))[:1],
                                "chosen": {"from": "gpt", "value": sentence(i + 500)},
                                "rejected": {"from": "gpt", "value": sentence(i + 900)}},
    "rankings": lambda i: {"prompt": f"{mark(i)} {sentence(i)}",
                           "responses": [sentence(i + 500), sentence(i + 900), sentence(i + 950)], "ranks": [2, 1, 3]},
    "ratings": lambda i: {"text": f"{mark(i)} {sentence(i)}", "ratings": [i % 7, 3, i % 3]},
    "words": lambda i: {"words": [mark(i), *sentence(i).split()], "tags": ["B-PER", "I-PER", *["O"] * 6]},
    "questions": lambda i: {"question": f"Who is {mark(i)}?", "context": f"{mark(i)} is {sentence(i)}",
                            "answers": [sentence(i).split()[0]], "answer_start": len(mark(i)) + 4},
}  # fmt: skip
ARGS = {"text": ["--layout", "text"], "templates": ["--templates", "own.yaml"], "ratings": ["--prompt", "Joke."]}
NESTED = ("messages", "sharegpt", "conversational", "pref_sharegpt", "rankings", "ratings", "words", "questions")
TXT, CONLL = ("text", "tagged"), ("words",)


@dataclass
class Drawn:
    """A file that was drawn: where it lies, what `data add` is asked, and what it holds."""

    path: Path
    args: list[str]
    layout: str
    form: str
    rows: int
    marks: set[str] = field(default_factory=set)
    whole: bool = True  # whether the file can be read: a cut packing or columns for rows are refused as a whole


def draw_file(data, layout: str, folder: Path) -> Drawn:
    """A file of a layout in `folder`. data: hypothesis' `st.data()`."""
    draw = data.draw
    forms = ["jsonl", "json", "parquet"] + ["csv", "tsv"] * (layout not in ("words", "questions"))
    forms += ["txt"] * (layout in TXT) + ["conll"] * (layout in CONLL)
    first = sorted(ROWS).index(layout) % len(forms)  # what the first draws are, which are the same for every layout
    form = draw(st.sampled_from([*forms[first:], *forms[:first], "columns"]))
    rows = [ROWS[layout](i) for i in range(GOOD_ROWS)]
    for i in range(GOOD_ROWS, GOOD_ROWS + draw(st.integers(0, 6))):
        rows.insert(draw(st.integers(0, len(rows))), _odd(draw, ROWS[layout](i), form))
    rows = [{key: value for key, value in row.items() if value is not ABSENT} for row in rows]
    name = draw(st.sampled_from(["mine", "mine", "My file", "d\u00e9j\u00e0-vu", "a.b.c"]))
    marks = {word for row in rows for word in _marks(row)}
    if form == "parquet":
        path = folder / f"{name}.parquet"
        _write_parquet(draw, rows, path)
        return Drawn(path, list(ARGS.get(layout, ())), layout, form, len(rows), marks)
    raw, count, marks = _text_file(draw, rows, form, layout, marks)
    ending = {"columns": "json"}.get(form, form)
    path = folder / f"{name}.{draw(st.sampled_from([ending, ending, ending.upper()]))}"
    drawn = Drawn(path, list(ARGS.get(layout, ())), layout, form, count, marks, whole=form != "columns")
    pack = draw(st.sampled_from([None, None, None, *PACK, "zip"]))
    if pack:
        drawn.path = path.with_name(f"{path.name}.{pack}")
        raw = _zipped(path.name, raw) if pack == "zip" else PACK[pack](raw)
        if draw(st.integers(0, 9)) == 0:
            drawn.whole, raw = False, raw[: len(raw) * 2 // 3]
    drawn.path.write_bytes(raw)
    return drawn


def _zipped(name: str, raw: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, raw)
    return buffer.getvalue()


def _marks(value: object) -> set[str]:
    """The marks in the texts of a value."""
    if isinstance(value, str):
        return {word for word in value.replace("?", " ").replace("<", " ").replace(">", " ").split()
                if word.startswith("zq") and word.endswith("q")}  # fmt: skip
    if isinstance(value, dict | list):
        return {word for part in (value.values() if isinstance(value, dict) else value) for word in _marks(part)}
    return set()


# --- one odd row ----------------------------------------------------------------------------------------------------


def _odd(draw, row: dict, form: str) -> dict:
    """The row with one or two things that are odd."""
    for _ in range(draw(st.integers(1, 2))):
        how = draw(st.sampled_from(["append", "append", "replace", "text", "extra", "inside", "as_json"]))
        key = draw(st.sampled_from(sorted(row)))
        if how == "extra":
            key = draw(st.sampled_from(sorted(EXTRA)))
            row[key] = draw(st.sampled_from(EXTRA[key]))
        elif how == "append" and isinstance(row[key], str):
            odd = draw(st.sampled_from(TEXTS))
            row[key] = odd + row[key] if draw(st.booleans()) else row[key] + odd
        elif how == "text":
            row[key] = draw(st.sampled_from(TEXTS))
        elif how == "as_json" and isinstance(row[key], list | dict):
            row[key] = json.dumps(row[key], default=str)
        elif how == "inside" and isinstance(row[key], list) and row[key]:
            _odd_inside(draw, row[key])
        elif how == "replace":
            row[key] = draw(st.sampled_from(VALUES))
    return row


def _odd_inside(draw, parts: list) -> None:
    """A turn, a word or a response of the row that is odd."""
    at = draw(st.integers(0, len(parts) - 1))
    if not isinstance(parts[at], dict):
        parts[at] = draw(st.sampled_from([*TEXTS, *(value for value in VALUES if value is not ABSENT)]))
        return
    key = draw(st.sampled_from([*sorted(parts[at]), *("weight", "train", "tool_calls", "name", "reasoning_content")]))
    odd = EXTRA.get(key, (*TEXTS, *VALUES)) if key != "name" else ("Ana", None)
    parts[at] = dict(parts[at])
    value = draw(st.sampled_from(odd))
    if value is ABSENT:
        parts[at].pop(key, None)
    else:
        parts[at][key] = value


# --- files of text --------------------------------------------------------------------------------------------------


def raw(text: str) -> bytes:
    """The text as bytes: half of a surrogate pair that stands for a byte is that byte."""
    return b"".join(c.encode("utf-8", "surrogateescape" if "\udc80" <= c <= "\udcff" else "surrogatepass")
                    for c in text) if not text.isascii() else text.encode()  # fmt: skip


def plain(value: object) -> object:
    """A value as a JSON writer with a fallback writes it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def as_cell(value: object) -> str:
    """A value as a CSV writer writes it: what is missing is empty, a list is its JSON."""
    if value is None or value is ABSENT or value != value:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, default=plain)
    return value if isinstance(value, str) else str(plain(value))


def _text_file(draw, rows: list[dict], form: str, layout: str, marks: set[str]) -> tuple[bytes, int, set[str]]:
    """The bytes of a file, how many rows it has, and the marks that stand in it."""
    if form == "txt":
        texts = [" ".join(as_cell(row.get("text")).split()) for row in rows]
        texts = [text for text in texts if text]
        marks = {word for text in texts for word in _marks(text)}
        gap = "\n\n" if layout == "text" else "\n"
        whole = [text for text in texts if layout == "text" or text.startswith("<instruction>")]
        return raw(gap.join(whole) + "\n"), sum(-(-len(text) // 2000) for text in whole), {
            word for text in whole for word in _marks(text)}  # fmt: skip
    if form == "conll":
        return _conll(rows)
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    start = b"\xef\xbb\xbf" if draw(st.integers(0, 4)) == 0 else b""
    if form in ("csv", "tsv"):
        body, count, marks = _delimited(draw, rows, form, layout, end, marks)
        return start + body, count, marks
    ascii_only = draw(st.booleans())
    if form == "columns":
        keys = dict.fromkeys(key for row in rows for key in row)
        table = {key: {str(i): row.get(key) for i, row in enumerate(rows)} for key in keys}
        return raw(json.dumps(table, default=plain)), len(rows), marks
    lines = [json.dumps(row, default=plain, ensure_ascii=ascii_only) for row in rows]
    if form == "json":
        shape = draw(st.sampled_from(["[{}]", "[\n{}\n]", "[{},]"]))
        return start + raw(shape.format(f",{end}".join(lines))), len(rows), marks
    extra = draw(st.sampled_from([[]] * 4 + [["{"], ['{"text": "a", }'], ["[1, 2]"], ["null"], ["1e999"], ['"a"'],
                                             [lines[0] + lines[1]], [lines[-1] + ","], ["not JSON"],
                                             ['{"text": "a", "text": "b"}'], [f'{{"a": {"9" * 5000}}}']]))  # fmt: skip
    at = draw(st.integers(1, len(lines)))
    blank = [""] * draw(st.integers(0, 1))
    lines = [*lines[:at], *extra, *blank, *lines[at:]]
    return start + raw(end.join(lines) + end * draw(st.integers(0, 1))), len(rows) + len(extra), marks


def _conll(rows: list[dict]) -> tuple[bytes, int, set[str]]:
    blocks, marks = [], set()
    for row in rows:
        pairs = [row.get(key) if isinstance(row.get(key), list) else [] for key in ("words", "tags")]
        lines = [" ".join("".join(as_cell(part).split()) for part in pair) for pair in zip(*pairs, strict=False)]
        lines = [line for line in lines if line.strip() and not line.startswith(("-DOCSTART-", "# "))]
        if lines:
            blocks.append("\n".join(lines))
            marks |= {word for line in lines for word in _marks(line)}
    return raw("\n\n".join(blocks) + "\n"), len(blocks), marks


def _delimited(draw, rows: list[dict], form: str, layout: str, end: str,
               marks: set[str]) -> tuple[bytes, int, set[str]]:  # fmt: skip
    """CSV, or TSV with quotes or without; or a CSV of plain rows among which stand some that break off."""
    header = list(dict.fromkeys(key for row in rows for key in row if key))
    header += ["more"] * draw(st.sampled_from([0, 0, 2]))
    cells = [[as_cell(row.get(key)) for key in header] for row in rows]
    how = draw(st.sampled_from(["quoted", "quoted", "plain"] if form == "tsv" else ["quoted", "quoted", "broken"]))
    how = "quoted" if how == "broken" and layout in NESTED else how
    how = "plain" if form == "tsv" and len(header) == 1 else how  # there nothing tells a quote from a character
    if how == "quoted":
        text = io.StringIO()
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        delimiter = "\t" if form == "tsv" else draw(st.sampled_from([",", ",", ";"]))
        writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
        if form == "csv" and delimiter != ",":
            text.write(f"sep={delimiter}{end}")
        writer.writerow(header)
        writer.writerows(cells)
        return raw(text.getvalue()), len(rows), marks
    delimiter = "," if form == "csv" else "\t"
    drop = str.maketrans(dict.fromkeys(f'{delimiter}\n\r' + ('"' if how == "broken" else ""), " "))
    lines = [delimiter.join(cell.translate(drop) for cell in row) for row in cells]
    extra = []
    if how == "broken":
        more = "," * (len(header) - 1)
        extra = draw(st.sampled_from([['"open'], [f'"open,{more}'], [f'"a"b{more}'], [f"{more},"],
                                      ["too few"] * (len(header) > 1)]))  # fmt: skip
        at = draw(st.integers(0, len(lines)))
        lines = [*lines[:at], *extra, *lines[at:]]
    lines = [line for line in lines if line.strip(" ")]
    return raw(end.join([delimiter.join(header), *lines]) + end), len(lines), {
        word for line in lines for cell in line.split(delimiter) for word in _marks(cell)}  # fmt: skip


# --- Parquet --------------------------------------------------------------------------------------------------------


def _write_parquet(draw, rows: list[dict], path: Path) -> None:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: _array(draw, [row.get(key) for row in rows]) for key in keys}
    more = [draw(st.sampled_from(MORE))(len(rows))] * draw(st.integers(0, 2))  # twice: two columns of one name
    table = pa.table([*columns.values(), *more], names=[*columns, *["more"] * len(more)])
    pq.write_table(table, path, row_group_size=draw(st.sampled_from([7, 1000])))


def _array(draw, values: list) -> pa.Array:
    """A column of the type that most of its values have; what does not fit it is written as text, or is missing."""
    values = [None if value is ABSENT else value for value in values]
    texts = sum(isinstance(value, str) for value in values)
    if texts > len(values) // 2 or all(value is None for value in values):
        return _text_array([value if value is None else as_cell(value) for value in values],
                           draw(st.sampled_from(TYPES)))  # fmt: skip
    try:
        if draw(st.integers(0, 3)):
            return pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        pass
    if any(values) and all(isinstance(turn, dict) for value in values for turn in (value or [] if not isinstance(
            value, str | int | float | dict | Decimal | bytes | date | timedelta) else [0])):  # fmt: skip
        return _messages_array(values)
    return _text_array([value if value is None else as_cell(value) for value in values], "string")


def _text_array(texts: list[str | None], kind: str) -> pa.Array:
    array = pa.array([None if text is None else raw(text) for text in texts], pa.binary())
    if kind == "binary":
        return array
    array = array.view(pa.string())  # its bytes need be no UTF-8: Parquet does not ask
    if kind == "dictionary":
        return pa.array([str(text) for text in texts]).dictionary_encode() if all(
            text is not None and text.isascii() for text in texts) else array  # fmt: skip
    if kind == "large_string":
        return pa.array([None if text is None else raw(text) for text in texts], pa.large_binary()).view(
            pa.large_string())  # fmt: skip
    return array


def _messages_array(values: list) -> pa.Array:
    """Turns as a list of structs of texts, whose bytes need be no UTF-8."""
    turns = [value if isinstance(value, list) else None for value in values]
    keys = sorted({key for value in turns for turn in value or () for key in turn})
    flat = [turn for value in turns for turn in value or ()]
    fields = [_text_array([as_cell(turn[key]) if turn.get(key) is not None else None for turn in flat], "string")
              for key in keys]  # fmt: skip
    offsets, at = [], 0
    for value in turns:
        offsets.append(at if value is not None else None)
        at += len(value or ())
    return pa.ListArray.from_arrays(pa.array([*offsets, at], pa.int32()), pa.StructArray.from_arrays(fields, keys))
