"""Stage `assistant_dpo`: is the assistant after DPO still the assistant that it was? Beside the SFT model before it.

Figures: tasks/assistant/kept.py.
Reads   artifacts/merged/dpo, artifacts/evaluated/instruct, artifacts/encoded/instructions, sources/prompts
Writes  artifacts/evaluated/assistant_dpo: assistant.json, rows.parquet, answers.jsonl, references.jsonl
Run it: `dvc repro assistant_dpo`.
"""

from ajuste.core.stage import start
from tasks.assistant.kept import KeptConfig, run


class DpoConfig(KeptConfig):
    """Section `assistant`, which all methods share."""


def main() -> None:
    with start("assistant_dpo", DpoConfig) as stage:
        run(stage, "dpo")


if __name__ == "__main__":
    main()
