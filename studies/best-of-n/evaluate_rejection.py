"""Study best-of-n: the assistant before and after rejection sampling on the same prompts, and what it forgot.

Run by `ajuste study best-of-n`. Figures as of the default run's methods: tasks/evaluate/policy.py on test prompts,
tasks/evaluate/validation.py on validation prompts. Writes artifacts/evaluated/rejection.
"""

from pathlib import Path

from studies.labelled import run
from studies.policies import ARTIFACTS, GOLD, PREFERENCES, REWARD, SFT, compute, default
from tasks.evaluate import policy, validation
from tasks.forgetting.scores import ForgettingConfig

METHOD = "rejection"


def main() -> None:
    config = default(policy.PolicyConfig, "evaluate", "ppo")
    out, after = ARTIFACTS / "evaluated" / METHOD, ARTIFACTS / "merged" / METHOD
    ledger = policy.Ledger(
        default(ForgettingConfig, "forgetting"), ARTIFACTS / "base/decoder", Path("data/control"),
        ARTIFACTS / "evaluated/forgetting_base",
    )  # fmt: skip
    folders = policy.Folders(SFT, after, REWARD, GOLD, PREFERENCES)
    report = policy.evaluate_policy(config, compute(), folders, ledger, out, METHOD)
    by = validation.judges(GOLD, ARTIFACTS / "merged/classify_full")
    validation.judge_policy(config, compute(), SFT, after, by, PREFERENCES, out, METHOD)
    for name in ("proxy", "gold"):
        gap = report[name]["difference"]
        print(f"{name} {gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f}) against SFT")


if __name__ == "__main__":
    run(main)
