"""How often a window of real reviews is flagged: without drift (false alarms) and with known drifts (power).

    python -m benchmarks.drift [--write]     --write makes docs/measured/drift.md

Rows are Rotten Tomatoes sentences that the default run does not train on; reference and window are drawn from them anew
for each simulation, without a row in common, so that without drift both come from one place. The class is that of a
logistic regression on the frozen features of 2,000 training rows: feature extraction, as classify.frozen does it.
Settings are section `drift` of policy.yaml but for the window. Needs artifacts/ of the stages base_encoder and
validate_reviews in the current folder.
"""

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ajuste.core.params import parse_yaml  # noqa: E402
from ajuste.judging.verdicts.drift import MAX_CHARS, DriftConfig, Report, Sample, drift, vocabulary_of  # noqa: E402
from ajuste.learning.statistics.metrics import wilson_interval  # noqa: E402
from ajuste.models.classifier import build, logits_of  # noqa: E402
from ajuste.models.features import FeatureReader  # noqa: E402
from ajuste.models.folder import load_tokenizer  # noqa: E402
from benchmarks.results import value  # noqa: E402

ENCODER, VALIDATED = Path("artifacts/base/encoder"), Path("artifacts/validated/reviews")
TRAINED, LEARNT, HELD_OUT, FOREIGN = 4000, 2000, 3000, 700
WINDOWS = (100, 300, 600)
WITHOUT, WITH = 200, 40  # simulations of a cell


@dataclass
class Pool:
    """Texts, what the model says of each, their true classes and features."""

    texts: list[str]
    said: np.ndarray
    true: np.ndarray
    features: np.ndarray

    def take(self, rows: np.ndarray) -> Sample:
        return Sample([self.texts[i] for i in rows], self.said[rows].tolist(), self.features[rows])


def joined(first: Sample, second: Sample) -> Sample:
    features = np.concatenate([first.features, second.features])
    return Sample([*first.texts, *second.texts], [*first.labels, *second.labels], features)


def read(source: str, split: str) -> list[tuple[str, int]]:
    """(text, class) of the rows of a source, by row id: a random order that is always the same."""
    table = pq.read_table(VALIDATED / f"{split}.parquet", columns=["row_id", "text", "label", "source"]).to_pylist()
    rows = sorted((row["row_id"], row["text"], row["label"]) for row in table if row["source"] == source)
    return [row[1:] for row in rows]


class Encoder:
    """Mean-pooled features of the frozen base."""

    def __init__(self) -> None:
        self.reader = FeatureReader(build(ENCODER, ["0", "1"], pooling="mean")).eval()
        self.tokenizer = load_tokenizer(ENCODER)

    def __call__(self, texts: list[str]) -> np.ndarray:
        ids = self.tokenizer([text[:MAX_CHARS] for text in texts], truncation=True, max_length=256)["input_ids"]
        return logits_of(self.reader, ids).numpy()


