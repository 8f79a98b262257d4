"""No key is dead: a stage is run twice, with a key as it is and with another value, and has to make something else.

    CASES = {"classify.lora": {"alpha": 16.0, "patience": To(1, under={"epochs": 3})}}     key -> another value
    SILENT = {"encode.reviews.batch_rows": "rows in memory at a time"}                      key -> why nothing changes

`under` is what else must hold for the key to say anything (`dual_clip` with large steps). What a stage merely repeats
of its section in a card or a report is left out of the comparison (ECHOES), or a dead key would look alive there.
tests/keys/test_every_key.py asks that each leaf of params.yaml and policy.yaml stands in a CASES or a SILENT.
"""

import copy
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ajuste.core.errors import DataError, UsageError

# names under which reports and cards repeat a section, or name files by their digest
ECHOES = {
    "rule", "max_tokens", "dtype", "samples", "temperature", "new_tokens", "tolerance", "ngram", "jaccard",
}  # fmt: skip
Made = dict[str, Any]  # file -> what it says; or error -> its words


@dataclass(frozen=True)
class To:
    """Another value for a key, and what else is changed on both sides."""

    value: Any
    under: dict[str, Any] = field(default_factory=dict)


def changed(section: dict, key: str, value: Any) -> dict:
    """A copy of the section with one leaf at a dotted key replaced."""
    section = copy.deepcopy(section)
    *above, last = key.split(".")
    inner = section
    for part in above:
        inner = inner[part]
    assert inner[last] != value, f"`{key}` is {value!r} already"
    inner[last] = value
    return section


def made_by(stage: Callable[[dict, Path], Any], section: dict) -> Made:
    """What a stage writes into an empty folder and gives back, or the words of its refusal."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            answer = stage(section, Path(folder))
        except (UsageError, DataError) as error:
            return {"error": str(error)}
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        made = {path.relative_to(folder).as_posix(): _content(path) for path in files}
    return made | ({"answer": answer} if not files else {})


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_echoes(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".parquet":
        return pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    return path.read_bytes()


def _without_echoes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_echoes(inner) for key, inner in value.items() if key not in ECHOES}
    return [_without_echoes(inner) for inner in value] if isinstance(value, list) else value


class Compared:
    """A stage with its usual section; what it makes of one section is kept, since cases share it."""

    def __init__(self, stage: Callable[[dict, Path], Any], usual: dict) -> None:
        self.stage, self.usual = stage, usual
        self.known: dict[str, Made] = {}

    def differs(self, key: str, to: Any) -> None:
        """Assert that the stage makes something else with the change. Without it, it must not refuse."""
        to = to if isinstance(to, To) else To(to)
        before = copy.deepcopy(self.usual)
        for other, value in to.under.items():
            before = changed(before, other, value)
        same = self._made(before)
        assert "error" not in same, same["error"]
        other = self._made(changed(before, key, to.value))
        assert same != other, f"`{key}` changes nothing: {to.value!r} makes what {before} makes"

    def _made(self, section: dict) -> Made:
        name = json.dumps(section, sort_keys=True)
        if name not in self.known:
            self.known[name] = made_by(self.stage, section)
        return self.known[name]


def cases(*tables: dict[str, dict[str, Any]]) -> list[tuple[str, str, Any]]:
    """(section, key, value) of every case."""
    return [(section, key, to) for table in tables for section, keys in table.items() for key, to in keys.items()]


def small_decoder(folder: Path) -> Path:
    """A decoder folder of one layer: what a key does can be seen in one as in four."""
    import torch
    from transformers import AutoModelForCausalLM

    from ajuste.models.folder import sha256_of
    from tests.made.tiny_decoders import tiny_base

    tiny_base(folder)
    AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=1, dtype=torch.bfloat16).save_pretrained(folder)
    card = json.loads((folder / "base.json").read_text()) | {"sha256": sha256_of(folder / "model.safetensors")}
    (folder / "base.json").write_text(json.dumps(card))
    return folder


def first_rows(folder: Path, rows: int) -> Path:
    """Keep so many rows of each Parquet file below a folder."""
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path).slice(0, rows)
        pq.write_table(table, path)
    return folder
