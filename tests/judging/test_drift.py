"""Drift: tests against other ways to the same number, false alarms and power on simulated texts, the request log."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, energy_distance, ks_2samp

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import parse_yaml, typed
from ajuste.judging.verdicts.drift import MAX_CHARS, DriftConfig, Sample, drift, vocabulary_of, words
from ajuste.learning.statistics import two_sample
from ajuste.rows.request_log import log_files, read_windows
from ajuste.serving.log import requests as request_log

CONFIG = DriftConfig(
    window=100, reference_rows=200, alpha=0.05, correction="holm", permutations=199, min_length=0.0,
    min_vocabulary=0.0, min_classes=0.0, min_embeddings=0.0, drifted=2, of=5,
)  # fmt: skip
KNOWN = [f"word{i}" for i in range(200)]
VOCABULARY = frozenset(KNOWN)


def made(
    rng: np.random.Generator, rows: int, length: float = 20, unseen: float = 0.02, prior: float = 0.5, shift: float = 0
) -> Sample:
    """Texts whose words go together: the share of unseen words differs from text to text."""
    texts = []
    for size in 1 + rng.poisson(length, rows):
        share = rng.beta(0.5, 0.5 * (1 - unseen) / unseen)
        picked = rng.integers(0, len(KNOWN), size)
        fresh = rng.random(size) < share
        texts.append(" ".join(f"new{i}" if new else KNOWN[i] for i, new in zip(picked, fresh, strict=True)))
    labels = np.where(rng.random(rows) < prior, "positive", "negative").tolist()
    return Sample(texts, labels, rng.normal(size=(rows, 4)) + shift)


# --- the tests ------------------------------------------------------------------------------------------------------


def test_energy_is_that_of_scipy_and_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 1)), rng.normal(size=(20, 1)) * 2 + 1
    effect, p = two_sample.energy_test(x, y, 999, 0)
    across = np.mean([abs(a - b) for a in x[:, 0] for b in y[:, 0]])
    within = [np.mean([abs(a - b) for a, b in combinations(rows[:, 0], 2)]) for rows in (x, y)]
    assert effect == pytest.approx((2 * across - sum(within)) / (2 * across))
    # scipy's has each row's distance to itself in its means, and is a square root
    whole = sum((1 - 1 / len(rows)) * mean for rows, mean in zip((x, y), within, strict=True))
    assert 2 * across - whole == pytest.approx(energy_distance(x[:, 0], y[:, 0]) ** 2)
    assert p < 0.01


def test_p_of_the_energy_test_is_that_of_all_deals() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(9, 3))
    rows[:4] += 0.7
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)

    def energy(first: tuple[int, ...]) -> float:
        second = [i for i in range(9) if i not in first]
        across = np.mean([distance[i, j] for i in first for j in second])
        return 2 * across - sum(np.mean([distance[i, j] for i, j in combinations(g, 2)]) for g in (first, second))

    every = [energy(first) for first in combinations(range(9), 4)]
    exact = np.mean([value >= energy((0, 1, 2, 3)) - 1e-12 for value in every])
    found = two_sample.energy_test(rows[:4], rows[4:], 9999, 0)[1]
    assert found == pytest.approx(exact, abs=0.02) and 0.01 < exact < 0.9


def test_share_test_counts_words_and_permutes_texts() -> None:
    first = np.array([1, 0, 2, 0]), np.array([10, 5, 20, 5])
    second = np.array([4, 3, 0]), np.array([8, 6, 4])
    effect, p = two_sample.share_test(first, second, 9999, 0)
    assert effect == pytest.approx(7 / 18 - 3 / 40)
    hits, total = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    every = []
    for chosen in combinations(range(7), 4):
        rest = [i for i in range(7) if i not in chosen]
        every.append(hits[rest].sum() / total[rest].sum() - hits[list(chosen)].sum() / total[list(chosen)].sum())
    assert p == pytest.approx(np.mean(np.abs(every) >= effect - 1e-12), abs=0.02)


def test_class_test_is_pearsons_and_joins_rare_classes() -> None:
    effect, p = two_sample.class_test(np.array([50, 50]), np.array([70, 30]))
    assert effect == pytest.approx(0.2) and p == pytest.approx(0.00389, abs=1e-4)  # chi2 = 25/3, one degree of freedom
    assert two_sample.class_test(np.array([500, 400, 0, 1]), np.array([50, 40, 1, 0]))[1] > 0.01
    assert two_sample.class_test(np.array([5, 0]), np.array([9, 0])) == (0.0, 1.0)
    rare = two_sample.class_test(np.array([100, 2]), np.array([100, 1]))
    assert rare[1] == 1.0 and rare[0] < 0.02  # Fisher's exact test
    every = [two_sample.class_test(np.array([300 - a, a]), np.array([300 - b, b]))[1]
             for a, b in np.random.default_rng(0).binomial(300, 0.01, (500, 2))]  # fmt: skip
    assert np.mean(np.array(every) <= 0.05) <= 0.05


def test_corrections() -> None:
    assert two_sample.corrected([0.04, 0.01, 0.03, 0.005], "holm") == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert two_sample.corrected([0.04, 0.01, 0.03, 0.005], "bh") == pytest.approx([0.04, 0.02, 0.04, 0.02])
    assert max(two_sample.corrected([0.9, 0.8], "holm")) == 1


# --- false alarms and power -----------------------------------------------------------------------------------------


def flagged(runs: int, config: DriftConfig, rows: int = 100, **change: float) -> tuple[int, dict[str, int]]:
    """How many of `runs` windows drift, with any statistic and by statistic."""
    total, by = 0, {}
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        report = drift(config, made(rng, 2 * rows), made(rng, rows, **change), VOCABULARY, seed)
        total += report.drifts
        for found in report.findings:
            by[found.name] = by.get(found.name, 0) + found.drifts
    return total, by


@pytest.mark.parametrize("correction", ["holm", pytest.param("bh", marks=pytest.mark.slow)])
def test_without_drift_at_most_alpha_of_the_windows_is_flagged(correction: str) -> None:
    """The least effects are 0 here, so that the tests and their correction stand alone."""
    runs = 200
    total, by = flagged(runs, CONFIG.model_copy(update={"correction": correction, "permutations": 99}), rows=40)
    assert set(by) == {"length", "vocabulary", "classes", "embeddings"}
    assert total <= binom.ppf(0.999, runs, CONFIG.alpha)
    assert total >= binom.ppf(0.001, runs, CONFIG.alpha / 2), "a test that never flags is no test"


@pytest.mark.parametrize(
    ("name", "change"),
    [("length", {"length": 26}), ("vocabulary", {"unseen": 0.12}), ("classes", {"prior": 0.7}),
     ("embeddings", {"shift": 0.5})],
)  # fmt: skip
def test_a_known_drift_is_found_by_its_own_statistic(name: str, change: dict) -> None:
    total, by = flagged(12, CONFIG, **change)
    assert by[name] >= 9 and total >= by[name]
    assert all(count <= 4 for other, count in by.items() if other != name)


def test_words_of_a_text_go_together_and_a_test_of_words_would_cry_wolf() -> None:
    from scipy.stats import chi2_contingency

    alarms = {"texts": 0, "words": 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        counts = []
        for rows in (80, 40):
            split = [words(text) for text in made(rng, rows).texts]
            counts.append((np.array([sum(w not in VOCABULARY for w in row) for row in split]),
                           np.array([len(row) for row in split])))  # fmt: skip
        alarms["texts"] += two_sample.share_test(*counts, 199, seed)[1] <= 0.05
        table = [[hits.sum(), total.sum() - hits.sum()] for hits, total in counts]
        alarms["words"] += chi2_contingency(table, correction=False).pvalue <= 0.05
    assert alarms["texts"] <= binom.ppf(0.999, 100, 0.05) < alarms["words"]


def test_a_small_change_in_many_rows_is_significant_and_no_drift() -> None:
    rng = np.random.default_rng(5)
    first, second = made(rng, 2500), made(rng, 2500, prior=0.56)
    plain, with_minimum = (
        drift(CONFIG.model_copy(update={"min_classes": least}), *(replace(s, features=None) for s in (first, second)),
              VOCABULARY) for least in (0.0, 0.1)
    )  # fmt: skip
    assert plain.drifts and not with_minimum.drifts
    assert plain.findings[2].p == with_minimum.findings[2].p < 0.01


def test_report_says_it_in_words_and_needs_rows() -> None:
    rng = np.random.default_rng(7)
    reference, window = made(rng, 200), made(rng, 100, prior=0.95, length=60)
    report = drift(CONFIG, reference, window, VOCABULARY)
    first, *rest = report.text().splitlines()
    assert first == "drift: length, classes (100 texts beside 200 of the training data)"
    assert rest[2].startswith("classes: `") and "are usual" in rest[2]
    assert json.loads(json.dumps(report.as_dict()))["findings"][0]["drifts"] is True
    only = drift(CONFIG, replace(reference, labels=None), replace(window, features=None), VOCABULARY)
    assert [found.name for found in only.findings] == ["length", "vocabulary"]
    expected = ks_2samp([len(t.split()) for t in reference.texts], [len(t.split()) for t in window.texts])
    assert only.findings[0].effect == pytest.approx(expected.statistic)
    with pytest.raises(DataError, match="the window has 3 texts: below 20"):
        drift(CONFIG, reference, Sample(["a"] * 3), VOCABULARY)


def test_words_and_vocabulary() -> None:
    assert words("Don't <br />stop &amp; GO, caf\u00e9!") == ["don't", "stop", "go", "caf\u00e9"]
    assert words("Write to <EMAIL> now") == ["write", "to", "now"]  # the server's log is redacted
    assert vocabulary_of(iter(["A b", "b C"])) == {"a", "b", "c"}


def test_texts_are_cut_as_the_log_cuts_them() -> None:
    """A reference of whole texts beside a log of cut ones would be a drift of its own."""
    assert request_log.MAX_CHARS == MAX_CHARS
    rng = np.random.default_rng(9)
    long = [" ".join(rng.choice(KNOWN, size)) for size in rng.integers(100, 600, 200)]
    report = drift(CONFIG, Sample(long[:100]), Sample([text[:MAX_CHARS] for text in long[100:]]), VOCABULARY)
    assert not report.drifts and max(map(len, long)) > 1.5 * MAX_CHARS


@pytest.mark.parametrize(
    ("change", "message"),
    [({"drifted": 6}, "it can be at most as many"), ({"alpha": 0.001}, "raise `permutations`"),
     ({"correction": "none"}, "holm"), ({"window": 3}, "greater than or equal to 20"), ({"wndow": 3}, "unknown key")],
)  # fmt: skip
def test_a_wrong_section_is_one_line(change: dict, message: str) -> None:
    values = parse_yaml((ROOT / "policy.yaml").read_text())["drift"]
    assert typed(DriftConfig, values, "drift").of == 5
    with pytest.raises(UsageError, match=message) as caught:
        typed(DriftConfig, values | change, "drift")
    assert "\n" not in str(caught.value)


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., list[Path]]:
    """write(numbers, file, version): appends requests to a file of the log; returns the log's files."""

    def write(numbers: range, file: str = "m.jsonl", version: str = "1") -> list[Path]:
        with (tmp_path / file).open("a") as out:
            for i in numbers:
                line = {"time": f"2026-01-01T00:00:{i:06d}Z", "name": "m", "version": version, "kind": "classifier",
                        "text": f"text {i}", "label": "positive", "probability": 0.9}  # fmt: skip
                out.write(json.dumps(line) + "\n")
        return log_files(tmp_path, "m")

    return write


