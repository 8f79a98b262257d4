"""Stage `alignment_rloo` of study grpo: the assistant after RLOO on the three H (tasks/alignment/scores.py)."""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    values = section(read_yaml(Path("params.yaml")), "alignment", "")
    with start("grpo", "alignment_rloo", AlignmentConfig, values) as stage:
        run(stage, "rloo", Path("artifacts/merged/rloo"))


if __name__ == "__main__":
    main()
