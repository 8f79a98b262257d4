"""Stage `alignment_ppo`: the assistant after PPO, on the three H (tasks/alignment/scores.py).

Run it: `dvc repro alignment_ppo`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    with start("alignment_ppo", AlignmentConfig) as stage:
        run(stage, "ppo", Path("artifacts/merged/ppo"))


if __name__ == "__main__":
    main()
