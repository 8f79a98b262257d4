"""Study rlaif: a reward model trained on human comparisons of which a share is a judge's. POINT: human | JUDGE-PERCENT

    python -m studies.rlaif.point gold-50

Every point has the same number of comparisons: `rows`, or as many as people and every admitted judge have. Only the
labels and texts of the training comparisons differ; validation, which chooses the weights, and test are people's.
Writes artifacts/studies/rlaif/points/<POINT>.json: accuracy on the test pairs, by margin beside people, and of each
test pair whether it was right. The point of a refused judge says `refused` and trains nothing.
"""

import json
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from ajuste.core import allocator
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import section, typed
from studies.rlaif.shared import ARTIFACTS, OUT, PARAMS, POLICY, VALIDATED, Study, run
from tasks.encode.preferences import PreferencesConfig, encode_preferences
from tasks.judge.mixture import human_ids, mix
from tasks.reward import RewardConfig, train_reward_model

HUMAN = "human"


def parsed(name: str, judges: list[str]) -> tuple[str | None, float]:
    """(judge, share of its labels) of a point. Raises UsageError for another name."""
    judge, _, percent = name.rpartition("-")
    if name == HUMAN:
        return None, 0.0
    if judge not in judges or not percent.isdigit() or not 0 < int(percent) <= 100:
        raise UsageError(f"no point `{name}`: a point is {HUMAN}, or JUDGE-PERCENT with a judge of {', '.join(judges)}")
    return judge, int(percent) / 100


def labelled(judge: str) -> dict:
    """pairs.json of a judge. Raises UsageError if it is missing."""
    path = OUT / "pairs" / judge / "pairs.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{path} is missing: run `ajuste study rlaif`") from None


def main(name: str) -> None:
    study = Study()
    judges = list(study.params["judges"])
    judge, share = parsed(name, judges)
    path = OUT / "points" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if judge and "refused" in labelled(judge):
        write_json(path, {"name": name, "judge": judge, "share": share, "refused": labelled(judge)["refused"]})
        return
    encode = typed(PreferencesConfig, section(study.default, "encode", "preferences"), "encode.preferences")
    values = {**section(study.default, "reward", ""), **study.params["reward"]}
    ids = human_ids(VALIDATED, encode.min_margin.train, encode.rows.train)
    theirs = [found["kept"] for found in map(labelled, judges) if "refused" not in found]
    rows = min(study.params["rows"], len(ids), *theirs)
    if rows < 1:
        raise DataError(f"{VALIDATED} has no training pair with a margin of {encode.min_margin.train:g}")
    allocator.keep_memory()
    with tempfile.TemporaryDirectory() as scratch:
        mixed, encoded, model, checkpoints = (Path(scratch) / part for part in ("mixed", "encoded", "model", "kept"))
        ai = OUT / "pairs" / judge / "pairs.parquet" if judge else None
        counts = mix(VALIDATED, ids, ai, share, rows, mixed)
        own = {**encode.model_dump(), "rows": {**encode.rows.model_dump(), "train": None}}
        encode_preferences(PreferencesConfig(**own), study.compute, mixed, ARTIFACTS / "base/decoder", encoded)
        checkpoints.mkdir()
        done = train_reward_model(
            typed(RewardConfig, values, "reward"), study.compute, encoded, POLICY, model, checkpoints
        )
        right = pq.read_table(model / "pairs.parquet").to_pylist()
        trained = pq.read_metadata(encoded / "train.parquet").num_rows
    test = done["test"]
    write_json(path, {
        "name": name, "judge": judge, "share": share, **counts, "trained_rows": trained, "tokens": done["tokens"],
        "validation": done["validation"], "accuracy": test["accuracy"], "pairs": test["pairs"],
        "by_margin": test["by_margin"],
        "rows": [{"row_id": row["row_id"], "right": row["right"], "margin": row["margin"]} for row in right],
    })  # fmt: skip
    print(f"{name}: {test['accuracy']['value']:.3f} of {test['pairs']} test pairs, trained on {trained} comparisons")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"error: python -m studies.rlaif.point POINT; judges stand in {PARAMS}")
    run(f"point_{sys.argv[1]}", lambda: main(sys.argv[1]))
