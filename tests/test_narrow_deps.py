"""What a stage imports is what it needs: how many files each stage depends on, and which edit makes what stale.

A careless import makes the results of stages stale that never run the new code; here it is noticed. The table is in
docs/decisions.md.
"""

from pathlib import Path

import pytest
import yaml

from ajuste.core.imports import ROOT, closure
from ajuste.core.stages import module_of

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
# code deps at most, the five of ajuste/core/ that start every stage among them
MOST = {"evaluate_classify": 13, "merge_classify": 12, "validate_reviews": 18, "encode_reviews": 9, "gold": 18,
        "forgetting_base": 25, "forgetting_instruct": 25}  # fmt: skip
# an edit of the file -> the stages that it makes stale
STALE = {
    "ajuste/rows/layouts/preferences.py": {"validate_preferences"},
    "ajuste/rows/layouts/instructions.py": {"validate_instructions", "validate_preferences"},
    "ajuste/rows/sets/preferences.py": {"validate_preferences"},
    "ajuste/rows/checks/reviews.py": {"validate_reviews"},
    "ajuste/rows/checks/instructions.py": {"validate_instructions"},
    "ajuste/models/classifier.py": {"features_reviews", "classify_frozen", "classify_full", "classify_lora",
                                    "merge_classify", "evaluate_classify", "evaluate_instruct", "gold", "ppo",
                                    "evaluate_ppo"},
    "ajuste/judging/words.py": set(),
    "ajuste/judging/spans.py": set(),
    "ajuste/rows/sets/words.py": set(),
    "ajuste/rows/sets/questions.py": set(),
}  # fmt: skip


def code_of(stage: str) -> set[Path]:
    return closure(Path(*module_of(stage).split(".")).with_suffix(".py"))


@pytest.mark.parametrize("stage", MOST)
def test_a_stage_depends_on_few_files(stage: str) -> None:
    found = sorted(map(str, code_of(stage)))
    assert len(found) <= MOST[stage], f"{stage} depends on {len(found)} files, which of them does it not need? {found}"


@pytest.mark.parametrize("file", STALE)
def test_an_edit_makes_no_other_stage_stale(file: str) -> None:
    assert (ROOT / file).is_file()
    assert {stage for stage in STAGES if Path(file) in code_of(stage)} <= STALE[file]


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another_stages_module(stage: str) -> None:
    others = {Path(*module_of(other).split(".")).with_suffix(".py") for other in STAGES if other != stage}
    assert code_of(stage) & others == set()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_knows_every_kind_of_set_but_the_one_that_looks_for_shared_texts(stage: str) -> None:
    kinds = {path.stem for path in code_of(stage) if path.parent == Path("ajuste/rows/sets")} - {"base", "__init__"}
    allowed = {"validate_preferences": {"classification", "instructions", "preferences", "control"},
               "validate_instructions": {"classification", "instructions", "control"},
               "validate_reviews": {"classification"}}  # fmt: skip
    assert kinds <= allowed.get(stage, {"control"})
