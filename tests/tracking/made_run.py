"""A finished run in miniature, made by hand in a folder: what the report reads, in the formats of the stages.

The figures are invented, for tests of the page alone. `hostile` puts markup into every text that a user can choose.
"""

import hashlib
import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

HOSTILE = "<script>alert('x')</script></style>\"&"
ACCURACY = {"frozen": (0.743, 0.713, 0.772), "full": (0.801, 0.774, 0.828), "lora": (0.806, 0.779, 0.832)}
TRAINABLE = {"frozen": 770, "full": 22_713_986, "lora": 148_226}
TOTAL = 22_713_986
ROWS = 853
STAGES = {
    "base_encoder": ([], "artifacts/base/encoder"),
    "validate_reviews": (["data/reviews"], "artifacts/validated/reviews"),
    "encode_reviews": (["artifacts/base/encoder", "artifacts/validated/reviews"], "artifacts/encoded/reviews"),
    "features_reviews": (["artifacts/base/encoder", "artifacts/encoded/reviews"], "artifacts/features/reviews"),
    "classify_frozen": (
        ["artifacts/encoded/reviews", "artifacts/features/reviews"],
        "artifacts/merged/classify_frozen",
    ),
    "classify_full": (["artifacts/base/encoder", "artifacts/encoded/reviews"], "artifacts/merged/classify_full"),
    "classify_lora": (["artifacts/base/encoder", "artifacts/encoded/reviews"], "artifacts/adapters/classify_lora"),
    "merge_classify": (
        ["artifacts/adapters/classify_lora", "artifacts/base/encoder"],
        "artifacts/merged/classify_lora",
    ),
    "evaluate_classify": (
        [
            "artifacts/encoded/reviews",
            "artifacts/merged/classify_frozen",
            "artifacts/merged/classify_full",
            "artifacts/merged/classify_lora",
        ],
        "artifacts/evaluated/classify",
    ),
    "summary": (
        ["artifacts/evaluated/classify", "artifacts/validated/reviews/validation.json"],
        "metrics/classify.json",
    ),
}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make(root: Path, hostile: bool = False) -> Path:
    """Write the whole run below `root` (also its .state, so $AJUSTE_HOME must be `root`)."""
    bad = HOSTILE if hostile else ""
    labels = [f"negative{bad}", f"positive{bad}"]
    artifacts = root / "artifacts"
    source = f"package:a-base/model{bad}"
    write(artifacts / "base/encoder/base.json", {"source": source, "id": source, "sha256": "1" * 64})
    _data(artifacts, labels, bad)
    _models(artifacts, labels)
    _evaluation(artifacts, labels, bad)
    _metrics(root)
    _lock(root)
    return root


