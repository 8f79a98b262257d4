"""Study best-of-n: the best answers as instruction rows, artifacts/studies/best-of-n/rows.

Run by `ajuste study best-of-n`.
"""

from pathlib import Path

from ajuste.core.params import read_yaml
from studies.labelled import run
from studies.policies import PREFERENCES
from tasks.rejection import best_rows

STUDY, OUT = Path("studies/best-of-n"), Path("artifacts/studies/best-of-n")


def main() -> None:
    n = read_yaml(STUDY / "params.yaml")["rejection"]["n"]
    samples = {split: OUT / f"{split}.parquet" for split in ("train", "validation")}
    report = best_rows(samples, n, PREFERENCES, OUT / "rows")
    for split, found in report["splits"].items():
        print(f"{split}: {found['rows']} rows, the best of {n} each, of {found['samples']:,} samples")


if __name__ == "__main__":
    run(main)
