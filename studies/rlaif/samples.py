"""Study rlaif: two answers of the policy to each training prompt, artifacts/studies/rlaif/samples."""

from studies.rlaif.shared import ENCODED, OUT, POLICY, VALIDATED, Study, run
from tasks.judge.samples import SamplesConfig, draw_samples


def main() -> None:
    study = Study()
    config = study.config(SamplesConfig, "samples")
    found = draw_samples(config, study.compute, POLICY, ENCODED, VALIDATED, OUT / "samples")
    print(f"{found['pairs']} pairs of answers to {found['prompts']} prompts, {found['same']} of equal texts left out")


if __name__ == "__main__":
    run("samples", main)
