"""Study ner: the checks on its set, artifacts/studies/ner/validated. Run by `ajuste study ner`."""

from studies.labelled import Study, run
from tasks.validate.words import WordsConfig, validate_words


def main() -> None:
    study = Study("ner")
    config = study.config(WordsConfig, "validate", set=study.set.name)
    validate_words(config, study.compute, study.set, study.folder / "validated")


if __name__ == "__main__":
    run(main)
