"""Stage `evaluate_dpo`: the assistant before and after DPO on the same test prompts, and what DPO made it forget.

Figures and intervals: tasks/evaluate/policy.py; of validation prompts, for the ranking: tasks/evaluate/validation.py.
Reads   artifacts/merged/{instruct, dpo, reward, gold, classify_full}, artifacts/encoded/preferences, data/control,
        artifacts/base/decoder, artifacts/evaluated/forgetting_base
Writes  artifacts/evaluated/dpo: dpo.json, answers.jsonl (a line a prompt), scores.json and rows.parquet of forgetting,
        ranking.json, ranking.jsonl
Run it: `dvc repro evaluate_dpo`.
"""

from ajuste.core.stage import start
from tasks.evaluate import validation
from tasks.evaluate.policy import PolicyConfig, run


class DpoConfig(PolicyConfig):
    """Section `evaluate.dpo`."""


def main() -> None:
    with start("evaluate_dpo", DpoConfig) as stage:
        run(stage, "dpo")
        validation.run(stage, "dpo")


if __name__ == "__main__":
    main()