def _data(artifacts: Path, labels: list[str], bad: str) -> None:
    sources = {f"imdb{bad}": 24_000, f"rotten_tomatoes{bad}": 8_500}
    write(
        artifacts / "validated/reviews/validation.json",
        {
            "set": f"reviews{bad}",
            "checks": [
                {"name": "empty_text", "severity": "error", "rows_failed": 12, "passed": True, "rule": {}},
                {
                    "name": f"class_balance{bad}",
                    "severity": "warn",
                    "rows_failed": 0,
                    "passed": True,
                    "rule": {"min_share": 0.05},
                },
                {"name": "html_residue", "severity": "warn", "rows_failed": 14_665, "passed": False, "rule": {}},
            ],
            "rows": {
                "read": 33_530,
                "kept": 32_500,
                "quarantined": 30,
                "exact_duplicates": 900,
                "near_duplicates": 100,
            },
            "cleaned": {"line_breaks": 14_000},
            "splits": {
                s: {"rows": n, "labels": {labels[0]: n // 2, labels[1]: n - n // 2}, "sources": sources}
                for s, n in (("train", 26_000), ("validation", 3_250), ("test", 3_250))
            },
        },
    )
    rows = [
        {
            "row_id": f"{i:016x}",
            "location": f"data/reviews/mine{bad}.csv:{i + 2}",
            "reasons": ["empty_text" if i % 3 else f"unknown_label{bad}"],
            "text": f"secret {bad}",
        }
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), artifacts / "validated/reviews/quarantine.parquet")
    write(
        artifacts / "encoded/reviews/encoding.json",
        {
            "set": f"reviews{bad}",
            "max_tokens": 256,
            "splits": {
                s: {
                    "rows": n,
                    "percentiles": {"50": 27, "90": 45, "99": 58, "100": 71},
                    "rows_truncated": 0,
                    "tokens_cut": 0,
                    "unknown_tokens": 3,
                }
                for s, n in (("train", 4_000), ("validation", 850), ("test", ROWS))
            },
        },
    )


def _models(artifacts: Path, labels: list[str]) -> None:
    for strategy in ACCURACY:
        value = ACCURACY[strategy][0] + 0.004
        card = {
            "task": "sequence",
            "strategy": strategy,
            "pooling": "mean" if strategy == "frozen" else "cls",
            "labels": labels,
            "max_tokens": 256,
            "set": "reviews",
            "base": {"id": "package:a-base/model", "sha256": "1" * 64},
            "parameters": {"total": TOTAL, "trainable": TRAINABLE[strategy], "share": TRAINABLE[strategy] / TOTAL},
            "validation": {"loss": 0.44, "accuracy": value, "macro_f1": value - 0.001},
        }
        history = [
            {"step": step, "loss": round(0.30 + 0.39 * math.exp(-step / 90) + 0.02 * math.sin(step), 4), "lr": 5e-5}
            for step in range(10, 501, 10)
        ]
        history += [
            {"step": step, "eval_loss": 0.43 + 0.1 * math.exp(-step / 120), "eval_accuracy": value - 0.2 / step * 50}
            for step in (125, 250, 375, 500)
        ]
        for folder in ("adapters", "merged") if strategy == "lora" else ("merged",):
            where = artifacts / folder / f"classify_{strategy}"
            write(where / "ajuste.json", card)
            (where / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    write(
        artifacts / "merged/classify_lora/proof.json",
        {
            "max_logit_difference": 4.8e-7,
            "tolerance": 1e-4,
            "equal_predictions": 1.0,
            "rows": ROWS,
            "dtype": "float32",
            "adapter_sha256": "a" * 64,
            "base_sha256": "b" * 64,
            "merged_sha256": "c" * 64,
        },
    )


def _evaluation(artifacts: Path, labels: list[str], bad: str) -> None:
    rng = random.Random(0)
    rows = []
    for strategy, (value, low, high) in ACCURACY.items():
        matrix = [[0, 0], [0, 0]]
        for index in range(ROWS):
            label = index % 2
            correct = rng.random() < value
            prediction = label if correct else 1 - label
            confidence = min(0.999, max(0.5, rng.gauss(0.82 if correct else 0.68, 0.12)))
            matrix[label][prediction] += 1
            probabilities = [confidence, 1 - confidence] if prediction == 0 else [1 - confidence, confidence]
            rows.append(
                {
                    "row_id": f"{index:016x}",
                    "label": label,
                    "strategy": strategy,
                    "prediction": prediction,
                    "probabilities": probabilities,
                }
            )
        write(
            artifacts / f"evaluated/classify/{strategy}.json",
            {
                "accuracy": {"value": value, "low": low, "high": high},
                "macro_f1": {"value": value - 0.001, "low": low - 0.001, "high": high - 0.001},
                "mcc": {"value": 2 * value - 1, "low": 2 * low - 1, "high": 2 * high - 1},
                "auc": {"value": value + 0.07, "low": low + 0.07, "high": high + 0.05},
                "ece": {"value": 0.031, "low": 0.02, "high": 0.05},
                "brier": {"value": 0.152, "low": 0.14, "high": 0.16},
                "nll": {"value": 0.461, "low": 0.44, "high": 0.48},
                "confusion": matrix,
                "labels": labels,
                "rows": ROWS,
                "slices": {
                    "source": {f"rotten_tomatoes{bad}": {"rows": ROWS, "accuracy": value}},
                    "length": {
                        "1 to 16": {"rows": 200, "accuracy": value - 0.05},
                        "17 to 32": {"rows": 403, "accuracy": value + 0.02},
                        "33 to 64": {"rows": 250, "accuracy": value - 0.01},
                    },
                    "label": {
                        labels[0]: {"rows": 427, "accuracy": value + 0.01},
                        labels[1]: {"rows": 426, "accuracy": value - 0.01},
                    },
                },
            },
        )
    pq.write_table(pa.Table.from_pylist(rows), artifacts / "evaluated/classify/predictions.parquet")


def _metrics(root: Path) -> None:
    write(
        root / "metrics/classify.json",
        {
            "best_on_validation": "lora",
            "strategies": {
                s: {
                    "artefact_bytes": 91_000_000,
                    "validation": {"macro_f1": v[0]},
                    **({"adapter_bytes": 600_000} if s == "lora" else {}),
                }
                for s, v in ACCURACY.items()
            },
        },
    )


def _lock(root: Path) -> None:
    """dvc.lock with made-up hashes, and the .state of every stage with the key that belongs to it."""

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    stages = {}
    for name, (deps, out) in STAGES.items():
        stages[name] = {
            "cmd": f"python -m tasks.{name.replace('_', '.', 1)}",
            "deps": [{"path": dep, "md5": md5(dep) + ".dir", "hash": "md5"} for dep in deps],
            "params": {"params.yaml": {"compute.seed": 0}},
            "outs": [{"path": out, "md5": md5(out) + ".dir", "hash": "md5"}],
        }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5("data") + ".dir", "path": "data"}]}))
    for index, (name, entry) in enumerate(stages.items()):
        deps = {dep["path"]: dep["md5"] for dep in entry["deps"]}
        text = json.dumps(
            {"cmd": entry["cmd"], "deps": deps, "params": {"compute.seed": 0}}, sort_keys=True, separators=(",", ":")
        )
        write(
            root / ".state" / f"{name}.json",
            {
                "stage": name,
                "key": hashlib.sha256(text.encode()).hexdigest(),
                "seconds": 3.25 * (index + 1),
                "phases": {"train": 2.5, "features": 13.0},
                "peak_memory_mb": 800.0 + index,
                "tokens": 10,
                "tokens_per_second": 1200.0,
                "device": "cpu",
                "threads": 2,
                "error": None,
            },
        )
