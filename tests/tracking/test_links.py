"""A file a second time: by its blocks, by a second name of the cache's file, or by a copy. What prune then counts."""

import os
from pathlib import Path

import pytest

from ajuste.core.stages import LARGE, md5_of
from ajuste.tracking.project import links
from ajuste.tracking.pruning import registry_plan as rules


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file in a folder, and DVC's cache with the same bytes in another one."""
    monkeypatch.setattr("ajuste.core.stages.home", lambda: tmp_path)
    monkeypatch.setattr(links, "_cache", lambda: tmp_path / "cache")
    (tmp_path / "model").mkdir()
    source = tmp_path / "model" / "weights"
    source.write_bytes(os.urandom(LARGE))
    md5 = md5_of(source)
    place = tmp_path / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True)
    place.write_bytes(source.read_bytes())
    (tmp_path / "model" / "card.json").write_text("{}")
    return place


def test_a_large_file_is_a_second_name_of_the_caches(tmp_path: Path, cached: Path, monkeypatch) -> None:
    monkeypatch.setattr(links, "_reflinked", lambda source, target: False)
    links.copied(tmp_path / "model", tmp_path / "out")
    weights = tmp_path / "out" / "weights"
    assert weights.stat().st_ino == cached.stat().st_ino and (tmp_path / "out/card.json").read_text() == "{}"
    assert (tmp_path / "out/card.json").stat().st_nlink == 1
    before = weights.read_bytes()
    with (tmp_path / "model/weights").open("r+b") as file:  # the workspace's is a file of its own
        file.write(b"changed")
    assert weights.read_bytes() == before


def test_what_no_cache_holds_or_another_disk_is_copied(tmp_path: Path, cached: Path, monkeypatch) -> None:
    monkeypatch.setattr(links, "_reflinked", lambda source, target: False)
    source = tmp_path / "model" / "weights"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
        assert links.place(source, tmp_path / "one") == "copy"
    cached.write_bytes(b"half")  # a cache that a kill left so
    assert links.place(source, tmp_path / "two") == "copy"
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == source.read_bytes()


def test_a_reflink_where_the_file_system_can(tmp_path: Path, cached: Path) -> None:
    source = tmp_path / "model" / "weights"
    how = links.place(source, tmp_path / "out")
    assert how in ("reflink", "hard link") and (tmp_path / "out").read_bytes() == source.read_bytes()


def test_a_file_of_two_names_gives_its_bytes_back_with_the_last(tmp_path: Path) -> None:
    for name in ("version", "cache", "kept"):
        (tmp_path / name).mkdir()
    (tmp_path / "version" / "a").write_bytes(b"x" * 1000)
    os.link(tmp_path / "version" / "a", tmp_path / "cache" / "a")
    (tmp_path / "version" / "b").write_bytes(b"x" * 100)
    os.link(tmp_path / "version" / "b", tmp_path / "kept" / "b")
    (tmp_path / "version" / "c").write_bytes(b"x" * 10)
    version, cache = tmp_path / "version", tmp_path / "cache" / "a"
    assert rules.folder_size(version) == 10 and rules.shared_size([version]) == 0
    assert rules.shared_size([version, cache]) == 1000, "b stays: something that is kept names it"
    assert rules.shared_size([version, cache, tmp_path / "none"]) == 1000
