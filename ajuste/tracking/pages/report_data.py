"""What the report page shows, read from files. Every part may be missing: a page is made from what there is.

Reads artifacts/, metrics/ and dvc.lock of the current folder and .state/ of home(). Nothing here formats or escapes.
"""

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from ajuste.core.home import home
from ajuste.tracking.project import lock
from ajuste.tracking.runs import facts

ARTIFACTS = Path("artifacts")
FEATURES_STAGE = "features_reviews"
STRATEGIES = {  # strategy -> the lecture's name, what it does, the stage that trains it, all stages that it costs
    "frozen": (
        "Feature extraction",
        "encoder frozen, head trained",
        "classify_frozen",
        [FEATURES_STAGE, "classify_frozen"],
    ),
    "full": ("Full fine-tuning", "all weights trained", "classify_full", ["classify_full"]),
    "lora": ("LoRA", "h = W0 x + (alpha/r) B A x", "classify_lora", ["classify_lora", "merge_classify"]),
}


def read_json(path: Path) -> dict:
    """A JSON file, or {} when it is missing or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def state_of(stage: str) -> dict:
    """What this machine measured of the run that dvc.lock records; {} if it measured another run or none."""
    state = read_json(home() / ".state" / f"{stage}.json")
    entry = lock.stages().get(stage)
    if not state or state.get("error") or entry is None or state.get("key") != lock.stage_key(stage):
        return {}
    return state


def model_folders(strategy: str) -> list[Path]:
    """Where the strategy was trained first, then what is served."""
    names = [f"adapters/classify_{strategy}", f"merged/classify_{strategy}"]
    return [ARTIFACTS / name for name in names if (ARTIFACTS / name).is_dir()]


def strategies() -> list[dict]:
    """One row a strategy of the lecture's table; times are None where this machine did not measure them."""
    table = read_json(Path("metrics/classify.json")).get("strategies", {})
    rows = []
    for strategy, (name, what, trains, stages) in STRATEGIES.items():
        result = read_json(ARTIFACTS / "evaluated/classify" / f"{strategy}.json")
        states = {stage: state_of(stage) for stage in stages}
        known = [state for state in states.values() if state]
        if not result and not known and strategy not in table:
            continue
        complete = len(known) == len(stages)
        folders = model_folders(strategy)
        card = read_json(folders[0] / "ajuste.json") if folders else {}
        rows.append(
            {
                "id": strategy,
                "name": name,
                "what": what,
                "result": result,
                "card": card,
                "parameters": card.get("parameters") or table.get(strategy, {}).get("parameters") or {},
                "bytes": table.get(strategy, {}).get("artefact_bytes"),
                "adapter_bytes": table.get(strategy, {}).get("adapter_bytes"),
                "feature_seconds": states.get(FEATURES_STAGE, {}).get("phases", {}).get("features"),
                "train_seconds": states[trains].get("phases", {}).get("train"),
                "seconds": sum(state["seconds"] for state in known) if complete else None,
                "peak_memory_mb": max(state["peak_memory_mb"] for state in known) if complete else None,
                "tokens_per_second": states[trains].get("tokens_per_second"),
                "history": facts.history_rows(folders[0]) if folders else [],
            }
        )
    return rows


def averaged(points: list[tuple[float, float]], about: int = 30) -> list[tuple[float, float]]:
    """Means of neighbouring points, about as many as asked; few points stay as they are."""
    width = len(points) // about
    if width < 2:
        return points
    groups = [points[start : start + width] for start in range(0, len(points) - width + 1, width)]
    return [(sum(x for x, _ in group) / width, sum(y for _, y in group) / width) for group in groups]


def stages() -> list[dict]:
    """Every stage of dvc.lock: the short hash of what it made, and its time where this machine measured it."""
    rows = []
    for name, entry in lock.stages().items():
        state = state_of(name)
        rows.append(
            {
                "name": name,
                "outs": [(out["path"], out.get("md5", "")[:8]) for out in entry.get("outs", [])],
                "key": lock.stage_key(name)[:12],
                "seconds": state.get("seconds"),
                "peak_memory_mb": state.get("peak_memory_mb"),
                "phases": state.get("phases", {}),
                "device": state.get("device"),
                "threads": state.get("threads"),
            }
        )
    return rows


