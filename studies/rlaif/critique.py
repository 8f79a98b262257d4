"""Study rlaif: answers that the policy criticised and revised by itself, artifacts/studies/rlaif/revised."""

from pathlib import Path

from studies.rlaif.shared import OUT, POLICY, Study, run
from tasks.critique import CritiqueConfig, critique


def main() -> None:
    study = Study()
    config = study.config(CritiqueConfig, "critique")
    found = critique(config, study.compute, Path(study.words().constitution), POLICY, OUT / "revised")
    left_out = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in found["left_out"].items() if value)
    print(f"{found['kept']} of {found['prompts']} answers revised, {found['unchanged']} without a change"
          + (f"; left out: {left_out}" if left_out else ""))  # fmt: skip


if __name__ == "__main__":
    run("critique", main)
