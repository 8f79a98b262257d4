"""How long do the registry's readers take when years stand in it? 1,000 versions of 60 names, 10,000 runs.

    python -m benchmarks.registry                                a Markdown table, of SQLite in a temporary folder
    python -m benchmarks.registry --store postgresql://...       of an empty PostgreSQL database
    python -m benchmarks.registry --versions 200 --runs 2000     smaller

The store is filled by statements on MLflow's own tables, since its API would take an hour: every night trains 30 sets,
each of which leaves 20 runs that read each other's outs, a version, and its adapter's. Read are a reference, `compare`
and `history` of one name, and what `prune --keep 5` asks the registry (`cache` and `git` are no part of it). What is
imported and asked once a process, as MLflow itself, is done before the clock starts; the best of three counts.
"""

import argparse
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ajuste.core.home import home
from ajuste.tracking.comparing.compare import compare
from ajuste.tracking.pruning import prune
from ajuste.tracking.registry import promotion, registry
from ajuste.tracking.registry.moves import INTENT
from ajuste.tracking.registry.tags import fold
from ajuste.tracking.runs import runs, store
from benchmarks.results import value

SETS, STAGES = 30, 20  # of a night: sets that are trained, and runs of each
WIDTH = {"params": 12, "metrics": 24}  # of a run
MOVES = 400
LIMITS = {"reference": 0.05, "compare": 1.5, "history": 1.5, "prune": 20.0}  # seconds
START = 1_700_000_000_000  # milliseconds since 1970
Rows = dict[str, list[dict]]


# --- filling ----------------------------------------------------------------------------------------------------------


def fill(versions: int, many: int) -> None:
    """Write so many versions and runs into the store, by MLflow's tables."""
    from sqlalchemy import MetaData, create_engine, insert

    experiment, moves = (int(store.experiment_id(name)) for name in (store.EXPERIMENT, store.PROMOTIONS))
    engine, tables = create_engine(store.tracking_uri()), MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for rows in (*_names(), *_nights(experiment, versions, many), *_moves(moves)):
            for table, items in rows.items():
                connection.execute(insert(tables.tables[table]), items)
    engine.dispose()


def _names() -> Iterator[Rows]:
    served = [f"set{number:02}-classifier" for number in range(SETS)]
    names = [{"name": name, "creation_time": START, "last_updated_time": START, "description": ""}
             for one in served for name in (one, f"{one}-adapter")]  # fmt: skip
    aliases = [{"name": name, "alias": alias, "version": number} for name in served
               for alias, number in (("champion", 2), ("challenger", 3), ("previous", 1))]  # fmt: skip
    yield {"registered_models": names, "registered_model_aliases": aliases}


