"""Study ner: full fine-tuning for named entities, artifacts/studies/ner/model. Run by `ajuste study ner`.

The function of stage `classify_full` with the task of ajuste/judging/words.py; the best evaluation is kept.
"""

from ajuste.judging.words import TOKEN
from studies.labelled import BASE, Study, run
from tasks.classify.full import FullConfig, full


def main() -> None:
    study = Study("ner")
    config = study.config(FullConfig, "train")
    full(config, study.compute, study.folder / "encoded", BASE, study.folder / "model", study.checkpoints(), TOKEN)


if __name__ == "__main__":
    run(main)
