"""Stage `rloo` of study grpo: the assistant learns by RLOO (tasks/rloo.py). Run by `ajuste study grpo`."""

from pathlib import Path

from ajuste.core import allocator
from ajuste.core.params import read_yaml
from studies.stages import sampled, start
from tasks.rl.policy import said
from tasks.rloo import RlooConfig, rloo


def main() -> None:
    own = read_yaml(Path("studies/grpo/params.yaml"))["rloo"]
    with start("grpo", "rloo", RlooConfig, sampled(RlooConfig, own)) as stage:
        allocator.keep_memory()
        artifacts = Path("artifacts")
        print(said(rloo(stage.config, stage.compute, artifacts, artifacts / "adapters/rloo", stage.checkpoints)))


if __name__ == "__main__":
    main()
