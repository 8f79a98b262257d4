"""What a stage says of itself, read from dvc.lock, its outs and .state/: params, metrics, curves, tags, a description.

Metric names are chosen so that MLflow's own compare page answers "which is best, and what does it cost": the three
strategies share every name, and the part before the slash is the group that MLflow draws together.

    validation/accuracy            of the weights that were saved (ajuste.json)
    test/accuracy, _low, _high     of the registered model, with its 95 % interval, logged when it is registered
    accuracy/lora, _low, _high     the same on the run of `evaluate`, one line a strategy
    loss/instruct, loss/base, loss/difference, rouge1/instruct, ...    of an evaluation: figure/model, as the model's
                                   family reads it (ajuste/tracking/registry/families/)
    accuracy/ratings, accuracy/imdb                                    of the gold scorer
    score/<set>, forgetting/<set>  of the control sets; forgetting is F = score before - score after
    alignment/<score>/<model>      of an alignment ledger: higher or lower is better, as the ledger says
    cost/seconds, cost/peak_memory_mb, cost/size_mb, cost/parameters_trainable, ...
    cost/planned_memory_mb, cost/plan_error        what `ajuste plan` said, and planned / measured - 1
    curve/loss, curve/validation_loss, ...      one point a step of history.jsonl
    proof/max_logit_difference                  of a merge
"""

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ajuste.core.home import home
from ajuste.core.stages import params_of, split_name
from ajuste.tracking.again.hardware import hardware
from ajuste.tracking.project import git, lock, raw_data

JSON_FILES = (
    "ajuste.json", "base.json", "encoding.json", "features.json", "proof.json", "quality.json", "validation.json",
)  # fmt: skip
INTERVALS = ("accuracy", "macro_f1", "mcc", "auc", "ece", "brier", "nll")
MEGABYTE = 1e6  # decimal, as disks count


def params(stage: str, entry: dict) -> dict[str, str]:
    """The params that dvc.lock names, flat. The stage's own section loses its name, so that strategies share keys."""
    verb, variant = split_name(stage)
    flat = _flat(params_of(entry), ".")
    own = re.compile(rf"^{re.escape(verb)}\.({re.escape(variant)}\.)?")
    return {own.sub("", key): value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}


def state(stage: str, key: str) -> dict:
    """.state of the very run that dvc.lock names; {} if this machine measured another one or none.

    A sweep's stages have a home of their own, so that they do not stand in the way of a run: its .state is here.
    """
    for folder in (home(), Path()):
        found = read_json(folder / ".state" / f"{stage}.json")
        if found.get("key") == key and not found.get("error"):
            return found
    return {}


def folders(entry: dict) -> list[Path]:
    """The outs that are folders."""
    return [Path(out["path"]) for out in entry.get("outs", []) if Path(out["path"]).is_dir()]


