"""Study rlaif: the card of a judge, artifacts/studies/rlaif/cards/<JUDGE>. `python -m studies.rlaif.card JUDGE`"""

import sys
from pathlib import Path

from studies.rlaif.shared import OUT, VALIDATED, Study, run
from tasks.judge.card import CardConfig, judge_card, said


def main(name: str) -> None:
    study = Study()
    data = Path("data") / study.default["validate"]["preferences"]["set"]
    print(said(judge_card(
        study.config(CardConfig, "card"), study.compute, name, study.judge(name), study.words(), VALIDATED, data,
        OUT / "cards" / name,
    )))  # fmt: skip


if __name__ == "__main__":
    run(f"card_{sys.argv[1]}", lambda: main(sys.argv[1]))