def numbers(windows: list) -> list[list[int]]:
    return [[int(request.text.split()[1]) for request in window] for window in windows]


def test_windows_lie_end_to_end_over_rotations(log, tmp_path: Path) -> None:
    assert log_files(tmp_path, "m") == []
    found = read_windows(log(range(25)), "1", 10, 5)
    assert numbers(found.windows) == [[*range(10)], [*range(10, 20)]] and found.waiting == 5
    last = found.windows[-1][-1].digest
    assert read_windows(log(range(0)), "1", 10, 5, last).windows == []
    (tmp_path / "m.jsonl").rename(tmp_path / "m.jsonl.1")
    found = read_windows(log(range(25, 42)), "1", 10, 5, last)
    assert numbers(found.windows) == [[*range(20, 30)], [*range(30, 40)]] and found.waiting == 2
    (tmp_path / "m.jsonl").rename(tmp_path / "m.jsonl.1")  # the request of `last` is gone: all that is left is newer
    assert numbers(read_windows(log(range(42, 50)), "1", 10, 5, last).windows) == [[*range(25, 35)], [*range(35, 45)]]


def test_the_latest_windows_are_taken_and_memory_is_theirs(log) -> None:
    found = read_windows(log(range(97)), "1", 10, 2)
    assert numbers(found.windows) == [[*range(70, 80)], [*range(80, 90)]]
    assert (found.waiting, found.skipped) == (7, 7)


def test_broken_lines_and_other_versions_cost_themselves_alone(log, tmp_path: Path) -> None:
    log(range(5))
    with (tmp_path / "m.jsonl").open("ab") as file:
        file.write(b'{"time": "2026\n\n[1]\n{"time": "t", "version": "1"}\n\xff\xfe\n' + b"[" * 100_000 + b"\n")
    log(range(5, 8), version="2")
    found = read_windows(log(range(8, 13)), "1", 10, 5)
    assert numbers(found.windows) == [[*range(5), *range(8, 13)]] and found.others == 3 and found.broken == 5
    assert found.first_broken == "m.jsonl:6: the line is no valid JSON"
