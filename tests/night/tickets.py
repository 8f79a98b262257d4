"""Tickets of two moods that a random model of one million parameters can learn: the words of a text decide its label.

A text is a dozen frequent words in random order and one or two words that only tickets of its mood hold; a few texts
hold a word of the other mood, so that no model is perfect. Which cue words a small file shows is a matter of luck:
that is why more rows make a better model.
"""

import csv
import random
from pathlib import Path

from ajuste.models.made import WORDS

MOODS = ("negative", "positive")  # what the gold scorer of PPO, trained on the same set, must be able to say
NOISE = 0.03  # share of texts whose cues are of the other mood
# words that the tiny tokenizer keeps whole
CUES = {
    "positive": """brilliant wonderful excellent perfect beautiful moving touching charming delightful superb powerful
        smart witty warm enjoy enjoyed enjoyable recommend entertaining masterpiece amazing fresh fine loved""".split(),
    "negative": """boring dull awful terrible worst poor stupid waste bland predictable pointless mess silly lame flat
        slow weak tedious tired fails lacks worse annoying hate""".split(),
}
FILLER = sorted({word for word in WORDS if len(word) > 2} - {cue for cues in CUES.values() for cue in cues})


def tickets(number: int, seed: int) -> list[tuple[str, str]]:
    """So many different (text, mood); half of them of each mood."""
    draw, rows = random.Random(seed), {}
    while len(rows) < number:
        mood = MOODS[len(rows) % 2]
        shown = MOODS[1 - MOODS.index(mood)] if draw.random() < NOISE else mood
        words = [*draw.sample(FILLER, draw.randint(8, 14)), *draw.sample(CUES[shown], draw.randint(1, 2))]
        draw.shuffle(words)
        rows[" ".join(words)] = mood
    return list(rows.items())


def shuffled(rows: list[tuple[str, str]], share: float, seed: int) -> list[tuple[str, str]]:
    """The rows with the labels of a share of them dealt out anew among these."""
    draw = random.Random(seed)
    places = draw.sample(range(len(rows)), round(share * len(rows)))
    labels = [rows[place][1] for place in places]
    draw.shuffle(labels)
    changed = dict(zip(places, labels, strict=True))
    return [(text, changed.get(place, label)) for place, (text, label) in enumerate(rows)]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A CSV with columns text and label; returns the path."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path