def validated(kind: str = "reviews") -> Path:
    """The folder of the last validation; where it stopped the run, the one that says why."""
    folder = ARTIFACTS / "validated" / kind
    failed = folder.with_name(f"{kind}.failed")
    return failed if failed.is_dir() and not folder.is_dir() else folder


def quarantine(examples: int = 3, folder: Path | None = None) -> dict:
    """Rows in quarantine by reason, each with the first few places; never their text."""
    path = (folder or validated()) / "quarantine.parquet"
    if not path.is_file():
        return {}
    count: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    rows = 0
    for batch in pq.ParquetFile(path).iter_batches(columns=["location", "reasons"]):
        for row in batch.to_pylist():
            rows += 1
            for reason in row["reasons"]:
                count[reason] += 1
                if len(places.setdefault(reason, [])) < examples:
                    places[reason].append(row["location"])
    return {"rows": rows, "reasons": [(reason, n, places[reason]) for reason, n in count.most_common()]}


def predictions() -> dict[str, list[dict]]:
    """Test rows by strategy, in the order of row ids: label, prediction, probabilities."""
    path = ARTIFACTS / "evaluated/classify/predictions.parquet"
    if not path.is_file():
        return {}
    rows: dict[str, list[dict]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(row["strategy"], []).append(row)
    return {strategy: sorted(found, key=lambda row: row["row_id"]) for strategy, found in rows.items()}


def reliability(rows: list[dict], bins: int = 10) -> list[tuple[float, float]]:
    """(mean confidence, accuracy) of each bin of confidence that has at least ten rows, for the reliability diagram."""
    filled: dict[int, list[tuple[float, bool]]] = {}
    for row in rows:
        confidence = max(row["probabilities"])
        where = min(bins - 1, math.ceil(confidence * bins) - 1)
        filled.setdefault(where, []).append((confidence, row["prediction"] == row["label"]))
    return [
        (sum(c for c, _ in cell) / len(cell), sum(right for _, right in cell) / len(cell))
        for _, cell in sorted(filled.items())
        if len(cell) >= 10
    ]


def rightness(first: list[dict], second: list[dict]) -> tuple[list[bool], list[bool]]:
    """Whether each of two classifiers was right on each row. Raises ValueError when the rows are not the same."""
    if [row["row_id"] for row in first] != [row["row_id"] for row in second]:
        raise ValueError("the two strategies were not judged on the same rows")
    return tuple([row["prediction"] == row["label"] for row in rows] for rows in (first, second))


def lineage() -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """((id, name, detail), ...) of data and stages and the edges between them, from dvc.lock alone."""
    recorded = lock.stages()
    made = {out["path"]: name for name, entry in recorded.items() for out in entry.get("outs", [])}
    nodes, edges = [], []
    for kind in ("encoder", "decoder"):
        base = read_json(ARTIFACTS / f"base/{kind}/base.json")
        if base and f"base_{kind}" in recorded:
            nodes.append((base["source"], base["source"].rpartition("/")[2] or base["source"], base["sha256"][:10]))
            edges.append((base["source"], f"base_{kind}"))
    for name, entry in recorded.items():
        hashes = [out.get("md5", "")[:10] for out in entry.get("outs", [])]
        nodes.append((name, name, hashes[0] if len(hashes) == 1 else f"{len(hashes)} files"))
        for dep in entry.get("deps", []):
            path = Path(dep["path"])
            makers = [made[str(p)] for p in (path, *path.parents) if str(p) in made]
            if makers:
                edges.append((makers[0], name))
            elif path.parts[0] == "data":
                if all(node[0] != dep["path"] for node in nodes):
                    nodes.insert(0, (dep["path"], dep["path"], dep["md5"][:10]))
                edges.append((dep["path"], name))
    return nodes, edges
