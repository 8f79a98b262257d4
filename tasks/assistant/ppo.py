"""Stage `assistant_ppo`: is the assistant after PPO still the assistant that it was? Beside the SFT model before it.

Figures: tasks/assistant/kept.py.
Reads   artifacts/merged/ppo, artifacts/evaluated/instruct, artifacts/encoded/instructions, sources/prompts
Writes  artifacts/evaluated/assistant_ppo: assistant.json, rows.parquet, answers.jsonl, references.jsonl
Run it: `dvc repro assistant_ppo`.
"""

from ajuste.core.stage import start
from tasks.assistant.kept import KeptConfig, run


class PpoConfig(KeptConfig):
    """Section `assistant`, which all methods share."""


def main() -> None:
    with start("assistant_ppo", PpoConfig) as stage:
        run(stage, "ppo")


if __name__ == "__main__":
    main()
