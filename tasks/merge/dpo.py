"""Stage `merge_dpo`: one decoder out of the merged SFT model and DPO's adapter, proved (tasks/merge/decoder.py).

Run it: `dvc repro merge_dpo`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tasks.merge.proof import said


class DpoConfig(DecoderConfig):
    """Section `merge.dpo`."""


def main() -> None:
    with start("merge_dpo", DpoConfig) as stage:
        artifacts = Path("artifacts")
        proof = merge_decoder(
            stage.config, stage.compute, artifacts / "adapters/dpo", artifacts / "merged/instruct",
            artifacts / "encoded/instructions", artifacts / "merged/dpo",
        )  # fmt: skip
        print(said(proof))


if __name__ == "__main__":
    main()
