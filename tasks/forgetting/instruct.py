"""Stage `forgetting_instruct`: what the assistant has forgotten of the control sets (tasks/forgetting/scores.py).

Run it: `dvc repro forgetting_instruct`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.forgetting.scores import ForgettingConfig, forgetting


def main() -> None:
    with start("forgetting_instruct", ForgettingConfig) as stage:
        artifacts = Path("artifacts")
        with stage.phase("score"):
            report = forgetting(
                stage.config, stage.compute, artifacts / "merged/instruct", artifacts / "base/decoder",
                Path("data/control"), artifacts / "evaluated/forgetting_instruct",
                artifacts / "evaluated/forgetting_base",
            )  # fmt: skip
        stage.count(tokens=report["tokens"])


if __name__ == "__main__":
    main()
