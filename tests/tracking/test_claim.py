"""What a registered version claims, and what is found to be untrue of it before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.again import claim as again_claim
from ajuste.tracking.again import hardware
from ajuste.tracking.again.claim import artefact_differences, claim_of
from ajuste.tracking.project import lock
from ajuste.tracking.registry import registry
from ajuste.tracking.runs import store

NAME = "reviews-classifier"


def lora() -> registry.Version:
    """The LoRA version, with the commit and data that the made project, which is no git checkout, cannot have."""
    number = next(v.version for v in registry.versions(NAME) if v.tags["strategy"] == "lora")
    found = registry.resolve(f"{NAME}/{number}")
    return replace(found, tags={**found.tags, "git_commit": "c" * 40, "dirty": "false", "data": "d" * 32 + ".dir"})


def test_a_version_claims_its_stage_and_what_that_needs(project: Path) -> None:
    claim = again_claim._of_version(lora())
    assert list(claim.lock) == ["encode_reviews", "classify_lora", "merge_classify"] and claim.wrong == []
    assert claim.target == "merge_classify" and claim.commit == "c" * 40 and claim.data == "d" * 32 + ".dir"
    assert claim.params == Path("params.yaml").read_text() and claim.notes == []
    assert claim.hardware == hardware.hardware("cpu")


def test_the_stages_that_one_needs_are_found_through_files_inside_of_outs() -> None:
    recorded = {
        "a": {"outs": [{"path": "x/a"}]}, "b": {"deps": [{"path": "x/a/part.json"}], "outs": [{"path": "x/b"}]},
        "c": {"deps": [{"path": "x/bc"}], "outs": [{"path": "x/c"}]}, "d": {"deps": [{"path": "x/b"}]},
    }  # fmt: skip
    assert list(lock.upstream(recorded, "d")) == ["a", "b", "d"] and list(lock.upstream(recorded, "c")) == ["c"]


def test_a_changed_byte_of_a_registered_file_is_named(project: Path) -> None:
    version = lora()
    assert artefact_differences(version) == []
    path = version.path / "model.safetensors"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
        (line,) = artefact_differences(version)
        assert "model.safetensors" in line and f"{NAME}/{version.version}" in line
        assert again_claim._of_version(version).wrong == [line]
    finally:
        path.write_bytes(before)
    (version.path / "more.txt").write_text("x")
    try:
        assert "one beside the weights" in artefact_differences(version)[0]  # no DVC cache here: the weights alone
    finally:
        (version.path / "more.txt").unlink()


def test_with_the_recorded_listing_each_file_is_named(project: Path, tmp_path: Path, monkeypatch) -> None:
    import json
    import shutil

    from ajuste.core.stages import md5_of

    version = lora()
    files = {file.relative_to(version.path).as_posix(): file for file in version.path.rglob("*") if file.is_file()}
    listing = json.dumps([{"md5": md5_of(file), "relpath": name} for name, file in files.items()]).encode()
    by_md5 = {md5_of(file): file for file in files.values()}
    monkeypatch.setattr(again_claim, "cached_bytes", lambda md5: listing)
    monkeypatch.setattr("ajuste.tracking.again.outs.cached", by_md5.get)
    changed = replace(version, path=Path(shutil.copytree(version.path, tmp_path / "copy")))
    content = bytearray((changed.path / "model.safetensors").read_bytes())
    content[300] ^= 1
    (changed.path / "model.safetensors").write_bytes(content)
    (changed.path / "ajuste.json").unlink()
    (changed.path / "more.txt").write_text("x")
    lines = artefact_differences(changed)
    assert [line.partition(" of ")[0] for line in lines] == [
        "registered file ajuste.json", "registered file model.safetensors", "registered file more.txt"]
    assert "from byte 300 on" in lines[1]


def test_a_record_that_was_changed_is_not_believed(project: Path) -> None:
    version = lora()
    other = replace(version, tags={**version.tags, "stage_key": "0" * 64})
    claim = again_claim._of_version(other)
    assert ["another stage key" in line for line in claim.wrong] == [True] and claim.hardware is None
    run = store.client().get_run(version.run_id)
    store.client().set_tag(version.run_id, "dvc.lock.sha256", "0" * 64)
    try:
        assert "is not the one that it recorded" in again_claim._of_version(version).wrong[0]
    finally:
        store.client().set_tag(version.run_id, "dvc.lock.sha256", run.data.tags["dvc.lock.sha256"])


def test_what_cannot_be_made_again_says_why(project: Path) -> None:
    version = lora()
    with pytest.raises(DataError, match="no git_commit, data"):
        again_claim._of_version(replace(version, tags={**version.tags, "git_commit": "", "data": ""}))
    with pytest.raises(DataError, match="has no dvc.lock any more"):
        again_claim._of_version(replace(version, run_id="0" * 32))
    with pytest.raises(UsageError, match="`nothing` is no git revision here, and no registered model `nothing`"):
        claim_of("nothing")
    assert "uncommitted" in again_claim._of_version(replace(version, tags={**version.tags, "dirty": "true"})).notes[0]


def test_other_packages_are_named() -> None:
    recorded = again_claim.facts.environment().replace("numpy==", "numpy==0.", 1) + "gone==1\n"
    (line,) = again_claim._packages(recorded)
    assert "numpy 0." in line and "gone 1 -> not here" in line


def test_the_kind_of_processor_and_what_narrows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.cpu_kind.cache_clear()
    plain = hardware.cpu_kind()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    hardware.cpu_kind.cache_clear()
    assert plain and hardware.cpu_kind() != plain and "ATEN_CPU_CAPABILITY=avx2" in hardware.cpu_kind()
    hardware.cpu_kind.cache_clear()


def test_the_run_of_a_stage_names_its_hardware(project: Path) -> None:
    run = store.client().get_run(lora().run_id)
    assert run.data.tags["ajuste.hardware"] == hardware.hardware("cpu")
    assert run.data.tags["ajuste.stage_key"] == lock.stage_key("merge_classify")
