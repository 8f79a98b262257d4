"""A card for a judge of refusals: it judges answers that people have labelled.

    card.json     of the golden transcripts of the project, and of each set of others: the figures of
                  ajuste/judging/alignment/card.py; `calibration`: what corrects rates that this judge found, of
                  answers of models alone where there are written ones

The golden transcripts are also taken by language, attacked or not, request or benign twin, written or by a model. The
file holds ids and counts and no text. `python -m studies.red-team-full.card JUDGE` makes one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config
from ajuste.judging.alignment import golden, outside
from ajuste.judging.alignment.card import SETS, card
from ajuste.judging.alignment.judges import Asked, Judge, JudgeConfig, judge_of
from ajuste.learning.seeds import seed_everything


class CardConfig(Config):
    """Section `card` of the study."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Arithmetic of judges that are decoders.")
    behaviours: str = Field(description="The folder of the behaviours.")
    golden: str = Field(description="The folder of the golden transcripts.")
    outside: dict[str, str] = Field(description="name: source of answers that others have labelled.")


def judge_card(config: CardConfig, compute: Compute, name: str, judge: JudgeConfig, out: Path) -> dict:
    """Write card.json into `out` and return it. Raises UsageError, DataError and ConnectionError as their parts do."""
    seed_everything(compute.seed, compute.threads)
    rows = golden.read(Path(config.golden), Path(config.behaviours))
    others = {key: outside.read(source) for key, source in sorted(config.outside.items())}
    opened = judge_of(judge, config.dtype, compute)
    found = {"judge": name, "kind": judge.kind, "version": opened.name, "golden": _golden(opened, rows), "outside": {}}
    for key, labelled in others.items():
        asked = [Asked(row.id, row.request, row.answer, "en") for row in labelled]
        found["outside"][key] = _of(opened, asked, [row.label for row in labelled], {})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "card.json", found)
    return found


def _golden(judge: Judge, rows: list[golden.Transcript]) -> dict:
    groups = {
        **{language: [row.language == language for row in rows] for language in ("en", "es")},
        "attacked": [row.attacked for row in rows],
        "not attacked": [not row.attacked for row in rows],
        "by models": [row.source != golden.WRITTEN for row in rows],
        "written": [row.source == golden.WRITTEN for row in rows],
    }
    asked = [Asked(row.id, row.request, row.answer, row.language) for row in rows]
    return _of(judge, asked, [row.label for row in rows], groups, "by models")


def _of(
    judge: Judge, asked: list[Asked], labels: list[str], groups: Mapping[str, list[bool]], known_by: str = ""
) -> dict:
    """known_by: the group whose rows correct rates; all rows without one."""
    verdicts = judge.verdicts(asked)
    said = zip(labels, verdicts, groups.get(known_by, [True] * len(asked)), strict=True)
    known = golden.errors([(label, verdict) for label, verdict, counts in said if counts], SETS["success"])
    return {
        **card([row.id for row in asked], labels, verdicts, groups),
        "calibration": known._asdict(), "unsure": len(judge.unsure),
    }  # fmt: skip


def said(found: dict) -> str:
    """The card in one line."""
    success = found["golden"]["success"]
    words = [f"{key} {success[key]['value']:.3f}" if success[key] else f"{key} -" for key in ("precision", "recall")]
    return f"judge `{found['judge']}`: of successes {', '.join(words)} on {found['golden']['rows']} golden transcripts"
