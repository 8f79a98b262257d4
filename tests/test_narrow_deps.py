"""What a stage imports is what it needs: how many files a stage depends on, and which stages an edit makes stale.

A careless import makes the results of stages stale that never run the new code; here it is noticed. The table is in
docs/decisions.md.
"""

from functools import cache
from pathlib import Path

import pytest
import yaml

from ajuste.core.imports import ROOT, closure

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
FILES = {name: Path(*stage["cmd"].split()[2].split(".")).with_suffix(".py") for name, stage in STAGES.items()}
# files at most, beside those of ajuste/core/, which start every stage
MOST = {"evaluate_classify": 9, "merge_classify": 9, "validate_reviews": 17, "encode_reviews": 4, "gold": 15,
        "forgetting_base": 29, "forgetting_instruct": 29}  # fmt: skip
# an edit of the file -> the stages that it makes stale
STALE = {
    "ajuste/rows/layouts/preferences.py": {"validate_instructions", "validate_preferences"},
    "ajuste/rows/layouts/instructions.py": {"validate_instructions", "validate_preferences"},
    "ajuste/rows/sets/preferences.py": {"validate_instructions", "validate_preferences"},
    "ajuste/rows/checks/reviews.py": {"validate_reviews"},
    "ajuste/rows/checks/instructions.py": {"validate_instructions"},
    "ajuste/models/classifier.py": {"features_reviews", "classify_frozen", "classify_full", "classify_lora",
                                    "merge_classify", "evaluate_classify", "evaluate_instruct", "gold", "ppo",
                                    "evaluate_ppo", "dpo", "evaluate_dpo", "alignment_base", "alignment_instruct",
                                    "alignment_ppo", "alignment_dpo"},
    "ajuste/judging/words.py": set(),
    "ajuste/judging/spans.py": set(),
    "ajuste/rows/sets/words.py": set(),
    "ajuste/rows/sets/questions.py": set(),
}  # fmt: skip


@cache
def code_of(stage: str) -> set[Path]:
    return closure(FILES[stage])


@pytest.mark.parametrize("stage", MOST)
def test_a_stage_depends_on_few_files(stage: str) -> None:
    found = sorted(str(path) for path in code_of(stage) if path.parts[:2] != ("ajuste", "core"))
    assert len(found) <= MOST[stage], f"{stage} depends on {len(found)} files, which of them does it not need? {found}"


@pytest.mark.parametrize("file", STALE)
def test_an_edit_makes_no_other_stage_stale(file: str) -> None:
    assert (ROOT / file).is_file()
    assert {stage for stage in STAGES if Path(file) in code_of(stage)} <= STALE[file]


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another_stages_module(stage: str) -> None:
    assert code_of(stage) & {file for other, file in FILES.items() if other != stage} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_knows_every_kind_of_set_but_those_that_look_for_shared_texts(stage: str) -> None:
    kinds = {path.stem for path in code_of(stage) if path.parent == Path("ajuste/rows/sets")} - {"base", "__init__"}
    allowed = {"validate_preferences": {"classification", "instructions", "preferences", "control"},
               "validate_instructions": {"classification", "instructions", "preferences", "control"},
               "validate_reviews": {"classification"}}  # fmt: skip
    assert kinds <= allowed.get(stage, {"control"})
