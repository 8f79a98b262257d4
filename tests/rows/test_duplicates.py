"""Duplicates against brute force: every pair of a few hundred texts, exact Jaccard on sets of 5-grams."""

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from ajuste.rows.duplicates import Duplicates, band_rows, shingles, signatures
from ajuste.rows.split import split_of, text_digest


def grams(text: str) -> set[str]:
    text = text.ljust(5, "\0")
    return {text[i : i + 5] for i in range(len(text) - 4)}


def jaccard(one: str, other: str) -> float:
    a, b = grams(one), grams(other)
    return len(a & b) / len(a | b)


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choice("abcdefghij") for _ in range(generator.randint(2, 8))) for _ in range(count)]


def perturbed(count: int = 240, seed: int = 0) -> list[str]:
    """Texts, some of them a few words away from an earlier one."""
    generator = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        if texts and generator.random() < 0.5:
            copy = generator.choice(texts).split()
            for _ in range(generator.randint(1, 6)):
                copy[generator.randrange(len(copy))] = words(generator, 1)[0]
            text = " ".join(copy)
        else:
            text = " ".join(words(generator, generator.randint(8, 60)))
        if text not in texts:
            texts.append(text)
    return texts


def judge(folder: Path, texts: list[str], labels: list[int] | None = None, threshold: float = 0.8, batch: int = 50,
          eligible: list[bool] | None = None, ids: list[int] | None = None):  # fmt: skip
    duplicates = Duplicates(folder, threshold)
    labels, ids = labels or [0] * len(texts), ids or list(range(len(texts)))
    eligible = eligible or [True] * len(texts)
    for i in range(0, len(texts), batch):
        part = slice(i, i + batch)
        digests = [text_digest(text) for text in texts[part]]
        splits = np.array([split_of(digest) for digest in digests])
        duplicates.add(
            texts[part],
            digests,
            np.array(labels[part]),
            splits,
            np.array(ids[part], np.uint64),
            np.array(eligible[part]),
        )
    found = [part.tolist() for part in duplicates.judge()]
    duplicates.close()
    return found


@pytest.mark.parametrize(("threshold", "seed"), [(0.8, 0), (0.8, 1), (0.6, 2), (0.9, 3)])
def test_near_duplicates_are_those_of_brute_force(tmp_path, threshold, seed):
    texts = perturbed(seed=seed)
    group = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if jaccard(texts[i], texts[j]) >= threshold and group[i] != group[j]:
            old, new = group[j], group[i]
            group = [new if g == old else g for g in group]
    expected = [-1] * len(texts)
    for g in set(group):
        members = [i for i in range(len(texts)) if group[i] == g]
        # test (2) before validation (1) before train (0), then the lowest id
        kept = min(members, key=lambda i: (-split_of(text_digest(texts[i])), i))
        for i in members:
            expected[i] = -1 if i == kept else kept
    assert sum(e >= 0 for e in expected) > 5
    duplicate_of, conflict_with, near_of = judge(tmp_path, texts, threshold=threshold)
    assert near_of == expected
    assert set(duplicate_of) == set(conflict_with) == {-1}
    assert judge(tmp_path, texts, threshold=threshold, batch=7)[2] == expected


def test_the_lowest_id_stays_within_a_split(tmp_path):
    base = " ".join(words(random.Random(5), 60))
    texts = [text for text in (f"{base} {i}" for i in range(200)) if split_of(text_digest(text)) == 0][:12]
    ids = list(range(12))
    random.Random(0).shuffle(ids)
    near_of = judge(tmp_path, texts, ids=ids)[2]
    assert near_of == [-1 if i == ids.index(0) else ids.index(0) for i in range(12)]


def test_exact_duplicates_and_conflicts_by_hand(tmp_path):
    texts = [
        "aaaaaa one",
        "bbbbbb two",
        "aaaaaa one",
        "cccccc three",
        "bbbbbb two",
        "aaaaaa one",
        "cccccc three",
        "cccccc three",
    ]
    labels = [0, 1, 0, 0, 0, 0, 1, 0]
    duplicate_of, conflict_with, near_of = judge(tmp_path, texts, labels, batch=3)
    assert duplicate_of == [-1, -1, 0, -1, -1, 0, -1, -1]
    assert [c >= 0 for c in conflict_with] == [False, True, False, True, True, False, True, True]
    assert all(labels[i] != labels[c] for i, c in enumerate(conflict_with) if c >= 0)
    assert set(near_of) == {-1}


def test_a_row_that_is_broken_anyway_throws_out_no_other(tmp_path):
    found = judge(tmp_path, ["same text here"] * 3, [0, 1, 1], eligible=[False, True, True])
    assert found == [[-1, -1, 1], [-1, -1, -1], [-1, -1, -1]]


def test_a_template_in_every_row_is_found_without_comparing_all_pairs(tmp_path):
    base = " ".join(words(random.Random(2), 80))
    near_of = judge(tmp_path, [f"{base} number {i}" for i in range(600)], batch=600)[2]
    assert near_of.count(-1) == 1


def test_no_rows_and_one_row(tmp_path):
    assert judge(tmp_path, ["x"]) == [[-1]] * 3
    assert judge(tmp_path, ["x", "y"], eligible=[False, False]) == [[-1, -1]] * 3


def test_shingles_are_the_grams_of_each_text_alone():
    texts = ["", "abc", "abcdefg", "ñandú 😀 x", "abcdefg"]
    hashes, offsets = shingles(texts)
    parts = np.split(hashes, offsets[1:-1].astype(int))
    assert [len(set(part)) for part in parts] == [len(grams(text)) for text in texts]
    assert np.array_equal(parts[2], parts[4])


def test_signatures_estimate_jaccard_like_those_of_another_library():
    """256 places: standard deviation at most 0.032; datasketch's MinHash of the same sets as a second opinion."""
    from datasketch import MinHash

    texts = perturbed(60, seed=9)
    ours = signatures(texts)
    theirs = [MinHash(num_perm=256) for _ in texts]
    for sketch, text in zip(theirs, texts, strict=True):
        sketch.update_batch([gram.encode() for gram in grams(text)])
    errors, their_errors = [], []
    for i, j in combinations(range(60), 2):
        true = jaccard(texts[i], texts[j])
        if true > 0.2:
            errors.append((ours[i] == ours[j]).mean() - true)
            their_errors.append(theirs[i].jaccard(theirs[j]) - true)
    assert len(errors) > 15 and np.abs(errors).max() < 0.13
    assert np.std(errors) < 1.5 * np.std(their_errors)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8, 0.95])
def test_bands_find_99_percent_at_the_threshold(threshold):
    r = band_rows(threshold)
    assert 1 - (1 - threshold**r) ** (256 // r) >= 0.99 > 1 - (1 - threshold ** (r + 1)) ** (256 // (r + 1))
