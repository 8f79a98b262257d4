"""A finished instruction fine-tuning in miniature with a real (tiny) decoder, in the stages' formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajuste.core.params import Compute
from tasks.merge import decoder as merging
from tests.made import ledgers
from tests.made import tiny_decoders as tiny
from tests.tracking import projects

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
MERGE = merging.DecoderConfig(dtype="float32", max_logit_difference=1e-3, min_equal_tokens=1.0, rows=2, prompts=2,
                               new_tokens=4)
STAGES = {
    "encode_instructions": (["artifacts/base/decoder"], "artifacts/encoded/instructions"),
    "forgetting_base": (["artifacts/base/decoder"], "artifacts/evaluated/forgetting_base"),
    "instruct": (["artifacts/base/decoder", "artifacts/encoded/instructions"], "artifacts/adapters/instruct"),
    "merge_instruct": (["artifacts/adapters/instruct", "artifacts/base/decoder", "artifacts/encoded/instructions"],
                       "artifacts/merged/instruct"),
    "evaluate_instruct": (["artifacts/base/decoder", "artifacts/merged/instruct"], "artifacts/evaluated/instruct"),
    "forgetting_instruct": (["artifacts/evaluated/forgetting_base", "artifacts/merged/instruct"],
                            "artifacts/evaluated/forgetting_instruct"),
    "alignment_base": (["artifacts/base/decoder"], "artifacts/alignment/base"),
    "alignment_instruct": (["artifacts/merged/instruct"], "artifacts/alignment/instruct"),
}
TEST_ROWS = 40
PROMPTS = ["Name a <b>warm</b> film.", "Is it | good?"]


def make(root: Path, method: str = "lora", seed: int = 10, loss: float = 2.0) -> Path:
    """Write the whole run below `root`: another `seed` is another adapter, `loss` that of validation."""
    artifacts = root / "artifacts"
    base = tiny.tiny_base(artifacts / "base/decoder")
    encoded = tiny.encoded(base, artifacts / "encoded/instructions", ("train", "validation", "test"))
    (encoded / "encoding.json").write_text(json.dumps({"set": "instructions", "max_tokens": 64, "splits": {
        split: {"rows": 6, "tokens": 100, "trained_tokens": 40} for split in ("train", "validation", "test")}}))
    trained = artifacts / "adapters/instruct"
    if method == "full":
        tiny.tiny_full(base, trained, seed)
    else:
        tiny.tiny_adapter(base, trained, method, seed)
    card = json.loads((trained / "ajuste.json").read_text())
    card["validation"] = {"loss": loss, "perplexity": float(np.exp(loss))}
    (trained / "ajuste.json").write_text(json.dumps(card))
    projects.write_history(trained / "history.jsonl", 6)
    merging.merge_decoder(MERGE, COMPUTE, trained, base, encoded, artifacts / "merged/instruct")
    evaluate(artifacts / "evaluated/instruct", seed)
    control(artifacts / "evaluated", seed)
    for model, attacks in (("base", 15), ("instruct", 20)):
        ledgers.write_made(artifacts / "alignment" / model / "alignment.json", model, attacks)
    lock(root, method)
    return root


def interval(value: float, half: float = 0.1) -> dict:
    return {"value": value, "low": value - half, "high": value + half}


def evaluate(folder: Path, seed: int = 0, hostile: str = "") -> None:
    """instruct.json, answers.jsonl and rows.parquet; the figures are invented, those of the rows drawn by `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    models = {"base": 2.4, "instruct": 2.0}
    (folder / "instruct.json").write_text(json.dumps({
        "held_out": {model: {"loss": interval(loss), "perplexity": float(np.exp(loss)), "rows": TEST_ROWS,
                             "tokens": 500} for model, loss in models.items()}
        | {"difference": interval(-0.4, 0.05)},
        "references": {model: {"exact_match": interval(0.1), "rouge1": interval(0.3), "rougeL": interval(loss / 10)}
                       for model, loss in models.items()},
        "rules": {model: {"passed": interval(0.5 - loss / 10), "prompts": 10,
                          "kinds": {f"length{hostile}": {"kept": 3, "asked": 4}, "language": {"kept": 1, "asked": 1}}}
                  for model, loss in models.items()},
        "reviews": {"instruct": {"accuracy": interval(0.7)}, "classifier": {"accuracy": interval(0.8)},
                    "difference": interval(-0.1), "rows": 50},
    }))
    answers = [{"id": f"p{i}", "prompt": prompt + hostile, "base": f"base {i}{hostile}",
                "instruct": f"answer {i} of {seed}{hostile}"} for i, prompt in enumerate(PROMPTS)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    tokens = np.random.default_rng(0).integers(5, 30, TEST_ROWS)  # every version has the same rows
    pq.write_table(pa.table({"row_id": [f"te{i:014x}" for i in range(TEST_ROWS)], "tokens": tokens,
                             "base": tokens * 2.4, "instruct": tokens * (2.0 + rng.normal(0, 0.2, TEST_ROWS))}),
                   folder / "rows.parquet")


def control(evaluated: Path, seed: int = 0) -> None:
    """The scores of two control sets, before and after."""
    sets = {"general": ("text", "log_likelihood_per_token", -3.0), "boolq": ("choice", "accuracy", 0.6)}
    for name in ("base", "instruct"):
        after = name == "instruct"
        folder = evaluated / f"forgetting_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        report = {"sets": {key: {"task": task, "metric": metric, "rows": 20, **interval(value - 0.1 * after)}
                           for key, (task, metric, value) in sets.items()}}
        if after:
            report["F"] = {"general": interval(0.1, 0.02), "boolq": interval(0.1, 0.2 + seed / 1000)}
        (folder / "scores.json").write_text(json.dumps(report))


def figures(root: Path, hostile: str = "") -> Path:
    """What the report reads of the run, without its models; `hostile` stands in every text that a user can choose."""
    artifacts = root / "artifacts"
    base = tiny.tiny_base(artifacts / "base/decoder")
    asked = [question + hostile for question in tiny.ASKED]
    encoded = tiny.encoded(base, artifacts / "encoded/instructions", ("train",), asked)
    (encoded / "encoding.json").write_text(json.dumps({"set": "instructions", "max_tokens": 64, "splits": {
        split: {"rows": 6, "tokens": 1234, "trained_tokens": 40, "rows_prompt_cut": 3, "rows_response_cut": 2}
        for split in ("train", "validation", "test")}}))
    folder = artifacts / "adapters/instruct"
    projects.write_history(folder / "history.jsonl", 6)
    (folder / "ajuste.json").write_text(json.dumps(tiny.card(base, "lora")))
    proof = artifacts / "merged/instruct/proof.json"
    proof.parent.mkdir(parents=True)
    proof.write_text(json.dumps({"merged": True, "method": "lora", "max_logit_difference": 3.1e-5, "tolerance": 1e-3,
                                 "equal_predictions": 1.0, "equal_greedy_tokens": 1.0, "rows": 16}))
    evaluate(artifacts / "evaluated/instruct", hostile=hostile)
    control(artifacts / "evaluated")
    validated = artifacts / "validated/instructions"
    validated.mkdir(parents=True)
    (validated / "validation.json").write_text(json.dumps({"set": f"mine{hostile}", "checks": [
        {"name": f"role_order{hostile}", "severity": "error", "rows_failed": 2, "passed": True, "rule": {}}]}))
    pq.write_table(pa.table({"location": [f"data/mine{hostile}.jsonl:7"], "reasons": [[f"contaminated{hostile}"]],
                             "text": ["secret"]}), validated / "quarantine.parquet")
    return root


def lock(root: Path, method: str) -> None:
    """dvc.lock of the run."""
    params = {name: {} for name in STAGES} | {
        "instruct": {"instruct": {"method": method, "r": 4, "lr": 1e-3}},
        "merge_instruct": {"merge.instruct": {"dtype": "float32"}},
        "encode_instructions": {"encode.instructions": {"max_tokens": 64}},
    }
    projects.lock(root, params, STAGES)


def without(root: Path, *stages: str) -> None:
    """Take stages and what they wrote out of a finished run."""
    import yaml

    path = root / "dvc.lock"
    found = yaml.safe_load(path.read_text())
    for stage in stages:
        for out in found["stages"].pop(stage)["outs"]:
            shutil.rmtree(root / out["path"])
    path.write_text(yaml.safe_dump(found, sort_keys=False))
