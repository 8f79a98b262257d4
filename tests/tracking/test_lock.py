"""What reads dvc.yaml and dvc.lock: the right answer, and each file parsed once however often it is asked."""

from pathlib import Path

import pytest

from ajuste.core import params
from ajuste.tracking.project import lock

DVC_YAML = """\
stages:
  make:
    cmd: make
    deps: ['data/${set}']
    outs: [artifacts/made]
  use:
    cmd: use
    deps: [artifacts/made/part, use.py]
    outs: [artifacts/used: {cache: false}]
  near:
    cmd: near
    deps: [artifacts/made2, artifacts/used]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("set: mine\n")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    return tmp_path


def test_parents_are_the_stages_whose_outs_are_read(project: Path) -> None:
    assert {name: lock.parents_of(name) for name in ("make", "use", "near")} == {
        "make": set(), "use": {"make"}, "near": {"use"},
    }  # fmt: skip


def test_a_changed_file_is_read_anew(project: Path) -> None:
    before = lock.inputs_digest()
    assert lock.parents_of("near") == {"use"}
    moved = DVC_YAML.replace("artifacts/made2", "artifacts/made").replace("cmd: near", "cmd: far")
    (project / "dvc.yaml").write_text(moved)
    assert lock.parents_of("near") == {"make", "use"} and lock.inputs_digest() != before
    (project / "dvc.yaml").write_text(DVC_YAML.replace("'data/${set}'", "'artifacts/${set}'"))
    (project / "params.yaml").write_text("set: used\n")
    assert lock.parents_of("make") == {"use"}


def test_unchanged_files_are_parsed_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.inputs_digest()
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {make: {cmd: make}}\n")
    assert lock.stages() == {"make": {"cmd": "make"}}

    def parse(text: str) -> dict:
        raise AssertionError("parsed again")

    monkeypatch.setattr(params, "parse_yaml", parse)
    monkeypatch.setattr(lock, "parse_yaml", parse)
    assert lock.parents_of("use") == {"make"}
    lock.stages()["make"]["cmd"] = "spoilt"  # what a caller does with its copy is nobody else's
    assert lock.stages() == {"make": {"cmd": "make"}}
