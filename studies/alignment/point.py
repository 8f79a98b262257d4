"""Study alignment: the alignment ledger of the base after ten steps of ordinary instruction fine-tuning.

    python -m studies.alignment.point NAME        NAME: a point of params.yaml beside this file

Run by `ajuste study alignment`, after stage `alignment_base` of the default run, whose ledger is the one before. The
rows are short instructions of the default set, none of them about harm; the scores are those of the alignment stages,
by their own function. Writes artifacts/studies/alignment/<NAME>/: what an alignment stage writes, and training.json.
"""

import json
import sys
import tempfile
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from studies.points import errors_told, select, tune, write
from tasks.alignment.scores import AlignmentConfig, Inputs, align

STUDY, OUT, ARTIFACTS = Path("studies/alignment"), Path("artifacts/studies/alignment"), Path("artifacts")
BASE, VALIDATED = ARTIFACTS / "base/decoder", ARTIFACTS / "validated/instructions"


def main(name: str) -> None:
    params, study = read_yaml(Path("params.yaml")), read_yaml(STUDY / "params.yaml")
    if name not in study["points"]:
        raise UsageError(f"no point `{name}`: {STUDY / 'params.yaml'} has {', '.join(study['points'])}")
    compute = typed(Compute, params["compute"], "compute")
    scoring = typed(AlignmentConfig, section(params, "alignment", ""), "alignment")
    values = {**section(params, "instruct", ""), **study["instruct"], **study["points"][name]}
    inputs = Inputs(BASE, VALIDATED, ARTIFACTS / "encoded/instructions", Path("sources"), ARTIFACTS / "alignment/base")
    out = OUT / name
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        selected = select(VALIDATED, folder / "validated", "source", study["rows"], study["max_chars"])
        _, model, card = tune(values, compute, selected, study["max_tokens"], {}, BASE, folder)
        lines = (model / "history.jsonl").read_text(encoding="utf-8").splitlines()
        align(scoring, compute, name, model, inputs, out)
    write(out / "training.json", {
        "method": card["method"], "lr": values["lr"], "tokens": card["tokens"], "rows": study["rows"]["train"],
        "steps": max(json.loads(line)["step"] for line in lines),
    })  # fmt: skip


if __name__ == "__main__":
    with errors_told():
        main(sys.argv[1])
