"""Study rlaif: two answers of the policy to each training prompt, artifacts/studies/rlaif/samples."""

from ajuste.core.params import typed
from studies.rlaif.shared import ENCODED, OUT, POLICY, VALIDATED, Study, run
from tasks.judge.samples import LEFT_OUT, SamplesConfig, draw_samples


def main() -> None:
    study = Study()
    ppo = study.default["ppo"]
    drawn = {"new_tokens": ppo["max_new_tokens"], "temperature": ppo["temperature"]}
    config = typed(SamplesConfig, {**study.params["samples"], **drawn}, "samples")
    found = draw_samples(config, study.compute, POLICY, ENCODED, VALIDATED, OUT / "samples")
    left_out = ", ".join(f"{found[why]} {why}" for why in LEFT_OUT)
    print(f"{found['pairs']} pairs of answers to {found['prompts']} prompts; left out: {left_out}")


if __name__ == "__main__":
    run("samples", main)
