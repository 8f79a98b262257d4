"""Study best-of-n: one decoder out of the merged SFT model and the adapter of rejection sampling, proved.

Run by `ajuste study best-of-n`. As section `merge.dpo` says. Writes artifacts/merged/rejection.
"""

from studies.labelled import run
from studies.policies import ARTIFACTS, INSTRUCTIONS, SFT, compute, default
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tasks.merge.proof import said


def main() -> None:
    proof = merge_decoder(
        default(DecoderConfig, "merge", "dpo"), compute(), ARTIFACTS / "adapters/rejection", SFT, INSTRUCTIONS,
        ARTIFACTS / "merged/rejection",
    )  # fmt: skip
    print(said(proof))


if __name__ == "__main__":
    run(main)
