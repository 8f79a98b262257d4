"""Stage `alignment_rejection` of study best-of-n: the assistant after rejection sampling on the three H.

Scores: tasks/alignment/scores.py.
"""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    values = section(read_yaml(Path("params.yaml")), "alignment", "")
    with start("best-of-n", "alignment_rejection", AlignmentConfig, values) as stage:
        run(stage, "rejection", Path("artifacts/merged/rejection"))


if __name__ == "__main__":
    main()
