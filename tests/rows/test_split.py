"""Ids and splits against independent answers, and adding rows never moves one."""

import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from ajuste.rows.split import SPLITS, in_sample, row_id, split_of, split_text, text_digest


def test_row_id_by_hand():
    by_hand = hashlib.sha256(b'["reviews","a \\"b\\"","1","imdb"]').hexdigest()[:16]
    assert row_id("reviews", 'a "b"', "1", "imdb") == by_hand
    assert row_id("reviews", "caf\udce9", "1", "imdb") != row_id("reviews", "café", "1", "imdb")
    ids = {
        row_id(*parts)
        for parts in (("s", "t", "l", "o"), ("s", "tl", "", "o"), ("st", "", "l", "o"), ("s", "t", "lo", ""))
    }
    assert len(ids) == 4


def test_split_text_by_hand():
    assert split_text("  Ｆｕｌｌ\u00a0Width\n\tSTRASSE ﬁn ") == "full width strasse fin"
    assert split_text("Straße") == split_text("STRASSE")


def test_split_by_hand_and_its_shares():
    counts = [0, 0, 0]
    for i in range(20_000):
        text = f"text {i}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        share = int(digest[:16], 16) / 2**64
        split = split_of(text_digest(text))
        assert SPLITS[split] == ("train" if share < 0.8 else "validation" if share < 0.9 else "test")
        counts[split] += 1
    # binomial, 20,000 rows: four standard deviations are 226 and 170
    assert abs(counts[0] - 16_000) < 226 and abs(counts[1] - 2_000) < 170 and abs(counts[2] - 2_000) < 170


@given(st.text(), st.sampled_from(["  ", "\n", "\u3000"]))
def test_what_looks_the_same_is_in_the_same_split(text, blank):
    again = blank + text.replace(" ", blank) + blank
    assert split_of(text_digest(split_text(again))) == split_of(text_digest(split_text(text)))


def test_a_sample_is_part_of_every_larger_one():
    generator = random.Random(1)
    ids = [f"{generator.getrandbits(64):016x}" for _ in range(5000)]
    kept = [{i for i in ids if in_sample(i, share)} for share in (0.06, 0.5, 1.0)]
    assert kept[0] < kept[1] < kept[2] == set(ids)
    assert abs(len(kept[1]) - 2500) < 4 * (5000 / 4) ** 0.5
