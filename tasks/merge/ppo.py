"""Stage `merge_ppo`: one decoder out of the merged SFT model and PPO's adapter, proved (tasks/merge/decoder.py).

Run it: `dvc repro merge_ppo`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tasks.merge.proof import said


class PpoConfig(DecoderConfig):
    """Section `merge.ppo`."""


def main() -> None:
    with start("merge_ppo", PpoConfig) as stage:
        artifacts = Path("artifacts")
        proof = merge_decoder(
            stage.config, stage.compute, artifacts / "adapters/ppo", artifacts / "merged/instruct",
            artifacts / "encoded/instructions", artifacts / "merged/ppo",
        )  # fmt: skip
        print(said(proof))


if __name__ == "__main__":
    main()
