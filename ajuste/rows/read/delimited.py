"""CSV and TSV: the records of a delimited file, with the line where each begins.

    CSV           RFC 4180: a field in quotes may hold delimiters, line ends and doubled quotes
    TSV, plain    lines are cut at tabs alone: a quote is a character like others. What a TSV is unless it was
    TSV, quoted   written with quotes: told by reading the whole file once (`is_quoted`)

A record that breaks off (a quote that never closes, text after a closing one) costs its first line alone: reading
resumes at the next. So does a quoted field that swallows lines which would each have been a row: such a file parses
without an error and would lose rows in silence.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.read.opened import open_bytes

MAX_RECORD = 1 << 23  # bytes; a longer record is broken, and what bounds the memory of an unclosed quote
DELIMITERS = {"csv": ",", "tsv": "\t"}
WHOLE_FIELD = re.compile(r'"(?:[^"]|"")*"')
SEP = re.compile(rb'"?sep=([,;|\t])"?')
BARE_CR = "has a carriage return in a field without quotes"
FEW = 50  # different values of a column whose values say whether a line is a row

Found = tuple[int, list[str], str | None]


def records_of(path: Path, form: str) -> Iterator[Found]:
    """(line, fields, problem): first the header, then each record that is not blank."""
    if form == "tsv" and not is_quoted(path):
        return _plain(path)
    with open_bytes(path) as file:  # a line `sep=;` above the header, for Excel, names the delimiter
        named = SEP.fullmatch(file.readline(64).removeprefix(b"\xef\xbb\xbf").strip()) if form == "csv" else None
    return _quoted(path, named[1].decode() if named else DELIMITERS[form], 1 if named else 0)


def header_of(path: Path, form: str) -> list[str]:
    """The column names of a file, stripped."""
    return next(records_of(path, form))[1]


def is_quoted(path: Path) -> bool:
    """Whether a TSV was written with quotes: fields that begin with one end with one, and quotes inside are doubled; or
    lines have the wrong number of fields, and read with quotes all records have the right one."""
    width = wrong = begun = closed = doubled = lines = 0
    with open_bytes(path) as file:
        for line in file:
            if not line.strip(b" \r\n"):
                continue
            fields = _decoded(line, not lines).rstrip("\r\n").split("\t")
            width = width or len(fields)
            lines += 1
            wrong += len(fields) != width
            starts = [field for field in fields if field.startswith('"')]
            begun += len(starts)
            closed += sum(WHOLE_FIELD.fullmatch(field) is not None for field in starts)
            doubled += sum('""' in field[1:-1] for field in starts)
    if not begun:
        return False
    if begun == closed:
        return bool(wrong or doubled) or begun >= lines - 1
    if not wrong:
        return False
    return sum(problem is not None and BARE_CR not in problem for _, _, problem in _quoted(path, "\t")) < wrong


def _plain(path: Path) -> Iterator[Found]:
    with open_bytes(path) as file:
        header: list[str] = []
        for number, line in enumerate(file, 1):
            fields = _decoded(line, number == 1).rstrip("\r\n").split("\t")
            if not line.strip(b" \r\n"):  # a line of tabs is a row of which every value is missing
                continue
            if not header:
                header = [name.strip() for name in fields]
                yield number, header, None
                continue
            yield number, fields, _width(fields, header)


class _Lines:
    """The lines of a file as text, for csv.reader; remembers those of the current record, and stops at MAX_RECORD."""

    def __init__(self, path: Path) -> None:
        self.file = open_bytes(path)
        self.number = 0  # lines handed out
        self.taken: list[bytes] = []  # of the current record
        self._size = 0
        self._again: list[bytes] = []  # handed out once more, the next one last

    def begin(self) -> None:
        self.taken, self._size = [], 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self.file.readline()
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        self._size += len(line)
        if self._size > MAX_RECORD:
            raise csv.Error(f"is longer than {MAX_RECORD} bytes: is a quote never closed?")
        return _decoded(line, self.number == 1)

    def after_first(self) -> None:
        """Go back to the line after the first one of the current record."""
        self._again += reversed(self.taken[1:])
        self.number -= len(self.taken) - 1


def _quoted(path: Path, delimiter: str, skipped: int = 0) -> Iterator[Found]:
    csv.field_size_limit(MAX_RECORD)
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    with lines.file:
        for _ in range(skipped):
            next(lines)
        header = _header(path, reader)
        yield lines.number, header, None
        seen = _Seen(len(header))
        while True:
            first = lines.number + 1
            lines.begin()
            try:
                fields = next(reader)
                problem = _width(fields, header) if fields else None
                if len(lines.taken) > 1 and problem is None and seen.swallowed(lines.taken, delimiter):
                    raise csv.Error(f"has a quote that closes {len(lines.taken) - 1} lines later, and these lines are "
                                    "rows themselves: double the quote, or close it")  # fmt: skip
            except StopIteration:
                return
            except csv.Error as error:
                text = _decoded(lines.taken[0], False).rstrip("\r\n") if lines.taken else ""
                lines.after_first()
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
                yield first, [text], f"the record {_reason(error)}"
                continue
            if not fields:
                continue
            if problem is None:
                seen.add(fields)
            yield first, fields, problem


class _Seen:
    """What the columns of the rows so far hold, to tell a row from a line of a text."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self._values: list[set[str] | None] = [set() for _ in range(width)]  # None: too many to say anything
        self._numbers = [True] * width

    def add(self, fields: list[str]) -> None:
        self.rows += 1
        for i, field in enumerate(fields):
            known = self._values[i]
            if known is not None:
                known.add(field)
                self._values[i] = known if len(known) <= FEW else None
            self._numbers[i] &= field.strip().isdigit()

    def swallowed(self, taken: list[bytes], delimiter: str) -> bool:
        """Whether each of the lines of one record would have been a row, quotes taken as characters: as many fields,
        and in the columns of numbers or of few values such a one."""
        split = [_decoded(line, False).rstrip("\r\n").split(delimiter) for line in taken]
        if any(len(fields) != len(self._values) for fields in split) or len(self._values) < 2:
            return False
        telling = [i for i in range(len(self._values)) if self.rows and self._tells(i)]
        if not telling:
            return len(taken) > 3
        return all(self._fits(i, fields[i]) for fields in split for i in telling)

    def _tells(self, i: int) -> bool:
        few = self._values[i] is not None and 2 * len(self._values[i]) <= self.rows
        return self._numbers[i] or few

    def _fits(self, i: int, field: str) -> bool:
        return field.strip().isdigit() if self._numbers[i] else field in (self._values[i] or ())


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        return [name.strip() for name in next((fields for fields in reader if fields), [])]
    except csv.Error as error:
        raise DataError(f"{path} line 1: the header {_reason(error)}") from None


def _width(fields: list[str], header: list[str]) -> str | None:
    wrong = f"the record has {len(fields)} fields, the header {len(header)}"
    return wrong if len(fields) != len(header) else None


def _decoded(line: bytes, first: bool) -> str:
    return line.removeprefix(b"\xef\xbb\xbf" if first else b"").decode("utf-8", "surrogateescape")


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "has a quote that is never closed"
    if "expected after" in text:
        return "has text after a closing quote"
    if "new-line character" in text:
        return BARE_CR
    if "field larger" in text:
        return f"has a field of over {MAX_RECORD} characters"
    return text if text.startswith(("is ", "has ")) else f"cannot be read: {text}"
