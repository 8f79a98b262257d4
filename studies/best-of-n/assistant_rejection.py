"""Study best-of-n: is the assistant after rejection sampling still the assistant that it was?

Run by `ajuste study best-of-n`. Figures: tasks/assistant/kept.py. Writes artifacts/evaluated/assistant_rejection.
"""

from pathlib import Path

from studies.labelled import run
from studies.policies import ARTIFACTS, INSTRUCTIONS, compute, default
from tasks.assistant.kept import KeptConfig, measure_config, measure_kept

METHOD = "rejection"


def main() -> None:
    report = measure_kept(
        default(KeptConfig, "assistant"), measure_config(), compute(), METHOD, ARTIFACTS / "merged" / METHOD,
        ARTIFACTS / "evaluated/instruct", INSTRUCTIONS, Path("sources/prompts"),
        ARTIFACTS / "evaluated" / f"assistant_{METHOD}",
    )  # fmt: skip
    gap = report["held_out"]["difference"]
    print(f"held-out loss {gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}) against SFT")


if __name__ == "__main__":
    run(main)
