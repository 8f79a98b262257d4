"""What `compare` found as one HTML page: figures over versions, paired differences, curves, cost, what differs.

    write_page(compare(NAME), Path("reports/compare-NAME.html"))

One file without scripts and outside hosts, in the style of the report. Texts are escaped by the template engine. One
colour stands for each of a few versions; of many those with an alias are coloured and all others grey.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ajuste.core.errors import UsageError
from ajuste.core.home import write_atomically
from ajuste.tracking.comparing import text as text
from ajuste.tracking.pages import compare_svg as svg
from ajuste.tracking.pages.report_data import averaged
from ajuste.tracking.pages.svg import Line, lines
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families.family import Picture
from ajuste.tracking.registry.registry import ALIASES
from ajuste.tracking.runs.store import client

PALETTE = 6  # versions that all get a colour of their own
CURVES = {
    "curve/loss": "training loss", "curve/validation_loss": "validation loss",
    "curve/validation_accuracy": "validation accuracy", "curve/score": "reward (proxy)",
    "curve/kl": "KL, nats a response",
}  # fmt: skip
ANSWERS = 20


def write_page(found: dict, output: Path) -> Path:
    """Make the page; returns where it was written. Raises UsageError if it cannot be written there."""
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name a file, for example {output}/compare.html")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    written = environment.get_template("_compare.html").render(page(found))
    try:
        write_atomically(output, written)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    return output


def page(found: dict) -> dict:
    """Everything that the template shows."""
    versions = found["versions"]
    styles = _styles(versions)
    pictures = families.pictures_of(found["name"])
    qualities = {key: picture for key, picture in pictures.items() if any(v["test"].get(key) for v in versions)}
    return {
        "name": found["name"],
        "made": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "versions": versions,
        "styles": styles,
        "few": len(versions) <= PALETTE,
        "lead": _lead(found),
        "qualities": [(picture.title, picture.higher,
                       svg.over_versions(_points(versions, key, picture, styles), picture.title))
                      for key, picture in qualities.items()],
        "same_test_rows": found["same_test_rows"],
        "forests": _forests(found, styles),
        "curves": _curves(versions, styles),
        "costs": _costs(versions, qualities, styles),
        "facts": _facts_table(found),
        "differing": found["differing_parameters"],
        "origins": _origins(versions),
        "history": sorted(((words, alias, v["version"]) for v in versions
                           for alias, words in v["alias_history"].items()), reverse=True),
        "answers": found["answers"][:ANSWERS],
        "more_answers": max(0, len(found["answers"]) - ANSWERS),
        "answer_columns": _answer_columns(found),
    }


def _styles(versions: list[dict]) -> dict[str, str]:
    """The CSS class of each version: by alias, else one of a few colours, else grey."""
    few, styles, free = len(versions) <= PALETTE, {}, iter(range(PALETTE))
    for v in versions:
        known = next((alias for alias in ALIASES if alias in v["aliases"]), None)
        styles[v["version"]] = f"v-{known}" if known else f"v-{next(free)}" if few else "v-other"
    return styles


def _lead(found: dict) -> list[str]:
    """The answer in words: who holds an alias, and how each of these stands against the reference."""
    said = []
    for alias in ALIASES:
        said += [f"{alias}: version {v['version']} ({v['strategy'] or '?'})"
                 for v in found["versions"] if alias in v["aliases"]]
    by_verdict: dict[str, list[str]] = {}
    for pair in found["paired"]:
        by_verdict.setdefault(f"{pair['verdict']} than" if pair["verdict"] in ("better", "worse")
                              else "no clear difference to", []).append(pair["version"])
    reference = found["paired"][0]["against"] if found["paired"] else ""
    for verdict, members in by_verdict.items():
        numbers = list(dict.fromkeys(members))
        shown = ", ".join(numbers[:12]) + (f" and {len(numbers) - 12} more" if len(numbers) > 12 else "")
        said.append(f"{verdict} version {reference}: {shown}")
    return said


def _points(versions: list[dict], key: str, picture: Picture, styles: dict[str, str]) -> list[svg.Point]:
    of_validation, found = picture.validation, []
    for v in versions:
        if figure := v["test"].get(key):
            found.append(svg.Point(
                v["version"], styles[v["version"]], figure["value"], figure["low"], figure["high"],
                v["validation"].get(of_validation) if of_validation else None, v["test"].get("rows_digest"),
                datetime.fromtimestamp(v["created"] / 1000, UTC).strftime("%d %b %H:%M"), ", ".join(v["aliases"])))
    return found


def _forests(found: dict, styles: dict[str, str]) -> list[tuple[str, str, Markup]]:
    """(metric, against, picture) of each metric that pairs share."""
    by_metric: dict[str, list[dict]] = {}
    for pair in found["paired"]:
        by_metric.setdefault(pair["metric"], []).append(pair)
    aliases = {v["version"]: v["aliases"] for v in found["versions"]}
    lower_ones = {metric.name for metric in families.metrics_of(found["name"]) if metric.lower}
    pictures = []
    for metric, pairs in by_metric.items():
        rows = [(_label(pair["version"], aliases), styles[pair["version"]], pair["difference"], pair["low"],
                 pair["high"], pair["verdict"]) for pair in pairs]
        lower = "below 0 is better" if metric in lower_ones else "above 0 is better"
        against = _label(pairs[0]["against"], aliases)
        pictures.append((metric, against, svg.forest(rows, f"difference in {metric}; {lower}")))
    return pictures


def _label(version: str, aliases: dict[str, list[str]]) -> str:
    held = aliases.get(version) or []
    return f"{version}, {held[0]}" if held else version


def _curves(versions: list[dict], styles: dict[str, str]) -> list[tuple[str, Markup]]:
    """(title, picture) of each curve that any version's training left."""
    ordered = sorted(versions, key=lambda v: bool(v["aliases"]))  # those with an alias above the others
    pictures = []
    for metric, title in CURVES.items():
        drawn = []
        for v in ordered:
            points = _history(v["trained_run"], metric)
            if points:
                drawn.append(Line(f"version {v['version']}", styles[v["version"]], averaged(points)))
        if drawn:
            pictures.append((title, lines(drawn, "step", title)))
    return pictures


