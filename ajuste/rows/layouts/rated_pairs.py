"""Comparisons formed of rated texts: inside a split, each text in at most one, the better mean wins.

    1. train only: `prompt_share` of the texts, chosen by row id, are kept back: a policy continues their first words,
       so no comparison of training may hold them
    2. the others in the order of their row ids, which are hashes: each text is compared with the next one that has
       another mean

Texts wait in files of `scratch` by the first digits of their row id, one file in memory at a time. What is written for
a text and for a pair is the caller's.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ajuste.learning.statistics.agreement import agreement
from ajuste.rows.split import row_id

BUCKET_ROWS = 4096
MAX_BUCKETS = 256
MAX_WAITING = 1024  # texts of one and the same mean
PREFILL_WORDS, LEAST_WORDS = 6, 8


class RatedTexts:
    """The rated texts of one split: `add` them all, then read `texts` and `pairs`, each in the order of row ids."""

    def __init__(self, folder: Path, rows: int, prompt_share: float) -> None:
        """rows: at most as many will come. prompt_share: of the texts that are kept out of comparisons."""
        folder.mkdir()
        self.prompt_share = prompt_share
        self.unpaired = 0
        self._buckets = min(MAX_BUCKETS, rows // BUCKET_ROWS + 1)
        self._files = [(folder / f"{number:03d}").open("w+", encoding="utf-8") for number in range(self._buckets)]

    def add(self, text: dict) -> None:
        """text: row_id, text, raters, prompt, source, location."""
        bucket = int(text["row_id"], 16) * self._buckets >> 64
        self._files[bucket].write(json.dumps(text) + "\n")

    def texts(self) -> Iterator[tuple[dict, bool]]:
        """Every text, and whether a policy may continue it."""
        for file in self._files:
            file.seek(0)
            for text in sorted(map(json.loads, file), key=lambda text: (text["row_id"], text["location"])):
                yield text, self.is_prompt(text)

    def is_prompt(self, text: dict) -> bool:
        """By the last digits of the row id: the first ones decide about a sample."""
        return int(text["row_id"][8:], 16) < self.prompt_share * 2**32

    def pairs(self, apart: bool) -> Iterator[tuple[dict, dict]]:
        """(chosen, rejected). apart: texts that a policy may continue are left out."""
        waiting: list[dict] = []
        for text, is_prompt in self.texts():
            if apart and is_prompt:
                continue
            if waiting and mean(waiting[0]) != mean(text):
                other = waiting.pop(0)
                yield (text, other) if mean(text) > mean(other) else (other, text)
            else:
                waiting.append(text)
                if len(waiting) > MAX_WAITING:
                    waiting.pop(0)
                    self.unpaired += 1
        self.unpaired += len(waiting)

    def close(self) -> None:
        for file in self._files:
            file.close()


def mean(text: dict) -> float:
    """Mean of the ratings, rounded so that the order of the sum does not matter."""
    return round(sum(text["raters"]) / len(text["raters"]), 9)


def comparison(set_name: str, chosen: dict, rejected: dict) -> dict:
    """The row of a formed pair."""
    return {
        "row_id": row_id(set_name, chosen["row_id"], rejected["row_id"], "comparison"),
        "prompt": chosen["prompt"],
        "responses": [chosen["text"], rejected["text"]],
        "ratings": [mean(chosen), mean(rejected)],
        "agreement": agreement(chosen["raters"], rejected["raters"]),
        "source": chosen["source"],
        "location": f"{chosen['location']} > {rejected['location']}",
    }


def prefill_of(text: str) -> str | None:
    """The first words of a text as they stand there; None if the text is too short to be continued."""
    words = text.split()
    if len(words) < LEAST_WORDS:
        return None
    end = 0
    for word in words[:PREFILL_WORDS]:
        end = text.index(word, end) + len(word)
    return text[:end]
