"""Stage `alignment_grpo` of study grpo: the assistant after GRPO on the three H (tasks/alignment/scores.py)."""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.alignment.scores import AlignmentConfig, run


def main() -> None:
    values = section(read_yaml(Path("params.yaml")), "alignment", "")
    with start("grpo", "alignment_grpo", AlignmentConfig, values) as stage:
        run(stage, "grpo", Path("artifacts/merged/grpo"))


if __name__ == "__main__":
    main()
