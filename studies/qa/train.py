"""Study qa: full fine-tuning for extractive question answering, artifacts/studies/qa/model. Run by `ajuste study qa`.

The function of stage `classify_full` with the task of ajuste/judging/spans.py; the best evaluation is kept.
"""

from ajuste.judging.spans import SPAN
from studies.labelled import BASE, Study, run
from tasks.classify.full import FullConfig, full


def main() -> None:
    study = Study("qa")
    config = study.config(FullConfig, "train")
    full(config, study.compute, study.folder / "encoded", BASE, study.folder / "model", study.checkpoints(), SPAN)


if __name__ == "__main__":
    run(main)
