"""An assistant's alignment ledger on its way from the stage that measured it to whoever asks about a version.

    out       artifacts/alignment/<model>/alignment.json of stage alignment_<model>; ajuste/judging/alignment/ledger.py
              knows its form
    tag       `alignment` of the version: the same scores as JSON, without their details and their units
    artifact  results/alignment.json of the stage's run, whole: the gate compares unit by unit
    metrics   alignment/<score>, _low, _high on the version's page; on the stage's run alignment/<score>/<model>

A version that no stage measured has no tag, and readers say that it is missing.
"""

from __future__ import annotations

import json
from pathlib import Path

from ajuste.core.stages import split_name
from ajuste.judging.alignment.ledger import FILE, Ledger, Score, as_json, ledger, read
from ajuste.tracking.project import lock
from ajuste.tracking.registry.families.family import Tags, judged
from ajuste.tracking.runs.results import value

MEASURED = Path("artifacts/alignment")
BASE, OF_BASE = Path("artifacts/base/decoder"), "alignment_base"
TAG = "alignment"


def out_of(stage: str) -> Path:
    """The ledger that a stage writes."""
    return MEASURED / split_name(stage)[1] / FILE


def measured(stage: str, folder: Path, md5: str) -> dict[str, str]:
    """{tag: the ledger of these very weights}; {} if dvc.lock has no run of the stage on them."""
    if not stage or not judged(stage, folder, md5):
        return {}
    return {TAG: as_tag(read(out_of(stage)))}


def as_tag(found: Ledger) -> str:
    """The ledger as a tag: one JSON text of the scores that are no details."""
    scores = [{key: part for key, part in score.items() if key != "units"}
              for score in as_json(Ledger(model=found.model, scores=found.main()))["scores"]]
    return json.dumps({"model": found.model, "scores": scores})


def of_tags(tags: Tags) -> Ledger | None:
    """What a version says of itself; None where nobody measured it."""
    return ledger(json.loads(tags[TAG]), f"tag `{TAG}`") if TAG in tags else None


def of_run(stage: str, tags: Tags) -> Ledger | None:
    """The whole ledger, with its units, from the run of the stage that measured the version; None if there is none."""
    run = tags.get(f"run.{stage}") if stage else None
    found = value(run, FILE)
    return None if found is None else ledger(found, f"{FILE} of run {run}")


def of_base(tags: Tags) -> Ledger | None:
    """The ledger of the pretrained base that the version was made from; None if it was not measured then."""
    run = tags.get(f"run.{OF_BASE}")
    found = value(run, FILE)
    return None if found is None else ledger(found, f"{FILE} of run {run}")


def base_is_measured(merge: str) -> bool:
    """Whether dvc.lock has a ledger of the very base that the stage `merge` merged into."""
    hashes = {dep["md5"] for dep in lock.every().get(merge, {}).get("deps", []) if Path(dep["path"]) == BASE}
    return any(judged(OF_BASE, BASE, md5) for md5 in hashes)


def run_figures(folder: Path) -> dict[str, dict | float]:
    """The scores of an alignment stage's out as metrics of its run; {} of another folder."""
    if folder.parent.name != MEASURED.name or not (folder / FILE).is_file():
        return {}
    found = read(folder / FILE)
    return {f"{TAG}/{_flat(score)}/{found.model}": _bounds(score) for score in found.main()}


def version_figures(tags: Tags) -> dict[str, float]:
    """The scores of a version as metrics of its page."""
    found = of_tags(tags)
    return {f"{TAG}/{_flat(score)}{end}": number for score in (found.main() if found else [])
            for end, number in (("", score.value), ("_low", score.low), ("_high", score.high))}


def page(tags: Tags) -> list[str]:
    """The lines of a version's page about its alignment."""
    found = of_tags(tags)
    if found is None:
        return ["- alignment: not measured"]
    return [f"- alignment, {h}: " + "; ".join(said(score) for score in found.main() if score.h == h)
            for h in dict.fromkeys(score.h for score in found.main())]


def said(score: Score) -> str:
    """A score in words: "over_refusal 0.120 [0.050, 0.240], lower is better, rules 1, n 60"."""
    parts = [f"{score.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"]
    if score.corrected:
        one = score.corrected
        parts.append(f"corrected {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]")
    parts += [f"{score.better} is better"] if score.better != "neither" else []
    parts += [score.judge] if score.judge else []
    return ", ".join([*parts, f"n {score.n:,}{' (few)' if score.few else ''}"])


def _flat(score: Score) -> str:
    return score.name.replace(".", "_")


def _bounds(score: Score) -> dict[str, float]:
    return {"value": score.value, "low": score.low, "high": score.high}