def misspelt(text: str, share: float, letters: random.Random) -> str:
    """The text with two letters of each word in `share` of its words swapped for others."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 3 and letters.random() < share:
            at = letters.randrange(1, len(word) - 1)
            words[i] = word[:at] + "".join(letters.choices("qxzjkv", k=2)) + word[at + 2 :]
    return " ".join(words)


def simulate() -> tuple[DriftConfig, dict[tuple[str, int], list[Report]]]:
    """The reports of each scenario and window size."""
    config = DriftConfig(**parse_yaml((ROOT / "policy.yaml").read_text())["drift"])
    encode = Encoder()
    train = read("rotten_tomatoes", "train")
    unused = train[TRAINED:] + read("rotten_tomatoes", "validation") + read("rotten_tomatoes", "test")
    random.Random(0).shuffle(unused)
    vocabulary = vocabulary_of(text for text, _ in train[:TRAINED])
    learnt = train[:LEARNT]
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(encode([text for text, _ in learnt]), [label for _, label in learnt])

    def pool(rows: list[tuple[str, int]]) -> Pool:
        texts, features = [text for text, _ in rows], encode([text for text, _ in rows])
        said = np.array(["negative", "positive"])[model.predict(features)]
        return Pool(texts, said, np.array([label for _, label in rows]), features)

    usual = pool(unused[:HELD_OUT])
    print(f"model right in {np.mean((usual.said == 'positive') == usual.true):.3f} of the held-out rows", flush=True)
    foreign = pool(read("imdb", "validation")[:FOREIGN])
    spelt = pool([(misspelt(text, 0.1, random.Random(i)), label) for i, (text, label) in enumerate(unused[:HELD_OUT])])

    found: dict[tuple[str, int], list[Report]] = {}
    for size in WINDOWS:
        for scenario in SCENARIOS:
            for seed in range(WITHOUT if scenario == "no drift" else WITH):
                rng = np.random.default_rng(seed)
                order = rng.permutation(HELD_OUT)
                reference, rest = order[: config.reference_rows], order[config.reference_rows :]
                window = drawn(scenario, size, usual, foreign, spelt, rest, rng)
                report = drift(config, usual.take(reference), window, vocabulary, seed)
                found.setdefault((scenario, size), []).append(report)
            share = np.mean([report.drifts for report in found[scenario, size]])
            print(f"{scenario:32} {size:5} {share:.3f}", flush=True)
    return config, found


SCENARIOS = ("no drift", "a tenth from IMDb", "half from IMDb", "all from IMDb", "one word in ten misspelt",
             "classes 60 to 40", "classes 70 to 30", "classes 85 to 15")  # fmt: skip


def drawn(scenario: str, size: int, usual: Pool, foreign: Pool, spelt: Pool, rest: np.ndarray,
          rng: np.random.Generator) -> Sample:  # fmt: skip
    """A window of a scenario. rest: the rows that the reference does not have."""
    if scenario.startswith("classes"):
        positive = round(size * int(scenario.split()[1]) / 100)
        by_class = [rest[usual.true[rest] == label] for label in (1, 0)]
        return usual.take(np.concatenate([by_class[0][:positive], by_class[1][: size - positive]]))
    if "misspelt" in scenario:
        return spelt.take(rest[:size])
    share = {"no drift": 0.0, "a tenth from IMDb": 0.1, "half from IMDb": 0.5, "all from IMDb": 1.0}[scenario]
    others = round(size * share)
    if not others:
        return usual.take(rest[:size])
    return joined(usual.take(rest[: size - others]), foreign.take(rng.permutation(FOREIGN)[:others]))


def page(config: DriftConfig, found: dict[tuple[str, int], list[Report]]) -> str:
    """docs/measured/drift.md."""
    lines = [
        "# Drift: false alarms and power", "",
        f"Made with `python -m benchmarks.drift --write` from real reviews: {config.reference_rows} reference rows, "
        f"{WITHOUT} windows without drift and {WITH} of each known drift a cell, alpha {config.alpha:g}, correction "
        f"`{config.correction}`. Shares of windows that are flagged; in brackets the 95 % interval (Wilson), and for "
        "a drift the statistics that found it.", "",
        "| window | " + " | ".join(f"{size} requests" for size in WINDOWS) + " |", "|---" * (len(WINDOWS) + 1) + "|",
    ]  # fmt: skip

    def share(hits: int, rows: int) -> str:
        low, high = wilson_interval(hits, rows)
        return f"{hits / rows:.3f} ({low:.3f} to {high:.3f})"

    cells = []
    for size in WINDOWS:
        reports = found["no drift", size]
        hits = sum(any(finding.p <= config.alpha for finding in report.findings) for report in reports)
        cells.append(share(hits, len(reports)))
    lines.append("| no drift, significance alone | " + " | ".join(cells) + " |")
    for scenario in SCENARIOS:
        cells = []
        for size in WINDOWS:
            reports = found[scenario, size]
            by = Counter(finding.name for report in reports for finding in report.findings if finding.drifts)
            shown = ", ".join(f"{name} {count / len(reports):.2f}" for name, count in by.most_common())
            cell = share(sum(report.drifts for report in reports), len(reports))
            cells.append(cell if scenario == "no drift" else f"{cell}; {shown or 'none'}")
        name = "no drift, with the least effects" if scenario == "no drift" else scenario
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    columns = [*(f"no drift, {size}" for size in WINDOWS), f"IMDb, {WINDOWS[-1]}"]
    lines += ["", "Mean effects without drift and with all from IMDb, beside the least effects of policy.yaml:", "",
              "| statistic | least | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]  # fmt: skip
    for i, finding in enumerate(found["no drift", WINDOWS[0]][0].findings):
        effects = [np.mean([abs(report.findings[i].effect) for report in found[key]])
                   for key in [*(("no drift", size) for size in WINDOWS), ("all from IMDb", WINDOWS[-1])]]  # fmt: skip
        cells = " | ".join(f"{effect:.3f}" for effect in effects)
        lines.append(f"| {finding.name} | {finding.minimum:g} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/measured/drift.md")
    args = parser.parse_args()
    config, found = simulate()
    for (scenario, size), reports in found.items():
        value(f"{scenario}, {size} requests, flagged", "share", [np.mean([report.drifts for report in reports])])
    text = page(config, found)
    print(text)
    if args.write:
        (ROOT / "docs/measured/drift.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
