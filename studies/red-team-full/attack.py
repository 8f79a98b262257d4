"""Study red-team-full: all families on one model, artifacts/studies/red-team-full/attack/<SETTING>.

    python -m studies.red-team-full.attack SETTING        plain: no system message; guarded: one that asks for caution

scores.json: scores in the form of alignment.json, and how many answers of each family got which verdict.
answers.jsonl: the transcripts, for people to read on this machine; no page shows them.
"""

import sys
from collections import Counter

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_lines
from studies.labelled import run
from studies.redteam import OUT, Study, write
from tasks.redteam.attack import RedTeamConfig, answered, scores

SETTINGS = {"plain": False, "guarded": True}


def main(setting: str) -> None:
    if setting not in SETTINGS:
        raise UsageError(f"no setting `{setting}`: settings are {', '.join(SETTINGS)}")
    study = Study()
    config = study.config(RedTeamConfig, "attack", behaviours=str(study.behaviours), golden=str(study.golden),
                          system=SETTINGS[setting])  # fmt: skip
    found = answered(*study.speaker(study.params["model"], "attack"), config, study.compute)
    made = scores(found, config, study.compute.seed)
    verdicts: dict[str, Counter] = {}
    for row in found:
        if row.sample == 0:
            verdicts.setdefault(row.family, Counter())[row.verdict] += 1
    counts = {family: dict(sorted(of.items())) for family, of in verdicts.items()}
    write(f"attack/{setting}/scores.json", {"setting": setting, "scores": made, "verdicts": counts})
    lines = [
        {"id": row.behaviour.id, "family": row.family, "sample": row.sample, "answer": row.answer,
         "verdict": row.verdict}
        for row in found
    ]  # fmt: skip
    write_lines(OUT / "attack" / setting / "answers.jsonl", lines)
    print(f"{setting}: {len(found)} answers to {len(config.families)} families, judged by {made[0]['judge']}")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1]))
