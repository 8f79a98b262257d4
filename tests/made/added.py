"""A file as a user brings it: `ajuste data add`, then the stage that validates its kind, in a project of its own."""

import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.rows.split import SPLITS
from tests.cli.commands import ajuste_data, project_without_dvc

ROOT = Path(__file__).parents[2]
CONTROL = """\
kind: classification
labels: [a, b]
licence: own
files:
- {path: few.csv, format: csv, columns: {text: text, label: label}, source: 'path:few.csv'}
"""


@dataclass
class Outcome:
    """What `data add` said, what set.yaml holds, and the rows that validation kept and did not."""

    said: str
    set: dict
    kept: list[dict]
    quarantine: list[dict]

    def reasons(self) -> dict[int, list[str]]:
        """Line -> reasons of each row in quarantine."""
        return {int(row["location"].rsplit(":", 1)[1]): row["reasons"] for row in self.quarantine}


def project(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A project with the repository's own params.yaml and a set that judges; it is the current folder then."""
    project_without_dvc(folder, (ROOT / "params.yaml").read_text(), patch)
    judge = Path("data/control")
    judge.mkdir(parents=True)
    (judge / "set.yaml").write_text(CONTROL)
    (judge / "few.csv").write_text("text,label\nnothing that anyone asks here,a\nnothing else either,b\n")
    return folder


def add(path: Path | str, *args: str, share: float = 0.5) -> Outcome:
    """Add a file to set `mine` of the current project and validate it. share: of rows that may be in quarantine."""
    said = ajuste_data("add", "mine", str(path), *args)
    made = yaml.safe_load(Path("data/mine/set.yaml").read_text())
    kind = {"classification": "reviews"}.get(made["kind"], made["kind"])
    stage = importlib.import_module(f"tasks.validate.{kind}")
    values = {**yaml.safe_load(Path("params.yaml").read_text())["validate"][kind], "set": "mine"}
    values |= {"max_quarantine_share": share, **({"shared_with": []} if kind == "preferences" else {})}
    config = getattr(stage, f"{kind.capitalize()}Config")(**values)
    shutil.rmtree("out", ignore_errors=True)
    getattr(stage, f"validate_{kind}")(config, None, Path("data/mine"), Path("out"))
    kept = [row for split in SPLITS for row in pq.read_table(f"out/{split}.parquet").to_pylist()]
    return Outcome(said, made, kept, pq.read_table("out/quarantine.parquet").to_pylist())


def jsonl(name: str, rows: list) -> str:
    """A file of JSON lines in the current folder; its name."""
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def texts(count: int, labels: tuple = ("neg", "pos")) -> list[dict]:
    """Labelled rows that differ in most of their words."""
    return [{"text": sentence(i), "label": labels[i % len(labels)]} for i in range(count)]


def asked(count: int) -> list[dict]:
    """Instructions in alpaca's columns."""
    return [{"instruction": f"What of {sentence(i)}?", "output": f"Answer {i} {sentence(i + 7919)}"}
            for i in range(count)]  # fmt: skip


def sentence(i: int) -> str:
    """Seven words that only this number has."""
    return " ".join(f"{'bdfgklmnprst'[(i + k) % 12]}{'aeiou'[(i // 12) % 5]}{i * (k + 3) % 997}" for k in range(7))
