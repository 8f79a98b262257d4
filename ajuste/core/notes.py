"""What a stage has to say beside its figures: one line each on the terminal, and in .state/<stage>.json.

    say("instruct: rows are padded, which is slower: linear attention")

A run that has nothing to say leaves no trace of this anywhere. Of several processes the first one speaks.
"""

import os

_SAID: list[str] = []


def say(line: str) -> None:
    """Print a line, once a stage, and keep it for the stage's record."""
    if line not in _SAID and os.environ.get("RANK", "0") == "0":
        _SAID.append(line)
        print(line, flush=True)


def said() -> list[str]:
    """The lines since the last `forget`."""
    return list(_SAID)


def forget() -> None:
    """Begin anew: what `start` does for each stage."""
    _SAID.clear()
