"""Stage `merge_rloo` of study grpo: one decoder out of the merged SFT model and RLOO's adapter.

How, section `merge.ppo` says; tasks/merge/decoder.py does it.
"""

from pathlib import Path

from ajuste.core.params import read_yaml, section
from studies.stages import start
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tasks.merge.proof import said


def main() -> None:
    values = section(read_yaml(Path("params.yaml")), "merge", "ppo")
    with start("grpo", "merge_rloo", DecoderConfig, values) as stage:
        artifacts = Path("artifacts")
        proof = merge_decoder(
            stage.config, stage.compute, artifacts / "adapters/rloo", artifacts / "merged/instruct",
            artifacts / "encoded/instructions", artifacts / "merged/rloo",
        )  # fmt: skip
        print(said(proof))


if __name__ == "__main__":
    main()
