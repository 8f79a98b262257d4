"""Study red-team-full: a small classifier as a judge, artifacts/studies/red-team-full/classifier."""

import shutil
import tempfile
from pathlib import Path

from studies.labelled import run
from studies.redteam import ENCODER, OUT, Study
from tasks.redteam.classifier import ClassifierConfig, train_judge


def main() -> None:
    study, out = Study(), OUT / "classifier"
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        card = train_judge(study.config(ClassifierConfig, "classifier"), study.compute, ENCODER, out, Path(scratch))
    print(f"classifier: validation accuracy {card['validation']['accuracy']:.3f}")


if __name__ == "__main__":
    run(main)