def _history(run_id: str | None, metric: str) -> list[tuple[float, float]]:
    from mlflow.exceptions import MlflowException

    if not run_id:
        return []
    try:
        found = client().get_metric_history(run_id, metric)
    except MlflowException:  # a run that was deleted for good
        return []
    return sorted({point.step: point.value for point in found}.items())


def _costs(versions: list[dict], qualities: dict[str, Picture], styles: dict[str, str]) -> list[tuple[str, Markup]]:
    """(title, picture): the first figure against seconds, and against trained parameters where these differ."""
    pictures = []
    for key, picture in qualities.items():
        title, points = picture.title, {point.label: point for point in _points(versions, key, picture, styles)}
        costs = {
            "seconds of training": {v["version"]: v["seconds"] for v in versions},
            "trained parameters": {v["version"]: v["trained_parameters"].get("trainable") for v in versions},
        }
        for name, of in costs.items():
            known = [(of[label], point) for label, point in points.items() if of[label]]
            if len({cost for cost, _ in known}) > 1:
                pictures.append((f"{title} and {name}", svg.scatter(known, name, title)))
    return pictures


def _facts_table(found: dict) -> list[tuple[str, list[str]]]:
    """(fact, a cell a version): the facts of the terminal's table without parameters and origins, which follow."""
    left_out = {"", "alias", "base", "data", "DVC hash", "git commit", "MLflow run", *found["differing_parameters"]}
    facts, above = [], ""
    for fact, cells in text.rows(found):
        above = above if fact.startswith(" ") else fact
        if fact not in left_out:
            facts.append((fact if fact == above else f"{above}: {fact.strip()}", cells))
    return facts


def _origins(versions: list[dict]) -> list[dict]:
    """Versions with the same data, commit and base together."""
    groups: dict[tuple, list[str]] = {}
    for v in versions:
        key = v["data"] or "", v["git_commit"] or "", bool(v["dirty"]), v["base"]["id"] or "", v["base"]["sha256"] or ""
        groups.setdefault(key, []).append(v["version"])
    return [{"data": data, "commit": commit, "dirty": dirty, "base": base, "base_sha256": sha256, "versions": members}
            for (data, commit, dirty, base, sha256), members in groups.items()]


def _answer_columns(found: dict) -> list[str]:
    """The versions whose answers are shown: all of a few, of many those with an alias."""
    if not found["answers"]:
        return []
    said = list(found["answers"][0]["versions"])
    if len(said) <= PALETTE:
        return said
    held = {v["version"] for v in found["versions"] if v["aliases"]}
    return [version for version in said if version in held] or said[-PALETTE:]
