"""Study best-of-n: rejection sampling, a LoRA on the SFT model from its own best answers, artifacts/adapters/rejection.

Run by `ajuste study best-of-n`. The function is in tasks/rejection.py.
"""

from pathlib import Path

from ajuste.core import allocator
from ajuste.core.params import read_yaml
from studies.labelled import run
from studies.policies import ARTIFACTS, GOLD, PREFERENCES, SFT, checkpoints, compute, default
from tasks.evaluate.policy import PolicyConfig
from tasks.instruct import InstructConfig
from tasks.rejection import rejection

STUDY, OUT = Path("studies/best-of-n"), Path("artifacts/studies/best-of-n")


def main() -> None:
    changed = read_yaml(STUDY / "params.yaml")["rejection"]["instruct"]
    allocator.keep_memory()
    card = rejection(
        default(InstructConfig, "instruct", **changed), default(PolicyConfig, "evaluate", "ppo"), compute(),
        OUT / "rows", SFT, GOLD, PREFERENCES, ARTIFACTS / "adapters/rejection", checkpoints("best-of-n"),
    )  # fmt: skip
    found = card["validation"]
    print(f"{card['samples']:,} samples; validation: gold {found['gold_gain']:+.3f} [{found['gold_gain_low']:+.3f}, "
          f"{found['gold_gain_high']:+.3f}], KL {found['kl']:.2f} nats a response")  # fmt: skip


if __name__ == "__main__":
    run(main)
