"""Own pairs, 2 % of them broken, all the way to a registered DPO version on preset tiny.

And study best-of-n on the same run: a registered version of rejection sampling, and the same bytes after `kill -9`.
"""

import json
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.made.preference_files import ROWS, broken, triples
from tests.made.projects import ajuste, kill_when, loaded, run, tiny_project

PAIRS = 400
TARGET = "assistant:dpo"
VERSIONS = """
import json
from ajuste.tracking.registry import registry
print(json.dumps([{"version": v.version, **v.tags} for v in registry.versions("assistant")]))
"""


def pairs_file(path: Path) -> dict[int, str]:
    """PAIRS good rows and 2 % of all broken, one of each kind, in hh-rlhf's form; line -> why it is broken."""
    lines: list = [ROWS["transcripts"](*row) for row in triples(PAIRS)]
    kinds = {reason: row for reason, row in broken(*triples(1, seed=99)[0]).items() if reason != "over_long"}
    chosen = dict(list(kinds.items())[: round(0.02 * PAIRS)])
    places = sorted(random.Random(1).sample(range(10, PAIRS), len(chosen)))
    for place, row in reversed(list(zip(places, chosen.values(), strict=True))):
        lines.insert(place, row)
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return {place + shift + 1: reason for shift, (place, reason) in enumerate(zip(places, chosen, strict=True))}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """The pairs were added, and the pipeline ran to DPO."""
    folder = tiny_project(tmp_path_factory.mktemp("own") / "ajuste")
    wrong = pairs_file(folder / "pairs.jsonl")
    said = ajuste(folder, "data", "add", "mine", "pairs.jsonl", "--use").stdout
    assert "layout transcripts, recognised" in said and "params.yaml: validate.preferences.set: mine" in said
    params = folder / "params.yaml"
    text = params.read_text()
    assert text.count("sample: 0.15") == 1
    params.write_text(text.replace("sample: 0.15", "sample: 1.0"))
    ajuste(folder, "run", TARGET)
    return folder, wrong


@pytest.mark.slow
def test_each_broken_row_is_in_quarantine_and_the_others_make_a_registered_version(project) -> None:
    folder, wrong = project
    rows = pq.read_table(folder / "artifacts/validated/preferences/quarantine.parquet").to_pylist()
    assert {row["location"]: row["reasons"] for row in rows} == {
        f"data/mine/pairs.jsonl:{line}": [reason] for line, reason in wrong.items()
    }
    versions = json.loads(run(folder, sys.executable, "-c", VERSIONS).stdout.strip().splitlines()[-1])
    (dpo,) = [version for version in versions if version["method"] == "dpo"]
    (sft,) = [version for version in versions if version["method"] == "sft"]
    assert dpo["base_version"] == f"assistant/{sft['version']}" and float(dpo["proof.max_logit_difference"]) <= 1e-3
    assert float(dpo["test.loss"]) > 0 and "validation.gold_gain" in dpo and "ranked.second_gain" in dpo


@pytest.mark.slow
def test_the_study_registers_rejection_sampling_and_ends_with_the_same_bytes_after_a_kill(project) -> None:
    folder, _ = project
    params = folder / "studies/best-of-n/params.yaml"
    text = params.read_text()
    for old, new in (("samples: 16", "samples: 4"), ("train: 256", "train: 16"), ("n: 16 ", "n: 4 ")):
        assert old in text
        text = text.replace(old, new)
    params.write_text(text)
    done = ajuste(folder, "study", "best-of-n")
    assert "registered assistant/" in done.stdout and "registered assistant-adapter/" in done.stdout
    versions = json.loads(run(folder, sys.executable, "-c", VERSIONS).stdout.strip().splitlines()[-1])
    (made,) = [version for version in versions if version["method"] == "rejection"]
    assert made["n"] == "4" and int(made["samples"]) == 4 * (16 + 8) and "ranked.kl" in made
    assert "| best of 4 |" in (folder / "docs/measured/best-of-n.md").read_text()
    lock = folder / "studies/best-of-n/dvc.lock"
    expected = yaml.safe_load(lock.read_text())  # a run that goes on writes its stages in another order
    lock.unlink()  # from the start again
    kill_when(folder, ("study", "best-of-n"), lambda: loaded(folder, "studies.best-of-n.rejection"))
    assert not (folder / "artifacts/adapters/rejection").exists()
    ajuste(folder, "study", "best-of-n")
    assert yaml.safe_load(lock.read_text()) == expected
    assert (folder / "artifacts/adapters/rejection/ajuste.json").is_file()
