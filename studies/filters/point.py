"""Study filters: what filtering the training rows does to the model, on rows with personal data that was planted.

    python -m studies.filters.point NAME        NAME: base, clean, planted or filtered

    base        the pretrained model, untrained
    clean       trained on the ordinary rows
    planted     trained on the ordinary rows and those with personal data, each of these `repeats` times
    filtered    the same rows, without those in which ajuste/rows/filters/ finds something

Run by `ajuste study filters`. Measured on the same rows for all: held-out loss on ordinary rows, and of each person's
data -log p and whether the greedy answer to the question holds it, character for character.
Writes artifacts/studies/filters/<NAME>.json. No text of a row stands in it.
"""

import hashlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from ajuste.learning.layers import ragged
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.rows.encoded.conversations import read_conversations
from ajuste.rows.filters.filters import Filter, made
from studies.filters.planted import Planted, planted
from studies.points import encode, errors_told, load, select, tune, write

STUDY, OUT = Path("studies/filters"), Path("artifacts/studies/filters")
BASE, VALIDATED = Path("artifacts/base/decoder"), Path("artifacts/validated/instructions")
POINTS = ("base", "clean", "planted", "filtered")
SOURCE = "planted"
BATCH_TOKENS, BATCH_ROWS = 4096, 32


def with_planted(path: Path, rows: list[Planted], repeats: int) -> None:
    """Append each row `repeats` times to a split of a validated set."""
    table = pq.read_table(path)
    added = [
        {
            "row_id": hashlib.sha256(f"{row.question} {k}".encode()).hexdigest()[:16],
            "messages": [{"role": "user", "content": row.question}, {"role": "assistant", "content": row.answer}],
            "category": row.kind, "source": SOURCE, "location": f"planted:{i + 1}",
        }
        for k in range(repeats) for i, row in enumerate(rows)
    ]  # fmt: skip
    fields = [field for field in table.schema if field.name in added[0]]
    more = pa.Table.from_pylist(added, schema=pa.schema(fields))
    pq.write_table(pa.concat_tables([table, more], promote_options="default"), path)


def without_findings(path: Path, filter: Filter) -> dict[str, dict[str, int]]:
    """Take the rows out of a split in which something is found; by kind, how many planted and ordinary ones left."""
    table = pq.read_table(path)
    kept, removed = [], {"planted": Counter(), "ordinary": Counter()}
    for i, row in enumerate(table.select(["messages", "source"]).to_pylist()):
        kinds = {one.kind for message in row["messages"] for one in filter.find(message["content"])}
        removed["planted" if row["source"] == SOURCE else "ordinary"].update(kinds | {"rows"} if kinds else ())
        if not kinds:
            kept.append(i)
    pq.write_table(table.take(pa.array(kept, pa.int64())), path)
    return {whose: dict(sorted(counts.items())) for whose, counts in removed.items()}


def main(name: str) -> None:
    if name not in POINTS:
        raise UsageError(f"no point `{name}`: points are {', '.join(POINTS)}")
    params, study = read_yaml(Path("params.yaml")), read_yaml(STUDY / "params.yaml")
    compute = typed(Compute, params["compute"], "compute")
    people = planted(study["people"], compute.seed)
    removed = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        selected = select(VALIDATED, folder / "validated", "source", study["rows"], study["max_chars"])
        with_planted(selected / "test.parquet", people, 1)
        if name in ("planted", "filtered"):
            with_planted(selected / "train.parquet", people, study["repeats"])
        if name == "filtered":
            removed = without_findings(selected / "train.parquet", made(study["kinds"], study["regions"]))
        rows = pq.read_metadata(selected / "train.parquet").num_rows
        if name == "base":
            encoded, model, card, rows = folder / "encoded", BASE, {"tokens": 0}, 0
            encode(compute, selected, study["max_tokens"], {}, BASE, encoded)
        else:
            values = {**section(params, "instruct", ""), **study["instruct"]}
            encoded, model, card = tune(values, compute, selected, study["max_tokens"], {}, BASE, folder)
        found = measured(model, encoded, compute, study, people)
    write(OUT / f"{name}.json", {
        "name": name, "trained_rows": rows, "trained_tokens": card["tokens"], "removed": removed, **found,
    })  # fmt: skip


def measured(model: Path, encoded: Path, compute: Compute, study: dict, people: list[Planted]) -> dict:
    """{"held_out": [[-log p, tokens], ...], "people": [{kind, nll, tokens, said}, ...]}, in the order of row ids."""
    net, tokenizer = load(model, BASE, compute, study["instruct"]["dtype"])
    rows = read_conversations(encoded, "test")
    losses: np.ndarray = ragged.row_losses(net, list(rows), BATCH_TOKENS).numpy()
    table = rows.table.select(["row_id", "source", "prompt_tokens"]).to_pylist()
    by_id = {hashlib.sha256(f"{row.question} 0".encode()).hexdigest()[:16]: row for row in people}
    own = [i for i, row in enumerate(table) if row["row_id"] in by_id]
    starts = [rows.ids[i][: table[i]["prompt_tokens"]].tolist() for i in own]
    answers = generate(
        net, starts, study["max_new_tokens"], chat.end_of_turn(tokenizer), tokenizer.pad_token_id, BATCH_ROWS
    )
    said = []
    for i, answer in zip(own, answers, strict=True):
        row = by_id[table[i]["row_id"]]
        text = chat.response_text(tokenizer, answer)
        said.append({"kind": row.kind, "nll": float(losses[i, 0]), "tokens": int(losses[i, 1]),
                     "said": row.secret in text})  # fmt: skip
    ordinary = [[float(losses[i, 0]), int(losses[i, 1])] for i in range(len(table)) if i not in set(own)]
    return {"held_out": ordinary, "people": said}


if __name__ == "__main__":
    with errors_told():
        main(sys.argv[1])
