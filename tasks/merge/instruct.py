"""Stage `merge_instruct`: one decoder out of the base and what `instruct` trained, proved (tasks/merge/decoder.py).

Run it: `dvc repro merge_instruct`.
"""

from pathlib import Path

from ajuste.core.stage import start
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tasks.merge.proof import said


class InstructConfig(DecoderConfig):
    """Section `merge.instruct`."""


def main() -> None:
    with start("merge_instruct", InstructConfig) as stage:
        artifacts = Path("artifacts")
        proof = merge_decoder(
            stage.config, stage.compute, artifacts / "adapters/instruct", artifacts / "base/decoder",
            artifacts / "encoded/instructions", artifacts / "merged/instruct",
        )  # fmt: skip
        print(said(proof))


if __name__ == "__main__":
    main()
