"""Memory stays flat: peak memory of validation and encoding with ten times the rows grows by less than 20 %."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.made.preference_files import write_set as write_preferences

ROOT = Path(__file__).parents[2]
STAGES = """
import resource, sys
from pathlib import Path
folder, base = Path(sys.argv[1]), Path(sys.argv[2])
if sys.argv[3] == "validate":
    from tasks.validate import ValidateConfig, validate
    config = ValidateConfig(set="mine", sample=1.0, max_chars=20000, near_duplicate_jaccard=0.8,
                            max_quarantine_share=0.1, min_class_share=0.05, batch_rows=4096)
    validate(config, None, folder / "data", folder / "validated")
elif sys.argv[3] == "instructions":
    from tasks.validate import InstructionsConfig, validate_instructions
    config = InstructionsConfig(set="mine", sample=1.0, max_chars=20000, max_repeats=4, near_duplicate_jaccard=0.8,
                                decontaminate="control", ngram=8, max_quarantine_share=0.1, batch_rows=4096)
    validate_instructions(config, None, folder / "chats", folder / "instructions")
elif sys.argv[3] == "preferences":
    from tasks.validate import PreferencesConfig, validate_preferences
    config = PreferencesConfig(set="mine", sample=1.0, max_chars=20000, near_duplicate_jaccard=0.8, prompt_share=0.5,
                               shared_with=["chats"], max_quarantine_share=0.1, batch_rows=4096)
    validate_preferences(config, None, folder / "preferences", folder / "compared")
else:
    from ajuste.core.params import Compute
    from tasks.encode import EncodeConfig, encode
    rows = {"train": None, "validation": None, "test": None}
    config = EncodeConfig(max_tokens=64, sources=[], rows=rows, unknown_share=1.0, batch_rows=2048)
    compute = Compute(dtype="float32", device="cpu", threads=1, seed=0)
    encode(config, compute, folder / "validated", base, folder / "encoded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_set(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    generator = random.Random(0)
    with (folder / "a.csv").open("w") as file:
        file.write("text,label\n")
        for i in range(rows):
            words = ("".join(generator.choices("etaoinshrdlu", k=5)) for _ in range(40))
            file.write(f"{' '.join(words)},{i % 2}\n")
    columns = {"text": "text", "label": "label"}
    file = {"path": "a.csv", "format": "csv", "columns": columns, "source": "path:a.csv"}
    values = {"kind": "classification", "labels": ["0", "1"], "licence": "own", "files": [file]}
    (folder / "set.yaml").write_text(yaml.safe_dump(values))


def make_chats(folder: Path, rows: int) -> None:
    generator = random.Random(0)
    words = ["".join(generator.choices("etaoinshrdlu", k=5)) for _ in range(5000)]

    def text() -> str:
        return " ".join(generator.choices(words, k=40))

    (folder / "chats").mkdir(parents=True)
    with (folder / "chats/a.jsonl").open("w") as file:
        file.writelines(json.dumps({"inputs": text(), "targets": text()}) + "\n" for _ in range(rows))
    make_preferences(folder / "preferences", rows, text)
    (folder / "control").mkdir()
    (folder / "control/c.jsonl").write_text("".join(json.dumps({"text": text()}) + "\n" for _ in range(1000)))
    for name, kind, entry in (("chats", "instructions", {"path": "a.jsonl", "layout": "flan"}),
                              ("control", "control", {"path": "c.jsonl", "layout": "text", "name": "c"})):  # fmt: skip
        file = {"format": "jsonl", "source": f"path:{entry['path']}", **entry}
        (folder / name / "set.yaml").write_text(yaml.safe_dump({"kind": kind, "licence": "own", "files": [file]}))


def make_preferences(folder: Path, rows: int, text: Callable[[], str]) -> None:
    """Half the rows are pairs, half are rated texts."""
    generator = random.Random(1)
    layouts = [{"layout": "pairs"}, {"layout": "ratings"}]
    write_preferences(folder, {"a.jsonl": [], "b.jsonl": []}, layouts, prompt="Write.")
    with (folder / "a.jsonl").open("w") as file:
        for _ in range(rows // 2):
            file.write(json.dumps({"prompt": text(), "chosen": text(), "rejected": text()}) + "\n")
    with (folder / "b.jsonl").open("w") as file:
        for _ in range(rows // 2):
            file.write(json.dumps({"text": text(), "ratings": generator.choices(range(-4, 5), k=5)}) + "\n")


@pytest.mark.slow
def test_ten_times_the_rows_take_hardly_more_memory(tmp_path, tiny_encoder):
    peaks = {}
    for rows in (12_000, 120_000):
        make_set(tmp_path / str(rows) / "data", rows)
        make_chats(tmp_path / str(rows), rows)
        for stage in ("validate", "encode", "instructions", "preferences"):
            command = [sys.executable, "-c", STAGES, str(tmp_path / str(rows)), str(tiny_encoder), stage]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            peaks[stage, rows] = int(done.stdout.split()[-1])
    for stage in ("validate", "encode", "instructions", "preferences"):
        assert peaks[stage, 120_000] < 1.2 * peaks[stage, 12_000], peaks
