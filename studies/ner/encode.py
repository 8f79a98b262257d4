"""Study ner: its validated rows as token ids, artifacts/studies/ner/encoded. Run by `ajuste study ner`."""

from ajuste.rows.encoded.words import encode_words
from studies.labelled import BASE, Study, run
from tasks.encode.spans import SpansConfig, encode_spans


def main() -> None:
    study = Study("ner")
    config = study.config(SpansConfig, "encode")
    encode_spans(config, encode_words, study.folder / "validated", BASE, study.folder / "encoded")


if __name__ == "__main__":
    run(main)