def _nights(experiment: int, versions: int, many: int) -> Iterator[Rows]:
    """Night by night; each set's runs are a chain of outs, whose last two make the versions."""
    done = 0
    for night in range(1, -(-versions // (2 * SETS)) + 1):
        rows: Rows = {name: [] for name in ("runs", "tags", "params", "latest_metrics", "model_versions",
                                            "model_version_tags")}  # fmt: skip
        for number in range(SETS):
            if done >= versions:
                break
            ids = [uuid.uuid4().hex for _ in range(max(2, many * 2 // versions))]
            for place, run in enumerate(ids):
                _run(rows, experiment, run, f"{night}-{number}", place, len(ids))
            name = f"set{number:02}-classifier"
            for of, run in ((f"{name}-adapter", ids[-2]), (name, ids[-1])):
                _version(rows, of, night, run, {"adapter_version": str(night)} if of == name else {})
            done += 2
        yield {name: items for name, items in rows.items() if items}


def _run(rows: Rows, experiment: int, run: str, chain: str, place: int, of: int) -> None:
    when = START + len(chain) + place
    artifacts = home() / "mlruns" / "artifacts" / run
    rows["runs"].append({
        "run_uuid": run, "name": f"stage_{place}", "source_type": "LOCAL", "source_name": "", "entry_point_name": "",
        "user_id": "", "status": "FINISHED", "start_time": when, "end_time": when, "deleted_time": None,
        "source_version": "", "lifecycle_stage": "active", "artifact_uri": artifacts.as_uri(),
        "experiment_id": experiment,
    })  # fmt: skip
    stage = "classify_lora" if place == of - 2 else f"stage_{place}"
    tags = {runs.KEY: f"{chain}-{place}", "ajuste.stage": stage, runs.RECORDED: "true", "mlflow.runName": stage,
            f"dvc.out.artifacts/{place}": f"{chain}-{place}", "mlflow.note.content": "A stage. " * 40,
            "dvc.lock.sha256": chain, "ajuste.git_commit": chain, "mlflow.user": "bench"}  # fmt: skip
    if place:
        tags[f"dvc.dep.artifacts/{place - 1}"] = f"{chain}-{place - 1}"
    rows["tags"] += [{"key": key, "value": value, "run_uuid": run} for key, value in tags.items()]
    rows["params"] += [{"key": f"key_{i}", "value": str(i), "run_uuid": run} for i in range(WIDTH["params"])]
    numbers = {"cost/seconds": 3.0, "cost/peak_memory_mb": 100.0}
    numbers |= {f"test/figure_{i}": 0.5 for i in range(WIDTH["metrics"])}
    rows["latest_metrics"] += [{"key": key, "value": value, "timestamp": when, "step": 0, "is_nan": False,
                                "run_uuid": run} for key, value in numbers.items()]  # fmt: skip


def _version(rows: Rows, name: str, night: int, run: str, more: dict[str, str]) -> None:
    rows["model_versions"].append({
        "name": name, "version": night, "creation_time": START + night, "last_updated_time": START + night,
        "description": "A version. " * 40, "user_id": None, "current_stage": "None", "run_link": None,
        "source": (home() / "mlruns" / "models" / run).as_uri(), "storage_location": None, "run_id": run,
        "status": "READY", "status_message": None,
    })  # fmt: skip
    tags = {"strategy": "lora", "method": "lora", "stage": "merge_classify", "stage_key": f"{night}-{run}",
            "validation.macro_f1": "0.8", "test.accuracy": "0.8", "sha256": run, "dvc": f"{run}.dir", "data": run,
            **{f"test.figure_{i}": "0.5" for i in range(30)}, **more}  # fmt: skip
    rows["model_version_tags"] += [{"name": name, "version": night, "key": key, "value": value}
                                   for key, value in fold(tags).items()]  # fmt: skip


def _moves(experiment: int) -> Iterator[Rows]:
    """Moves of `champion` to and fro, spread over the served names, that end where the aliases stand."""
    rows: Rows = {"runs": [], "tags": []}
    for number in range(MOVES):
        run, name, odd = uuid.uuid4().hex, f"set{number % SETS:02}-classifier", (number // SETS) % 2
        rows["runs"].append({
            "run_uuid": run, "name": "move", "source_type": "LOCAL", "source_name": "", "entry_point_name": "",
            "user_id": "", "status": "FINISHED", "start_time": START + number, "end_time": START + number,
            "deleted_time": None, "source_version": "", "lifecycle_stage": "active", "artifact_uri": "file:///none",
            "experiment_id": experiment,
        })  # fmt: skip
        tags = {"name": name, "id": run, "kind": "promote", "from": "12"[odd], "to": "21"[odd], "who": "bench",
                "why": "a better figure", "when": f"2026-01-01T00:{number // 60:02}:{number % 60:02}+00:00",
                "forced": "false"}  # fmt: skip
        rows["tags"] += [{"key": f"{INTENT}.{key}", "value": value, "run_uuid": run} for key, value in tags.items()]
    yield rows


# --- measuring --------------------------------------------------------------------------------------------------------


def readers(name: str) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    return {
        "reference": lambda: registry.find(name),
        "compare": lambda: compare(name),
        "history": lambda: (promotion.settle(name), promotion.history(name)),
        "prune": lambda: prune.plan(5),
    }


def seconds(call: Callable[[], object], times: int = 3) -> float:
    """Of the fastest of so many calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--store", default="", help="an empty database; SQLite in a temporary folder if none is given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AJUSTE_HOME"] = folder
        if asked.store:
            os.environ["MLFLOW_TRACKING_URI"] = asked.store
        os.chdir(folder)
        subprocess.run(["git", "init", "--quiet", "."], check=True)
        Path("dvc.yaml").write_text("stages: {}\n")
        Path("params.yaml").write_text("{}\n")
        began = time.perf_counter()
        fill(asked.versions, asked.runs)
        kind = store.tracking_uri().partition(":")[0]
        print(f"{kind}: {asked.versions:,} versions of {2 * SETS} names, {asked.runs:,} runs, filled in "
              f"{time.perf_counter() - began:.0f} s\n")  # fmt: skip
        print("| what | seconds | wanted |\n|---|---|---|")
        for what, call in readers("set03-classifier").items():
            best = seconds(call, 1 if what == "prune" else 3)
            value(what, "s", [best])
            print(f"| {what} | {best:.3f} | {LIMITS[what]:g} |", flush=True)


if __name__ == "__main__":
    main()
