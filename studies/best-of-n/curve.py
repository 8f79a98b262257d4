"""Study best-of-n: proxy and gold of the best of n on the test prompts, artifacts/studies/best-of-n/curve.json.

Run by `ajuste study best-of-n`.
"""

from pathlib import Path

from ajuste.core.figures import write_json
from studies.labelled import run
from studies.policies import compute, default
from tasks.best_of_n import curve
from tasks.evaluate.policy import PolicyConfig

OUT = Path("artifacts/studies/best-of-n")


def main() -> None:
    config = default(PolicyConfig, "evaluate", "ppo")
    write_json(OUT / "curve.json", curve(OUT / "test.parquet", config.bootstrap, compute().seed))


if __name__ == "__main__":
    run(main)
