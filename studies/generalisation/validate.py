"""Study generalisation: the checks of stage `validate_instructions` on the study's own set.

Run by `ajuste study generalisation`. Writes artifacts/studies/generalisation/validated.
"""

from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from tasks.validate.instructions import InstructionsConfig, validate_instructions

STUDY, OUT = Path("studies/generalisation"), Path("artifacts/studies/generalisation/validated")


def main() -> None:
    params, study = read_yaml(Path("params.yaml")), read_yaml(STUDY / "params.yaml")
    values = {**section(params, "validate", "instructions"), "set": study["set"]}
    config = typed(InstructionsConfig, values, "validate.instructions")
    compute = typed(Compute, params["compute"], "compute")
    validate_instructions(config, compute, Path("data") / config.set, OUT)


if __name__ == "__main__":
    try:
        main()
    except (DataError, UsageError) as error:
        raise SystemExit(f"error: {error}") from None
