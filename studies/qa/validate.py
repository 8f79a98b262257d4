"""Study qa: the checks on its set, artifacts/studies/qa/validated. Run by `ajuste study qa`."""

from studies.labelled import Study, run
from tasks.validate.questions import QuestionsConfig, validate_questions


def main() -> None:
    study = Study("qa")
    config = study.config(QuestionsConfig, "validate", set=study.set.name)
    validate_questions(config, study.compute, study.set, study.folder / "validated")


if __name__ == "__main__":
    run(main)