def metrics(entry: dict, measured: dict, of_families: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """Every final number of a stage, by metric name. of_families: the figures that a family reads in a folder."""
    found: dict[str, Any] = {}
    for folder in folders(entry):
        for name in ("encoding", "features", "validation"):
            found |= _flat(_counts(read_json(folder / f"{name}.json")))
        found |= {f"proof/{key}": value for key, value in read_json(folder / "proof.json").items()}
        found |= card_metrics(read_json(folder / "ajuste.json"))
        for path in sorted(folder.glob("*.json")):
            for metric, value in evaluated(read_json(path)).items():
                name, _, bound = metric.partition(":")
                found[f"{name}/{path.stem}{bound and '_' + bound}"] = value
        found |= of_families(folder)
        figures = gold_figures(read_json(folder / "evaluation.json"))
        named = {f"{figure}/{model}": value for (figure, model), value in figures.items()}
        named |= control_figures(read_json(folder / "scores.json"))
        found |= {key.replace(":", "_"): value for key, value in flat_intervals(named).items()}
    found |= cost(measured)
    if size := sum(out.get("size", 0) for out in entry.get("outs", [])):
        found["cost/size_mb"] = size / MEGABYTE
    return {metric_name(key): float(value) for key, value in found.items() if is_number(value)}


def card_metrics(card: dict) -> dict[str, float]:
    """ajuste.json as metrics: validation/* and cost/parameters_*."""
    scores = {f"validation/{key}": value for key, value in card.get("validation", {}).items()}
    return scores | {f"cost/parameters_{key}": value for key, value in card.get("parameters", {}).items()}


def evaluated(result: dict) -> dict[str, float]:
    """evaluated/<strategy>.json as {"accuracy": v, "accuracy:low": v, "accuracy:high": v, ...}; {} for another file."""
    if "confusion" not in result:
        return {}
    return flat_intervals({name: result.get(name, {}) for name in INTERVALS})


def gold_figures(result: dict) -> dict[tuple[str, str], dict]:
    """evaluation.json of the gold scorer as {("accuracy", ratings or imdb): interval}; {} for another file."""
    found = {("accuracy", name): result.get(name, {}).get("test") for name in ("ratings", "imdb")}
    return {key: value for key, value in found.items() if value}


def control_figures(result: dict) -> dict[str, dict]:
    """scores.json of a forgetting stage as {"score/<set>": interval, "forgetting/<set>": interval}."""
    found = {f"score/{name}": scored for name, scored in result.get("sets", {}).items()}
    return found | {f"forgetting/{name}": interval for name, interval in result.get("F", {}).items()}


def flat_intervals(figures: dict[str, dict | float]) -> dict[str, float]:
    """{"loss": {"value": v, "low": l, "high": h}} -> {"loss": v, "loss:low": l, "loss:high": h}; numbers stay."""
    flat = {}
    for name, figure in figures.items():
        bounds = figure if isinstance(figure, dict) else {"value": figure}
        flat |= {name if bound == "value" else f"{name}:{bound}": bounds[bound]
                 for bound in ("value", "low", "high") if is_number(bounds.get(bound))}
    return flat


def cost(measured: dict) -> dict[str, float]:
    """.state as metrics."""
    found = {f"cost/{key}": measured.get(key) for key in ("seconds", "peak_memory_mb", "tokens", "tokens_per_second")}
    found |= {f"cost/seconds_{phase}": value for phase, value in measured.get("phases", {}).items()}
    return {key: value for key, value in found.items() if value is not None}


def curve_points(line: dict) -> dict[str, float]:
    """One line of history.jsonl as metrics: loss -> curve/loss, eval_loss -> curve/validation_loss."""
    return {
        metric_name(f"curve/{re.sub('^eval_', 'validation_', key)}"): float(value)
        for key, value in line.items() if key not in ("step", "update") and is_number(value)
    }


def history(entry: dict) -> Path | None:
    """The curves of a stage that trains. A merged folder holds a copy of its adapter's: that run has them."""
    for folder in folders(entry):
        if (folder / "history.jsonl").is_file() and not (folder / "proof.json").exists():
            return folder / "history.jsonl"
    return None


def tags(stage: str, entry: dict) -> dict[str, str]:
    """Where the result came from, to search by."""
    found = {"ajuste.stage": stage, "ajuste.cmd": entry["cmd"], "ajuste.data": raw_data.digest(), **commit()}
    for kind in ("dep", "out"):
        found |= {f"dvc.{kind}.{item['path']}": item.get("md5", "") for item in entry.get(f"{kind}s", [])}
    if measured := state(stage, lock.stage_key(stage)):  # equal bytes are promised for one kind of processor
        found["ajuste.hardware"] = hardware(measured["device"])
    return found


def commit() -> dict[str, str]:
    """The git commit and whether the checkout differs from it."""
    revision = git.head()
    if not revision:
        return {"ajuste.git_commit": "", "ajuste.dirty": "unknown"}
    return {"ajuste.git_commit": revision, "ajuste.dirty": str(git.dirty()).lower(),
            "mlflow.source.git.commit": revision}


def describe(stage: str, entry: dict, measured: dict, numbers: dict[str, float], first: list[str]) -> str:
    """What a person reads at the top of the run's page (Markdown). first: the metrics by which runs are chosen."""
    lines = [f"Stage **{stage}**: `{entry['cmd']}`", ""]
    shown = {key: numbers[key] for key in (*first, "proof/max_logit_difference") if key in numbers} | results(numbers)
    lines += [f"- {key}: **{value:.4g}**" for key, value in shown.items()]
    if measured:
        lines.append(f"- {measured['seconds']:.1f} s, {measured['peak_memory_mb']:.0f} MB at most, "
                     f"{measured['device']}, {measured['threads']} threads")
        lines += [f"- {note}" for note in measured.get("notes", [])]
    lines += ["", "| | path | DVC hash |", "|---|---|---|"]
    for kind, word in (("deps", "reads"), ("outs", "writes")):
        lines += [f"| {word} | `{item['path']}` | `{item.get('md5', '')[:12]}` |" for item in entry.get(kind, [])]
    return "\n".join([*lines, "", f"{code()}. The same inputs again: `git checkout` that commit, `ajuste run`."])


def results(numbers: dict[str, float]) -> dict[str, float]:
    """Of a run's metrics those that say how good a model is, without the bounds of their intervals."""
    good = ("accuracy/", "loss/", "proxy/", "gold/", "kl/", "forgetting/", "alignment/")
    bounds = ("_low", "_high")
    return {key: value for key, value in numbers.items() if key.startswith(good) and not key.endswith(bounds)}


def code() -> str:
    """"Code at commit 1a2b3c4d", with a warning if the checkout was changed."""
    found = commit()
    changed = " **with uncommitted changes**" if found["ajuste.dirty"] == "true" else ""
    return f"Code at commit `{found['ajuste.git_commit'][:12] or 'none yet'}`{changed}"


@cache
def environment() -> str:
    """What is installed, as `pip freeze` writes it, under a line that names Python and the platform."""
    import platform

    names = {dist.metadata["Name"]: dist.version for dist in metadata.distributions() if dist.metadata["Name"]}
    lines = sorted((f"{name}=={version}" for name, version in names.items()), key=str.lower)
    return "\n".join([f"# Python {sys.version.split()[0]}, {platform.system()} {platform.machine()}", *lines, ""])


def history_rows(folder: Path) -> list[dict]:
    """The lines of a folder's history.jsonl; none where there is no such file."""
    path = folder / "history.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_json(path: Path) -> dict:
    """A JSON object, or {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def metric_name(key: str) -> str:
    """A name that MLflow takes: letters, digits, _ - . and blank between slashes, no empty part, 250 characters.

    Parts may be names of a user's sources and labels.
    """
    parts = [re.sub(r"[^\w\-. ]", "_", part) for part in key.split("/")]
    return "/".join(part if part.strip(".") else "_" for part in parts)[:250].rstrip("/")


def is_number(value: object) -> bool:
    """A number that a metric can hold; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _counts(report: dict) -> dict:
    """validation.json and encoding.json as nested dicts of numbers: of each check, the rows that failed."""
    checks = report.get("checks")
    if isinstance(checks, list):
        failed = {check["name"]: check.get("rows_failed") for check in checks if isinstance(check, dict)}
        return {**report, "checks": {f"{name}/rows_failed": rows for name, rows in failed.items()}}
    return report


def _flat(tree: dict, joint: str = "/") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a/b": 1}; lists and single values stay."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}{joint}{inner}": item for inner, item in _flat(value, joint).items()}
        else:
            flat[str(key)] = value
    return flat
