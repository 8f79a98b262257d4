"""Study red-team-full: the card of a judge, artifacts/studies/red-team-full/cards/<JUDGE>.

    python -m studies.red-team-full.card JUDGE        a name of `judges` in params.yaml
"""

import sys

from studies.labelled import run
from studies.redteam import OUT, Study
from tasks.redteam.card import CardConfig, judge_card, said


def main(name: str) -> None:
    study = Study()
    config = study.config(CardConfig, "card", behaviours=str(study.behaviours), golden=str(study.golden))
    print(said(judge_card(config, study.compute, name, study.judge(name), OUT / "cards" / name)))


if __name__ == "__main__":
    run(lambda: main(sys.argv[1]))
