"""Stage `assistant_rloo` of study grpo: is the assistant after RLOO still one? Figures: tasks/assistant/kept.py."""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.assistant.kept import KeptConfig, run


def main() -> None:
    with start("grpo", "assistant_rloo", KeptConfig, section(read_yaml(Path("params.yaml")), "assistant", "")) as stage:
        run(stage, "rloo")


if __name__ == "__main__":
    main()
