"""Study best-of-n: N answers of the SFT policy to each prompt of a split, scored. Run by `ajuste study best-of-n`.

    python -m studies.best-of-n.sample SPLIT            train, validation or test

Of validation only the half that a training may choose by. Writes artifacts/studies/best-of-n/<SPLIT>.parquet.
"""

import sys
from pathlib import Path

from ajuste.core import allocator
from ajuste.core.params import read_yaml
from studies.labelled import run
from studies.policies import GOLD, PREFERENCES, REWARD, SFT, compute, default
from tasks.best_of_n import DrawConfig, Folders, draw
from tasks.evaluate import policy, validation

STUDY, OUT = Path("studies/best-of-n"), Path("artifacts/studies/best-of-n")


def main(split: str) -> None:
    study = read_yaml(STUDY / "params.yaml")
    number = study["prompts"][split]
    config = default(DrawConfig, "evaluate", "ppo", samples=study["samples"], prompts=number)
    if split == "validation":
        prompts = validation.first(validation.halves(PREFERENCES)[0], number)
    else:
        prompts = policy.read_prompts(PREFERENCES, split, number)
    allocator.keep_memory()
    tokens = draw(config, compute(), Folders(SFT, REWARD, GOLD, PREFERENCES), prompts, OUT / f"{split}.parquet")
    print(f"{split}: {len(prompts.ids)} prompts, {config.samples} answers each, {tokens:,} tokens")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1]))
