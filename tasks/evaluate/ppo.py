"""Stage `evaluate_ppo`: the assistant before and after PPO on the same test prompts, and what PPO made it forget.

Figures and intervals: tasks/evaluate/policy.py; of validation prompts, for the ranking: tasks/evaluate/validation.py.
Reads   artifacts/merged/{instruct, ppo, reward, gold, classify_full}, artifacts/encoded/preferences, data/control,
        artifacts/base/decoder, artifacts/evaluated/forgetting_base
Writes  artifacts/evaluated/ppo: ppo.json, answers.jsonl (a line a prompt), scores.json and rows.parquet of forgetting,
        ranking.json, ranking.jsonl
Run it: `dvc repro evaluate_ppo`.
"""

from ajuste.core.stage import start
from tasks.evaluate import validation
from tasks.evaluate.policy import PolicyConfig, run


class PpoConfig(PolicyConfig):
    """Section `evaluate.ppo`."""


def main() -> None:
    with start("evaluate_ppo", PpoConfig) as stage:
        run(stage, "ppo")
        validation.run(stage, "ppo")


if __name__ == "__main__":
    main()
