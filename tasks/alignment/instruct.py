"""Stage `alignment_instruct`: the assistant after supervised fine-tuning, on the three H (tasks/alignment/scores.py).

Run it: `dvc repro alignment_instruct`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    with start("alignment_instruct", AlignmentConfig) as stage:
        run(stage, "instruct", Path("artifacts/merged/instruct"))


if __name__ == "__main__":
    main()
