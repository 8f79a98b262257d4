"""Stage `alignment_dpo`: the assistant after DPO, on the three H (tasks/alignment/scores.py).

Run it: `dvc repro alignment_dpo`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    with start("alignment_dpo", AlignmentConfig) as stage:
        run(stage, "dpo", Path("artifacts/merged/dpo"))


if __name__ == "__main__":
    main()
