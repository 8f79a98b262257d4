"""A finished run in miniature with real (tiny) models: what runs, registry and compare read, in the stages' formats."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ajuste.core.stages import key_of, md5_of
from ajuste.models.folder import sha256_of
from tests.made.tiny_classifiers import LABELS, tiny_adapter, tiny_base, tiny_full, tiny_merged

STRATEGIES = ("frozen", "full", "lora")
VALIDATION = {"frozen": 0.70, "full": 0.82, "lora": 0.82}  # full and LoRA are equal: the smaller one wins
TRAINABLE = {"frozen": 66, "full": 20_000, "lora": 600}
TEST_ROWS = 60
STAGES = {
    "encode_reviews": (["artifacts/base/encoder"], "artifacts/encoded/reviews"),
    "classify_frozen": (["artifacts/base/encoder", "artifacts/encoded/reviews"],
                        "artifacts/merged/classify_frozen"),
    "classify_full": (["artifacts/base/encoder", "artifacts/encoded/reviews"], "artifacts/merged/classify_full"),
    "classify_lora": (["artifacts/base/encoder", "artifacts/encoded/reviews"], "artifacts/adapters/classify_lora"),
    "merge_classify": (["artifacts/adapters/classify_lora", "artifacts/base/encoder"],
                       "artifacts/merged/classify_lora"),
    "evaluate_classify": ([f"artifacts/merged/classify_{s}" for s in STRATEGIES], "artifacts/evaluated/classify"),
}
PARAMS = {
    "encode_reviews": {"encode.reviews": {"max_tokens": 32, "rows": {"train": None}}},
    "classify_frozen": {"classify.frozen": {"lr": 1e-3, "epochs": 20}, "classify.task": "sequence"},
    "classify_full": {"classify.full": {"lr": 5e-5, "epochs": 2}, "classify.task": "sequence"},
    "classify_lora": {"classify.lora": {"lr": 5e-4, "r": 8, "target_modules": ["query"]}, "classify.task": "sequence"},
    "merge_classify": {"merge.classify": {"dtype": "float32"}},
    "evaluate_classify": {"evaluate.classify": {"bootstrap": 1000}},
}


def make(root: Path, seed: int = 0, moved: float = 0.0) -> Path:
    """Write the whole run below `root`. `seed` makes other weights, `moved` other validation scores."""
    artifacts = root / "artifacts"
    base = tiny_base(artifacts / "base/encoder", seed)
    adapter = tiny_adapter(base, artifacts / "adapters/classify_lora", seed + 1)
    merged = tiny_merged(base, adapter, artifacts / "merged/classify_lora")
    folders = {
        "full": tiny_full(base, artifacts / "merged/classify_full", seed + 3),
        "frozen": tiny_full(base, artifacts / "merged/classify_frozen", seed + 4, pooling="mean"),
        "lora": merged,
    }
    for strategy, place in [*folders.items(), ("lora", adapter)]:
        about = json.loads((place / "ajuste.json").read_text())
        value = VALIDATION[strategy] + moved
        about |= {"strategy": strategy, "validation": {"loss": 0.4, "accuracy": value, "macro_f1": value},
                  "parameters": {"total": 20_000, "trainable": TRAINABLE[strategy],
                                 "share": TRAINABLE[strategy] / 20_000}}
        (place / "ajuste.json").write_text(json.dumps(about))
        write_history(place / "history.jsonl", 6)
    prove(root)
    encode(artifacts / "encoded/reviews")
    evaluate(artifacts / "evaluated/classify", seed)
    lock(root)
    return root


def write_history(path: Path, steps: int) -> None:
    """A loss a step, an evaluation every third."""
    rows = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "loss": 1 / step, "lr": 1e-4, "grad_norm": 1.0})
        if step % 3 == 0:
            rows.append({"step": step, "eval_loss": 0.9 / step, "eval_accuracy": 0.5 + step / 20})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prove(root: Path) -> None:
    """proof.json of the merged folder, with the true digests."""
    merged, adapter = root / "artifacts/merged/classify_lora", root / "artifacts/adapters/classify_lora"
    (merged / "proof.json").write_text(json.dumps({
        "max_logit_difference": 4.8e-7, "tolerance": 1e-4, "equal_predictions": 1.0, "rows": TEST_ROWS,
        "dtype": "float32", "adapter_sha256": sha256_of(adapter / "adapter_model.safetensors"),
        "base_sha256": sha256_of(root / "artifacts/base/encoder/model.safetensors"),
        "merged_sha256": sha256_of(merged / "model.safetensors"),
    }))


def encode(folder: Path) -> None:
    """The encoded splits: row ids are all that tracking reads."""
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        ids = [f"{split[:2]}{i:014x}" for i in range(TEST_ROWS)]
        pq.write_table(pa.table({"row_id": ids}), folder / f"{split}.parquet")
    (folder / "encoding.json").write_text(json.dumps({"set": "reviews", "max_tokens": 32, "splits": {
        "train": {"rows": TEST_ROWS, "percentiles": {"50": 7}}}}))


def evaluate(folder: Path, seed: int = 0, bound: float = 0.1) -> None:
    """Results and predictions of the three strategies; `bound` is the half width of the intervals."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for strategy in STRATEGIES:
        labels = np.arange(TEST_ROWS) % 2
        right = rng.random(TEST_ROWS) < VALIDATION[strategy]
        predictions = np.where(right, labels, 1 - labels)
        rows += [{"row_id": f"te{i:014x}", "label": int(labels[i]), "strategy": strategy,
                  "prediction": int(predictions[i]), "probabilities": [0.5, 0.5]} for i in range(TEST_ROWS)]
        value = float(right.mean())
        interval = {"value": value, "low": value - bound, "high": value + bound}
        (folder / f"{strategy}.json").write_text(json.dumps({
            **dict.fromkeys(("accuracy", "macro_f1", "mcc", "auc", "ece"), interval),
            "confusion": [[1, 0], [0, 1]], "labels": LABELS, "rows": TEST_ROWS, "slices": {},
        }))
    pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")


def lock(root: Path, params: dict = PARAMS, stages_: dict = STAGES, file: str = "dvc.lock") -> None:
    """dvc.lock (or a study's) with the true hashes, params.yaml, and .state of every stage with its key."""
    (root / "params.yaml").write_text(yaml.safe_dump({"compute": {"seed": 0}}))
    (root / ".state").mkdir(exist_ok=True)
    stages = {}
    for number, (name, (deps, out)) in enumerate(stages_.items()):
        verb, _, variant = name.partition("_")
        values = {"compute": {"seed": 0, "dtype": "float32"}, **params[name]}
        stages[name] = {
            "cmd": f"python -m tasks.{verb} {variant}".strip(),
            "deps": [{"path": dep, "md5": md5_of(root / dep), "hash": "md5"} for dep in deps],
            "params": {"params.yaml": values},
            "outs": [{"path": out, "md5": md5_of(root / out), "size": 1_000_000, "hash": "md5"}],
        }
        key = key_of(stages[name]["cmd"], {dep["path"]: dep["md5"] for dep in stages[name]["deps"]}, values)
        (root / f".state/{name}.json").write_text(json.dumps({
            "stage": name, "key": key, "seconds": 2.5 * (number + 1), "phases": {"train": 2.0},
            "peak_memory_mb": 800.0, "tokens": 10, "tokens_per_second": 1200.0, "device": "cpu", "threads": 2,
            "error": None,
        }))
    (root / file).write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
