"""Stage `evaluate_ppo`: the assistant before and after PPO on the same test prompts, and what PPO made it forget.

Figures and intervals: tasks/evaluate/policy.py.
Reads   artifacts/merged/{instruct, ppo, reward, gold}, artifacts/encoded/preferences, data/control,
        artifacts/base/decoder, artifacts/evaluated/forgetting_base
Writes  artifacts/evaluated/ppo: ppo.json, answers.jsonl (a line a prompt), scores.json and rows.parquet of forgetting
Run it: `dvc repro evaluate_ppo`.
"""

from ajuste.core.stage import start
from tasks.evaluate.policy import PolicyConfig, run


class PpoConfig(PolicyConfig):
    """Section `evaluate.ppo`."""


def main() -> None:
    with start("evaluate_ppo", PpoConfig) as stage:
        run(stage, "ppo")


if __name__ == "__main__":
    main()
