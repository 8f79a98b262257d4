"""Stage `assistant_grpo` of study grpo: is the assistant after GRPO still one? Figures: tasks/assistant/kept.py."""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.assistant.kept import KeptConfig, run


def main() -> None:
    with start("grpo", "assistant_grpo", KeptConfig, section(read_yaml(Path("params.yaml")), "assistant", "")) as stage:
        run(stage, "grpo")


if __name__ == "__main__":
    main()
