"""Any value that a file can hold as JSON text, so that keeping a bad row never fails.

    as_json({"at": datetime(2024, 1, 2), "raw": b"caf\\xe9"})   {"at": "2024-01-02 00:00:00", "raw": "caf\\udce9"}

What JSON has no form for is its text: timestamps, decimals, intervals; bytes are read as UTF-8, and a byte that is none
is a lone surrogate, as everywhere. Raises nothing: a value that is nested too deep is said to be so.
"""

import json


def as_json(value: object) -> str:
    """The JSON of a value; of one that JSON can hold, exactly json.dumps(value, ensure_ascii=False)."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError):  # keys of another type than text, or a value that holds itself
        return json.dumps(_keys_as_text(value, 50), ensure_ascii=False, default=_plain)
    except RecursionError:
        return '"(nested too deep to be kept)"'


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    return list(value) if isinstance(value, set | frozenset) else str(value)


def _keys_as_text(value: object, depth: int) -> object:
    if isinstance(value, dict | list | tuple) and not depth:
        return "..."
    if isinstance(value, dict):
        named = ((key if isinstance(key, str) else str(_plain(key)), item) for key, item in value.items())
        return {key: _keys_as_text(item, depth - 1) for key, item in named}
    return [_keys_as_text(item, depth - 1) for item in value] if isinstance(value, list | tuple) else value
