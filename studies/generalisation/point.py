"""Study generalisation: the base, or the base trained on all categories or on all but one, scored on every category.

    python -m studies.generalisation.point NAME        NAME: base, all, or the category that is left out

Run by `ajuste study generalisation`. Every training has the same number of rows, as many of each category, one seed.
Writes artifacts/studies/generalisation/<NAME>.json: of each test row its category, -log p of its response, tokens, and
whether the greedy answer is its reference (SQuAD's exact match).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from ajuste.judging.answers import exact_match
from ajuste.learning.layers import ragged
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.rows.encoded.conversations import read_conversations
from studies.points import encode, errors_told, load, select, tune, write

STUDY, OUT = Path("studies/generalisation"), Path("artifacts/studies/generalisation")
BASE, BATCH_TOKENS, BATCH_ROWS = Path("artifacts/base/decoder"), 4096, 32


def main(name: str) -> None:
    params, study = read_yaml(Path("params.yaml")), read_yaml(STUDY / "params.yaml")
    every = study["categories"]
    if name not in ("base", "all", *every):
        raise UsageError(f"no point `{name}`: points are base, all, {', '.join(every)}")
    compute = typed(Compute, params["compute"], "compute")
    values = {**section(params, "instruct", ""), **study["instruct"]}
    trained = [category for category in every if category != name]
    limits = {
        "train": dict.fromkeys(trained, study["train_rows"] // len(trained)),
        "validation": dict.fromkeys(trained, 4),
        "test": dict.fromkeys(every, study["test_rows"]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        selected = select(OUT / "validated", folder / "validated", "category", limits, study["max_chars"])
        if name == "base":
            encoded, model, card = folder / "encoded", BASE, {"tokens": 0}
            encode(compute, selected, study["max_tokens"], {}, BASE, encoded)
        else:
            encoded, model, card = tune(values, compute, selected, study["max_tokens"], {}, BASE, folder)
        net, tokenizer = load(model, BASE, compute, study["instruct"]["dtype"])
        rows = read_conversations(encoded, "test")
        found: np.ndarray = ragged.row_losses(net, list(rows), BATCH_TOKENS).numpy()
        starts = [ids[:n].tolist() for ids, n in zip(rows.ids, rows.table["prompt_tokens"].to_pylist(), strict=True)]
        answers = generate(
            net, starts, study["max_new_tokens"], chat.end_of_turn(tokenizer), tokenizer.pad_token_id, BATCH_ROWS
        )
    texts = [chat.response_text(tokenizer, answer).strip() for answer in answers]
    table = rows.table.select(["row_id", "category", "reference"]).to_pylist()
    write(OUT / f"{name}.json", {
        "name": name,
        "trained_rows": 0 if name == "base" else sum(limits["train"].values()),
        "trained_tokens": card["tokens"],
        "rows": [
            {
                "row_id": row["row_id"], "category": row["category"], "nll": nll, "tokens": int(tokens),
                "exact": exact_match(text, [row["reference"]]), "answer": text,
            }
            for row, (nll, tokens), text in zip(table, found.tolist(), texts, strict=True)
        ],
    })  # fmt: skip


if __name__ == "__main__":
    with errors_told():
        main(sys.argv[1])
