"""`ajuste data scan`, `ajuste data filter`: personal data, profane words, forbidden phrases, copies of evaluation sets.

A set is never changed: `filter` makes a new one of the rows that are clean, records it in data.dvc, and keeps what
left, with its reasons, in artifacts/filtered/<new set>/. What each kind means: docs/filters.md.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from ajuste.cli.data import use
from ajuste.cli.data.sets import DATA, scratch
from ajuste.cli.project.ui_address import working
from ajuste.core.errors import UsageError
from ajuste.rows.decontaminate import ngrams_of
from ajuste.rows.filters import filters, pii, rows
from ajuste.rows.filters.phrases import read_phrases
from ajuste.rows.ngrams import Ngrams
from ajuste.tracking.project import raw_data

WHY = Path("artifacts/filtered")
NGRAM = 8  # words in a row; validate.instructions.ngram is what a run asks for later


@dataclass(frozen=True)
class Asked:
    """What is looked for, as the options say it."""

    kinds: str = ""  # comma-separated; else all kinds of personal data
    regions: str = ""
    phrases: str = ""  # a file
    against: Sequence[str] = ()  # sets that judge
    ngram: int = NGRAM

    def filter(self) -> filters.Filter:
        kinds = _listed(self.kinds) or list(pii.KINDS)
        phrases = read_phrases(Path(self.phrases)) if self.phrases else []
        if phrases and "phrase" not in kinds:
            kinds.append("phrase")
        return filters.made(kinds, _listed(self.regions), phrases)

    def ngrams(self, name: str) -> list[Ngrams]:
        if name in self.against:
            raise UsageError(f"--against {name}: a set is no copy of itself; name a set that judges, such as control")
        return [ngrams_of(DATA, other, self.ngram) for other in self.against]


def scan(name: str, asked: Asked) -> None:
    """Say what a set holds, by kind; nothing is written."""
    with working(f"Reading data/{name}"):
        report = rows.scanned(DATA / name, asked.filter(), asked.ngrams(name))
    typer.echo(f"data/{name}: {report['rows']['read']:,} rows, {report['rows']['removed']:,} with findings")
    _tell(report)


def filter_set(name: str, out: str, asked: Asked, write: bool) -> None:
    """Make the new set; nothing changes if anything is wrong."""
    out = out or f"{name}-filtered"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", out):
        raise UsageError(f"`{out}` is no name for a set: use small letters, digits, - and _")
    if (DATA / out).exists():
        raise UsageError(f"data/{out} exists: name another set with --out")
    raw_data.check_place()
    if raw_data.status() != "untracked":
        raw_data.check()
    with scratch() as workspace, working(f"Reading data/{name}"):
        report = rows.filtered(DATA / name, asked.filter(), asked.ngrams(name), workspace / out, workspace / "why")
        os.rename(workspace / out, DATA / out)
        try:
            raw_data.add()
            shutil.rmtree(WHY / out, ignore_errors=True)
            WHY.mkdir(parents=True, exist_ok=True)
            os.rename(workspace / "why", WHY / out)
        except BaseException:
            shutil.rmtree(DATA / out, ignore_errors=True)
            raise
    found = report["rows"]
    typer.echo(f"data/{out}: {found['kept']:,} of {found['read']:,} rows of data/{name}; data.dvc names it now")
    typer.echo(f"removed: {found['removed']:,} rows, with their reasons in {WHY / out / 'quarantine.parquet'}")
    _tell(report)
    _use(out, write)


def _use(name: str, write: bool) -> None:
    """What params.yaml needs so that the next run trains on the new set."""
    data_set = rows.read_set(DATA / name)
    stems = {getattr(file, "name", None) or Path(file.path).stem for file in data_set.files}
    if data_set.kind == "classification":
        changes = use.classification_changes(name, "", by_file=False)
    elif data_set.kind == "instructions":
        changes = use.instruction_changes(name, stems)
    else:
        changes = use.preference_changes(name)
    use.use(changes, write)


def _tell(report: dict) -> None:
    for kind, found in report["kinds"].items():
        typer.echo(f"  {kind}: {found['findings']:,} in {found['rows']:,} rows")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
