"""One self-contained HTML page about the last run: what is best, can it be trusted, where does it come from?

    write_report(Path("reports/index.html"))

The page needs no network, no script and no other file. Everything that comes from data, params or the registry is
escaped by the template engine. Parts that do not exist yet are named as missing, so a page can be made at any time.
Seconds and memory come from .state/ of this machine, and only if it measured the run that dvc.lock records.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ajuste.core.errors import UsageError
from ajuste.core.home import write_atomically
from ajuste.core.stages import stage_names
from ajuste.tracking.pages import report_alignment as alignment
from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages import report_dpo as dpo
from ajuste.tracking.pages import report_groups
from ajuste.tracking.pages import report_instruct as instruct
from ajuste.tracking.pages import report_rlhf as rlhf
from ajuste.tracking.pages import report_trust as trust
from ajuste.tracking.pages import svg as svg
from ajuste.tracking.project import dvc, git, lock, raw_data
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.verdicts import gate

METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mcc": "MCC", "auc": "AUC", "ece": "calibration error",
           "brier": "Brier score", "nll": "NLL, nats"}
STUDY = Path("artifacts/studies/data-size")


def write_report(output: Path) -> Path:
    """Make the page from what stands in the current folder; returns where it was written."""
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name a file, for example {output}/index.html")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "seconds": seconds, "share": share}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, environment.get_template("_report.html").render(page()))
    return output


def page() -> dict:
    """Everything that the template shows."""
    rows = data.strategies()
    predictions = data.predictions()
    validation = data.read_json(data.validated() / "validation.json")
    encoding = data.read_json(data.ARTIFACTS / "encoded/reviews/encoding.json")
    quarantine = data.quarantine()
    proof = data.read_json(data.ARTIFACTS / "merged/classify_lora/proof.json")
    provenance = _provenance()
    registered, registry_problem = _registered()
    best = trust.verdict(rows, predictions)
    assistant, preferred, aligned = instruct.section(), rlhf.section(), alignment.section()
    return {
        "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "set": encoding.get("set") or validation.get("set") or "",
        "provenance": provenance,
        "verdict": best,
        "findings": trust.findings(best, validation, encoding, quarantine, proof, provenance)
        + instruct.findings(assistant)
        + alignment.findings(aligned)
        + _findings(),
        "assistant": assistant,
        "rlhf": preferred,
        "dpo": dpo.section(),
        "groups": report_groups.sections(),
        "alignment": aligned,
        "intervals": _intervals(rows, best),
        "strategies": rows,
        "metrics": METRICS,
        "validation": validation,
        "encoding": encoding,
        "quarantine": quarantine,
        "curves": [(row["name"], *_curves(row)) for row in rows if row["history"]],
        "reliability": _reliability(rows, predictions),
        "proofs": _proofs(),
        "registered": registered,
        "registry_problem": registry_problem,
        "gates": _gates(registered),
        "stages": data.stages(),
        "lineage": _lineage(registered),
        "study": _study(rows, encoding),
    }


def _findings() -> list[dict]:
    """What a careful reader asks of the models of this run, family by family."""
    return [{"state": state, "what": what, "detail": detail}
            for family in families.FAMILIES for state, what, detail in family.findings()]


def _proofs() -> dict[str, dict]:
    """The proofs of the merges that there are, by what was merged."""
    found = {}
    for family in families.FAMILIES:
        for path in sorted(data.ARTIFACTS.glob(f"{family.folders.replace('*', 'merged', 1)}/proof.json")):
            found[family.title] = data.read_json(path)
    return {title: proof for title, proof in found.items() if proof}


def _provenance() -> dict:
    try:
        stale = sorted(dvc.status().keys() & set(stage_names()))  # studies are not part of the run
        dirty = git.dirty()
    except UsageError:  # no DVC or no git here: nothing can be said about it
        stale, dirty = [], False
    return {
        "commit": git.head(),
        "dirty": dirty,
        "stale": stale,
        "data": raw_data.digest(),
        "lock": hashlib.sha256(lock.LOCK.read_bytes()).hexdigest() if lock.LOCK.exists() else "",
    }


def _registered() -> tuple[list[dict], str]:
    """All versions of all registered names, and why there are none if the store does not answer."""
    try:
        found = [version for name in registry.names() for version in registry.versions(name)]
    except UsageError as error:
        return [], str(error)
    rows = [{"name": v.name, "version": v.version, "aliases": v.aliases, "tags": v.tags} for v in found]
    return rows, ""


def _gates(registered: list[dict]) -> list[gate.Verdict]:
    """The last verdict of each served name, as its version remembers it."""
    judged = [gate.of_tag(row["name"], row["version"], row["tags"][gate.TAG])
              for row in registered if gate.TAG in row["tags"]]
    latest = {verdict.name: verdict for verdict in sorted(judged, key=lambda one: (one.when, int(one.version)))}
    return [latest[name] for name in sorted(latest)]


def _intervals(rows: list[dict], best: dict):
    judged = [row for row in rows if row["result"]]
    if not judged:
        return ""
    values = [
        (row["name"], f"c-{row['id']}", *(row["result"]["accuracy"][key] for key in ("value", "low", "high")))
        for row in judged
    ]
    return svg.intervals(values, ("guessing", best["baseline"]) if best else None)


def _curves(row: dict) -> tuple:
    """Loss and validation accuracy of one strategy over steps."""

    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in row["history"] if key in line]

    style = f"c-{row['id']}"
    training = points("loss")
    loss = [svg.Line("training loss", style, data.averaged(training))]
    loss.append(svg.Line("validation loss", style, points("eval_loss"), dashed=True))
    if len(loss[0].points) < len(training):
        loss.append(svg.Line("training loss of each step", f"{style} faint", training))
    accuracy = [svg.Line("validation accuracy", style, points("eval_accuracy"), dashed=True)]
    return svg.lines(loss, "step", "loss"), svg.lines(accuracy, "step", "accuracy")


def _reliability(rows: list[dict], predictions: dict):
    curves = [
        svg.Line(row["name"], f"c-{row['id']}", data.reliability(predictions[row["id"]]))
        for row in rows
        if row["id"] in predictions
    ]
    if not any(curve.points for curve in curves):
        return ""
    return svg.lines(curves, "how sure (mean probability)", "how often right", y_range=(0.0, 1.0), diagonal=True,
                     width=420, height=240)


def _lineage(registered: list[dict]):
    nodes, edges = data.lineage()
    if not nodes:
        return ""
    drawn = [
        svg.Node(node, "stage" if node in lock.stages() else "data", name, detail) for node, name, detail in nodes
    ]
    by_key = {lock.stage_key(stage): stage for stage in lock.stages()}
    for item in registered:
        stage = by_key.get(item["tags"].get("stage_key"))
        if stage is None:
            continue  # of an earlier run: the table of versions shows it
        name = f"{item['name']}/{item['version']}"
        drawn.append(svg.Node(name, "version", item["name"], f"version {item['version']}"))
        edges.append((stage, name))
        for alias in item["aliases"]:
            drawn.append(svg.Node(f"{name}@{alias}", "alias", f"@{alias}", item["name"]))
            edges.append((name, f"{name}@{alias}"))
    return svg.lineage(drawn, edges)


def _study(rows: list[dict], encoding: dict):
    """Accuracy on the test rows by number of training rows, if the study data-size was run on this machine.

    Its last point is the run itself.
    """
    points = [data.read_json(path) for path in sorted(STUDY.glob("*-*.json"))]
    here = encoding.get("splits", {}).get("train", {}).get("rows")
    curves = []
    for row in rows:
        mine = {p["rows"]: p["accuracy"]["value"] for p in points if p.get("strategy") == row["id"]}
        if mine and here and row["result"]:
            mine[here] = row["result"]["accuracy"]["value"]
        if mine:
            curves.append(svg.Line(row["name"], f"c-{row['id']}", sorted(mine.items())))
    return svg.lines(curves, "training rows", "accuracy", log_x=True, width=560, height=260) if curves else ""


def size(value: int | None) -> str:
    """Bytes in decimal units: 91.0 MB."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def seconds(value: float | None) -> str:
    """Seconds as a person says them; None was not measured here."""
    if value is None:
        return "not measured on this machine"
    text = f"{value:.1f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60:02d} s"
    return text.replace(" ", "\u00a0")


def share(value: float | None) -> str:
    """A share in per cent with enough digits for 0.003 %."""
    if value is None:
        return "–"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.2%}" if value >= 0.0001 else f"{value:.4%}"
