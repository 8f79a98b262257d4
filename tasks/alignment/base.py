"""Stage `alignment_base`: the pretrained model on the three H, before anything is trained (tasks/alignment/scores.py).

Run it: `dvc repro alignment_base`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    with start("alignment_base", AlignmentConfig) as stage:
        run(stage, "base", Path("artifacts/base/decoder"))


if __name__ == "__main__":
    main()
