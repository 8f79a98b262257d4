"""Stage `evaluate_grpo` of study grpo: the assistant before and after GRPO, judged as PPO is (section `evaluate.ppo`).

Figures and intervals: tasks/evaluate/policy.py; of validation prompts, for the ranking: tasks/evaluate/validation.py.
"""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.evaluate import validation
from tasks.evaluate.policy import PolicyConfig, run


def main() -> None:
    values = section(read_yaml(Path("params.yaml")), "evaluate", "ppo")
    with start("grpo", "evaluate_grpo", PolicyConfig, values) as stage:
        run(stage, "grpo")
        validation.run(stage, "grpo")


if __name__ == "__main__":
    main()
