"""Drift: are the texts of today still like those that the model learnt from? Reference and window in, a report out.

    length       words a text                              Kolmogorov-Smirnov       effect: largest gap of shares
    vocabulary   share of words unseen in training         permutation of texts     effect: difference of the shares
    classes      how often the model says each class       chi-squared              effect: share of texts that changed
    embeddings   mean-pooled states of the frozen base     energy distance, perm.   effect: energy coefficient, 0 to 1

A window drifts if a statistic is significant at `alpha` after correction for their number *and* its effect is at least
the configured minimum: with thousands of rows everything is significant, and little of it matters.

The reference is the validation split: rows of the training data that training never saw. Training rows hold no unseen
word, and a model knows their labels too well. Classes compare what the model says of the window with what it says of
the reference, not with true labels: its mistakes are in both. With true labels on both sides those are compared.

    report = drift(config, Sample(texts, labels, features), window, vocabulary)      # not a stage: it writes no files

`ajuste/tracking/verdicts/drift.py` brings the samples, `ajuste drift` and the flow `drift` ask for them.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ajuste.core.errors import DataError
from ajuste.core.params import Config
from ajuste.learning.statistics.two_sample import class_test, corrected, energy_test, length_test, share_test
from ajuste.rows.clean import clean

WORD = re.compile(r"\w+(?:'\w+)*")
REDACTED = re.compile(r"<[A-Z]+>")  # what the server's log has in the place of a secret: no word of anybody
MAX_CHARS = 2000  # of a text, as the server's log cuts it: the reference is cut alike, or long texts would look short
FEWEST_ROWS = 20  # below it no test could tell anything
MOST_ROWS = 3000  # of a sample: all distances between its rows are held at once


class DriftConfig(Config):
    """Section `drift`."""

    window: int = Field(ge=FEWEST_ROWS, le=MOST_ROWS, description="Requests of one window.")
    reference_rows: int = Field(
        ge=FEWEST_ROWS, le=MOST_ROWS, description="Validation rows that a window is compared with, at most."
    )
    alpha: float = Field(gt=0, lt=1, description="Chance that a window without drift is flagged.")
    correction: Literal["holm", "bh"] = Field(description="For the number of tests: Holm or Benjamini-Hochberg.")
    permutations: int = Field(ge=99, description="Random deals of a permutation test.")
    min_length: float = Field(ge=0, le=1, description="Least gap between the shares of texts up to some length.")
    min_vocabulary: float = Field(ge=0, le=1, description="Least difference of the shares of unseen words.")
    min_classes: float = Field(ge=0, le=1, description="Least share of texts that change class.")
    min_embeddings: float = Field(ge=0, le=1, description="Least energy coefficient.")
    drifted: int = Field(ge=1, description="So many of the last `of` windows, the latest among them, ask for `adapt`.")
    of: int = Field(ge=1, description="Windows that are looked back on.")

    @model_validator(mode="after")
    def _rule(self) -> "DriftConfig":
        if self.drifted > self.of:
            raise ValueError(f"`drifted` is {self.drifted} and `of` {self.of}: it can be at most as many")
        if (4 if self.correction == "holm" else 1) / (self.permutations + 1) > self.alpha:
            raise ValueError("too few permutations for this alpha: no p-value could be so small; raise `permutations`")
        return self


@dataclass(frozen=True)
class Sample:
    """Texts with a class each, or none; features float [N, d], or None."""

    texts: list[str]
    labels: list[str] | None = None
    features: np.ndarray | None = None


@dataclass(frozen=True)
class Finding:
    """One statistic of a window. `p` is corrected for the number of statistics."""

    name: str
    effect: float
    minimum: float
    p: float
    drifts: bool
    said: str


@dataclass(frozen=True)
class Report:
    """What a window was found to be."""

    rows: int
    reference_rows: int
    findings: list[Finding]

    @property
    def drifts(self) -> bool:
        return any(finding.drifts for finding in self.findings)

    def text(self) -> str:
        """The verdict in sentences."""
        what = ", ".join(finding.name for finding in self.findings if finding.drifts)
        verdict = f"drift: {what}" if what else "no drift"
        return "\n".join([f"{verdict} ({self.rows} texts beside {self.reference_rows} of the training data)",
                          *(finding.said for finding in self.findings)])  # fmt: skip

    def as_dict(self) -> dict:
        """For JSON."""
        return {"drifts": self.drifts, **asdict(self)}


def drift(config: DriftConfig, reference: Sample, window: Sample, vocabulary: frozenset[str], seed: int = 0) -> Report:
    """The report on a window. vocabulary: the words of the training rows, which the reference must not be part of.

    Classes and embeddings are compared where both samples have them. Raises DataError for a sample too small to judge.
    """
    for sample, what in ((reference, "the reference"), (window, "the window")):
        if len(sample.texts) < FEWEST_ROWS:
            raise DataError(f"{what} has {len(sample.texts)} texts: below {FEWEST_ROWS} no test can tell anything")
    mine, theirs = ([words(text) for text in sample.texts] for sample in (reference, window))
    found = [_length(mine, theirs, config), _vocabulary(mine, theirs, vocabulary, config, seed)]
    if reference.labels is not None and window.labels is not None:
        found.append(_classes(reference.labels, window.labels, config))
    if reference.features is not None and window.features is not None:
        found.append(_embeddings(reference.features, window.features, config, seed))
    p_values = corrected([p for _, _, _, p, _ in found], config.correction)
    findings = [
        Finding(name, effect, minimum, p, bool(p <= config.alpha and size >= minimum), f"{name}: {said} (p = {p:.2g})")
        for (name, effect, minimum, _, said), p in zip(found, p_values, strict=True)
        for size in [abs(effect)]
    ]
    return Report(len(window.texts), len(reference.texts), findings)


def words(text: str) -> list[str]:
    """The words of a text's beginning as `validate` would clean it, in small letters."""
    return WORD.findall(REDACTED.sub(" ", clean(text[:MAX_CHARS])[0]).lower())


