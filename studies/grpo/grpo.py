"""Stage `grpo` of study grpo: the assistant learns by GRPO (tasks/grpo.py). Run by `ajuste study grpo`."""

from pathlib import Path

from ajuste.core import allocator
from ajuste.core.params import read_yaml
from studies.stages import sampled, start
from tasks.grpo import GrpoConfig, grpo
from tasks.rl.policy import said


def main() -> None:
    own = read_yaml(Path("studies/grpo/params.yaml"))["grpo"]
    with start("grpo", "grpo", GrpoConfig, sampled(GrpoConfig, own)) as stage:
        allocator.keep_memory()
        artifacts = Path("artifacts")
        print(said(grpo(stage.config, stage.compute, artifacts, artifacts / "adapters/grpo", stage.checkpoints)))


if __name__ == "__main__":
    main()
