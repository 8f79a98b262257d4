"""Study mitigations: one way to fine-tune, scored on what it learnt and on what it forgot.

    python -m studies.mitigations.point NAME        NAME: a point of params.yaml beside this file

Run by `ajuste study mitigations`. Trains the default run's base on short rows of the default set with the point's
changes, and scores it on the held-out rows and, by the same function and items as stage `forgetting_base`, on the
control sets. Writes artifacts/studies/mitigations/<NAME>.json.
"""

import sys
import tempfile
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from ajuste.learning.statistics import metrics
from studies.points import errors_told, losses, select, tune, write
from tasks.forgetting.scores import ForgettingConfig, forgetting

STUDY, OUT = Path("studies/mitigations"), Path("artifacts/studies/mitigations")
BASE, VALIDATED = Path("artifacts/base/decoder"), Path("artifacts/validated/instructions")
CONTROL, BEFORE = Path("data/control"), Path("artifacts/evaluated/forgetting_base")


def main(name: str) -> None:
    params, study = read_yaml(Path("params.yaml")), read_yaml(STUDY / "params.yaml")
    if name not in study["points"]:
        raise UsageError(f"no point `{name}`: {STUDY / 'params.yaml'} has {', '.join(study['points'])}")
    compute = typed(Compute, params["compute"], "compute")
    changes = dict(study["points"][name])
    weights = {"alpaca": float(changes.pop("passes")), "wiki": float(changes.pop("replay"))}
    values = {**section(params, "instruct", ""), **study["instruct"], **changes}
    scoring = typed(ForgettingConfig, section(params, "forgetting", ""), "forgetting")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        selected = select(VALIDATED, folder / "validated", "source", study["rows"], study["max_chars"])
        encoded, model, card = tune(values, compute, selected, study["max_tokens"], weights, BASE, folder)
        (_, before), (_, after) = (losses(x, BASE, encoded, compute, scoring.dtype) for x in (BASE, model))
        forgotten = forgetting(scoring, compute, model, BASE, CONTROL, folder / "forgetting", BEFORE)
    counts = metrics.resamples(len(before), scoring.bootstrap, compute.seed)
    tokens = before[:, 1]
    write(OUT / f"{name}.json", {
        "name": name,
        "trained_tokens": card["tokens"],
        "trainable": card["parameters"]["trainable"],
        "held_out": {
            "rows": len(tokens),
            "base": metrics.estimate(before[:, 0], tokens, counts),
            "tuned": metrics.estimate(after[:, 0], tokens, counts),
            "difference": metrics.estimate(after[:, 0] - before[:, 0], tokens, counts),
        },
        "forgetting": {"sets": forgotten["sets"], "F": forgotten["F"]},
    })  # fmt: skip


if __name__ == "__main__":
    with errors_told():
        main(sys.argv[1])