def vocabulary_of(texts: Iterable[str]) -> frozenset[str]:
    """Every word of the texts, which are read once."""
    known: set[str] = set()
    for text in texts:
        known.update(words(text))
    return frozenset(known)


# --- the statistics: (name, effect, minimum, p, in words) -----------------------------------------------------------


def _length(mine: list[list[str]], theirs: list[list[str]], config: DriftConfig) -> tuple:
    first, second = (np.array([len(row) for row in rows]) for rows in (mine, theirs))
    effect, p = length_test(first, second)
    said = f"the median text has {np.median(second):.0f} words, {np.median(first):.0f} in training; gap {effect:.2f}"
    return "length", effect, config.min_length, p, said


def _vocabulary(mine: list, theirs: list, known: frozenset[str], config: DriftConfig, seed: int) -> tuple:
    counts = [
        (np.array([sum(word not in known for word in row) for row in rows]), np.array([len(row) for row in rows]))
        for rows in (mine, theirs)
    ]
    effect, p = share_test(*counts, config.permutations, seed)
    before, now = (hits.sum() / max(total.sum(), 1) for hits, total in counts)
    said = f"{now:.1%} of the words were never seen in training, {before:.1%} are usual"
    return "vocabulary", effect, config.min_vocabulary, p, said


def _classes(mine: list[str], theirs: list[str], config: DriftConfig) -> tuple:
    names = sorted({*mine, *theirs})
    first, second = (np.array([Counter(labels)[name] for name in names]) for labels in (mine, theirs))
    effect, p = class_test(first, second)
    largest = int(np.argmax(np.abs(second / second.sum() - first / first.sum())))
    said = (f"`{names[largest]}` is {second[largest] / second.sum():.0%} of the texts, "
            f"{first[largest] / first.sum():.0%} are usual; {effect:.0%} changed class")  # fmt: skip
    return "classes", effect, config.min_classes, p, said


def _embeddings(mine: np.ndarray, theirs: np.ndarray, config: DriftConfig, seed: int) -> tuple:
    effect, p = energy_test(mine, theirs, config.permutations, seed)
    said = f"{max(effect, 0):.1%} of the distance between a text of today and one of training is due to the change"
    return "embeddings", effect, config.min_embeddings, p, said
