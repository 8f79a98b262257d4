"""Study data-size: one strategy on the ROWS training rows of the lowest row ids, so that small sets lie in large ones.

    python -m studies.data-size.point ROWS STRATEGY        STRATEGY: frozen, full, lora

Run by `ajuste study data-size`. Calls the same functions as the default run on its encoded rows and cached features,
with the epochs of params.yaml beside this file, and measures on the same validation and test rows. The point of all
rows is the default run itself. Writes artifacts/studies/data-size/<ROWS>-<STRATEGY>.json.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from ajuste.learning.lora import merge
from ajuste.models.classifier import load_adapter, save
from tasks.classify.frozen import FrozenConfig, frozen
from tasks.classify.full import FullConfig, full
from tasks.classify.lora import LoraConfig, lora
from tasks.evaluate.classify import ClassifyConfig, evaluate_classify

STUDY, OUT, BASE = Path("studies/data-size"), Path("artifacts/studies/data-size"), Path("artifacts/base/encoder")
ENCODED, FEATURES = Path("artifacts/encoded/reviews"), Path("artifacts/features/reviews")


def cut(rows: int, folder: Path) -> tuple[Path, Path]:
    """Copies of the encoded set and its features in `folder`, with the `rows` training rows of the lowest row ids."""
    encoded, features = shutil.copytree(ENCODED, folder / "encoded"), shutil.copytree(FEATURES, folder / "features")
    train, tensors = pq.read_table(encoded / "train.parquet"), load_file(features / "features.safetensors")
    if rows > train.num_rows:
        raise UsageError(f"{ENCODED} has {train.num_rows} training rows, fewer than the {rows} of this point")
    kept = np.array(pc.sort_indices(train["row_id"]))[:rows]
    for path in (encoded / "train.parquet", features / "features.safetensors"):
        path.unlink()  # DVC's files may be read-only, and so their copies
    pq.write_table(train.take(kept), encoded / "train.parquet")
    save_file({**tensors, "train": tensors["train"][kept].contiguous()}, features / "features.safetensors")
    return encoded, features


def main(rows: int, strategy: str) -> None:
    params = read_yaml(Path("params.yaml"))
    compute = typed(Compute, params["compute"], "compute")
    values = section(params, "classify", strategy)
    if strategy != "frozen":
        values = {**values, "epochs": read_yaml(STUDY / "params.yaml")["epochs"][rows], "evaluations": 1}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encoded, features = cut(rows, folder)
        (folder / "checkpoints").mkdir()
        out, checkpoints, where = folder / "model", folder / "checkpoints", f"classify.{strategy}"
        if strategy == "frozen":
            card = frozen(typed(FrozenConfig, values, where), compute, encoded, BASE, features, out, checkpoints)
        elif strategy == "full":
            card = full(typed(FullConfig, values, where), compute, encoded, BASE, out, checkpoints)
        else:
            card = lora(typed(LoraConfig, values, where), compute, encoded, BASE, out, checkpoints)
        if strategy == "lora":
            model, tokenizer, _ = load_adapter(BASE, folder / "model")
            saved = {key: value for key, value in card.items() if key != "tokens"}
            save(merge(model), tokenizer, folder / "merged", saved)
        measuring = typed(ClassifyConfig, section(params, "evaluate", "classify"), "evaluate.classify")
        models = {strategy: folder / ("merged" if strategy == "lora" else "model")}
        report = evaluate_classify(measuring, compute, models, encoded, folder / "evaluated")[strategy]
    point = {
        "rows": rows,
        "strategy": strategy,
        "validation": card["validation"],
        "test_rows": report["rows"],
        "accuracy": report["accuracy"],
        "macro_f1": report["macro_f1"],
    }
    text = json.dumps(point, indent=1, sort_keys=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{rows}-{strategy}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2])
    except UsageError as error:
        raise SystemExit(f"error[usage]: {error}") from None
