"""Stage `forgetting_base`: what the base knows of the control sets (tasks/forgetting/scores.py).

Run it: `dvc repro forgetting_base`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.forgetting.scores import ForgettingConfig, forgetting


def main() -> None:
    with start("forgetting_base", ForgettingConfig) as stage:
        artifacts = Path("artifacts")
        with stage.phase("score"):
            report = forgetting(
                stage.config, stage.compute, artifacts / "base/decoder", artifacts / "base/decoder",
                Path("data/control"), artifacts / "evaluated/forgetting_base",
            )  # fmt: skip
        stage.count(tokens=report["tokens"])


if __name__ == "__main__":
    main()
