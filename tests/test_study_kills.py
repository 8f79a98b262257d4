"""`kill -9` in every stage of the studies of other methods, then the study again: the same bytes.

Preset tiny, its default run made once; the studies are cut to a few rows, for they are run twice.
"""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.made.killed import kill_when, loaded
from tests.made.projects import ajuste, tiny_project

CUTS = {  # study: what is replaced in its params.yaml
    "grpo": [],
    "rules": [("seeds: [0, 1, 2]", "seeds: [0]"), ("updates: 24", "updates: 2"), ("prompts: null", "prompts: 16"),
              ("max_new_tokens: 48", "max_new_tokens: 8")],
    "rlaif": [("prompts: 640", "prompts: 24"), ("pairs: null", "pairs: 16"), ("new_tokens: 96", "new_tokens: 4"),
              ("min_share_of_ceiling: 0.8", "min_share_of_ceiling: 0.0"), ("rows: 384", "rows: 16")],
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_project(tmp_path_factory.mktemp("studies") / "ajuste")
    ajuste(folder, "run")
    return folder


def commands(folder: Path, study: str) -> list[tuple[str, ...]]:
    """(module, arguments) of every stage of a study, one of each matrix, but for those that compute nothing."""
    found = []
    for entry in yaml.safe_load((folder / f"studies/{study}/dvc.yaml").read_text())["stages"].values():
        first = {name: values[-1] for name, values in entry.get("matrix", {}).items()}
        words = entry["cmd"].split()[2:]
        found.append(tuple(str(first[word[len("${item."):-1]]) if word.startswith("${") else word for word in words))
    return [one for one in found if not one[0].endswith((".draw", ".rows", ".curve"))]


@pytest.mark.slow
@pytest.mark.parametrize("study", CUTS)
def test_a_study_that_is_killed_in_each_stage_ends_as_an_undisturbed_one(project: Path, study: str) -> None:
    params = project / f"studies/{study}/params.yaml"
    text = params.read_text()
    for old, new in CUTS[study]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    params.write_text(text)
    stages = commands(project, study)
    if study == "rules":  # the matrix names seeds that the params no longer have
        described = project / "studies/rules/dvc.yaml"
        described.write_text(described.read_text().replace("[0, 1, 2]", "[0]"))
        stages = commands(project, study)
    ajuste(project, "study", study)
    lock = project / f"studies/{study}/dvc.lock"
    expected = yaml.safe_load(lock.read_text())  # a run that goes on writes its stages in another order
    lock.unlink()
    shutil.rmtree(project / ".dvc/cache/runs", ignore_errors=True)
    for module, *arguments in stages:
        kill_when(project, ("study", study), lambda at=(module, *arguments): loaded(project, *at))
    ajuste(project, "study", study)
    assert yaml.safe_load(lock.read_text()) == expected
