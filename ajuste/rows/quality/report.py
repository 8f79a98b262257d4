"""The quality report of preference data, quality.json: what may be wrong with comparisons before anything is trained.

    duplicates   rows that left for repeating, contradicting or nearly being another
    cycles       A > B, B > C, C > A on one prompt: comparisons inside a strongly connected component of the graph of
                 responses (ajuste/rows/quality/cycles.py); a pair and its opposite have left before as contradictory
    position     how often the best response stood first in its row, where rows say in what order they were shown
    length       how often the longer response is the chosen one (Wilson interval, 0.5 is no bias), and Pearson's
                 correlation of the difference in words with the margin
    label noise  ajuste/rows/quality/noise.py
    prompts      different ones by split, and those that train and test share when only letters and digits count
    shared       texts of five words and more that stand in other sets too, letters and digits alone
                 (ajuste/rows/quality/shared.py)
    humans       ajuste/learning/statistics/agreement.py

Of K responses the first and the last are the pair that length is about. No text of a row is in the report. Memory: some
200 bytes a comparison, most of them its place.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from ajuste.learning.statistics.agreement import MARGINS, by_margin
from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.rows.ngrams import words_of
from ajuste.rows.quality.cycles import Cycles
from ajuste.rows.split import SPLITS

LEAST_WORDS = 5
STEPS = (0.0, *MARGINS)


def digest(text: str) -> int:
    """64 bits of a text's words, signed."""
    found = hashlib.blake2b(words_of(text).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(found.digest(), "big", signed=True)


class Quality:
    """Takes every comparison that is kept, then reports."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self.cycles = Cycles()
        self._margins = {split: array("d") for split in SPLITS}
        self._humans = {split: (array("d"), array("d")) for split in SPLITS}
        self._agreements = array("d")
        self._words = array("d"), array("d"), array("d")  # chosen, rejected, margin
        self._prompts = {split: array("q") for split in SPLITS}
        self._texts = {split: array("q") for split in SPLITS}

    def add(self, split: str, row: dict, position: int | None = None) -> None:
        """A kept comparison as it is written."""
        self.counts[split] += 1
        self.counts["responses", len(row["responses"])] += 1
        margin = float("nan") if row["margin"] is None else row["margin"]
        if row["margin"] is not None:
            self._margins[split].append(margin)
            for name, value in zip(("one_against_rest", "split_half"), self._humans[split], strict=True):
                value.append(float("nan") if row[name] is None else row[name])
        if row["agreement"] is not None:
            self._agreements.append(row["agreement"])
        if position is not None:
            self.counts["position"] += 1
            self.counts["best first"] += position == 0
            self.counts["slots"] += len(row["responses"])
        sizes = [len(row["responses"][place].split()) for place in (0, -1)]
        for part, value in zip(self._words, (*sizes, margin), strict=True):
            part.append(value)
        asked = digest("\n".join(turn["content"] for turn in row["prompt"]))
        self._prompts[split].append(asked)
        answers = [digest(response) for response in row["responses"]]
        self.cycles.add(asked, answers, row["location"])
        self.add_texts(split, row["responses"])

    def add_texts(self, split: str, texts: Iterable[str]) -> None:
        """Texts that other sets should not hold."""
        self._texts[split].extend(digest(text) for text in texts if text.count(" ") >= LEAST_WORDS - 1)

    def report(self, duplicates: dict[str, int], noise: dict | None, shared: list[dict]) -> dict:
        """The content of quality.json but for the name of the set."""
        prompts = {split: np.unique(np.array(self._prompts[split], np.int64)) for split in SPLITS}
        margins, ones, halves = (
            {split: np.array(part(split), float) for split in SPLITS}
            for part in (self._margins.get, lambda s: self._humans[s][0], lambda s: self._humans[s][1])
        )
        together = (np.concatenate([part[split] for split in SPLITS]) for part in (margins, ones, halves))
        known = any((~np.isnan(part)).any() for part in ones.values())
        return {
            "comparisons": {split: self.counts[split] for split in SPLITS},
            "responses": {str(key[1]): n for key, n in sorted(self.counts.items(), key=str) if isinstance(key, tuple)},
            "margins": {split: {f"{step:g}": int((margins[split] >= step).sum()) for step in STEPS}
                        for split in SPLITS if len(margins[split])},
            "agreement": _mean(self._agreements),
            "duplicates": duplicates,
            "cycles": self.cycles.report(),
            "position": self._position(),
            "length": self._length(),
            "label_noise": noise,
            "prompts": {
                **{split: {"different": len(prompts[split]), "comparisons": self.counts[split]} for split in SPLITS},
                "shared_by_train_and_test": len(np.intersect1d(prompts["train"], prompts["test"])),
            },
            "shared_texts": shared,
            "humans": by_margin(margins["test"], ones["test"], halves["test"]) if known else None,
            "humans_all": by_margin(*together) if known else None,
        }  # fmt: skip

    def shared(self, others: Iterator[tuple[str, str, str]]) -> list[dict]:
        """others: (set, source, text). How many of our texts stand there, by split; sources without any are left
        out."""
        ours = {split: np.unique(np.array(self._texts[split], np.int64)) for split in SPLITS}
        every = np.unique(np.concatenate(list(ours.values())))
        wanted = set(every.tolist())
        hits: dict[tuple[str, str], set[int]] = {}
        for name, source, text in others:
            if text.count(" ") >= LEAST_WORDS - 1 and (found := digest(text)) in wanted:
                hits.setdefault((name, source), set()).add(found)
        return [
            {"set": name, "source": source,
             **{split: len(np.intersect1d(ours[split], np.array(sorted(found), np.int64))) for split in SPLITS}}
            for (name, source), found in sorted(hits.items())
        ]  # fmt: skip

    def _position(self) -> dict | None:
        known, first = self.counts["position"], self.counts["best first"]
        if not known:
            return None
        low, high = wilson_interval(first, known)
        return {"rows": known, "best_first": _round(first / known), "low": _round(low), "high": _round(high),
                "unbiased": _round(known / self.counts["slots"])}  # fmt: skip

    def _length(self) -> dict | None:
        chosen, rejected, margin = (np.array(part, float) for part in self._words)
        differ = chosen != rejected
        if not differ.any():
            return None
        wins = int((chosen > rejected).sum())
        low, high = wilson_interval(wins, int(differ.sum()))
        known = ~np.isnan(margin)
        difference = (chosen - rejected)[known]
        varied = known.sum() > 2 and difference.std() > 0 and margin[known].std() > 0
        return {
            "pairs": int(differ.sum()), "longer_wins": _round(wins / differ.sum()),
            "low": _round(low), "high": _round(high),
            "chosen_words": _round(chosen.mean()), "rejected_words": _round(rejected.mean()),
            "correlation_with_margin": _round(np.corrcoef(difference, margin[known])[0, 1]) if varied else None,
        }  # fmt: skip


def _mean(values: array) -> dict | None:
    return {"pairs": len(values), "mean": _round(float(np.mean(values)))} if values else None


def _round(value: float) -> float:
    return round(float(value), 6)
