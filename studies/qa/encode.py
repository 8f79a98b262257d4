"""Study qa: its validated rows as token ids, artifacts/studies/qa/encoded. Run by `ajuste study qa`."""

from ajuste.rows.encoded.questions import encode_questions
from studies.labelled import BASE, Study, run
from tasks.encode.spans import SpansConfig, encode_spans


def main() -> None:
    study = Study("qa")
    config = study.config(SpansConfig, "encode")
    encode_spans(config, encode_questions, study.folder / "validated", BASE, study.folder / "encoded")


if __name__ == "__main__":
    run(main)
