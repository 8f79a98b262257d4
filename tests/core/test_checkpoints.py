"""A checkpoint counts only whole."""

from pathlib import Path

from ajuste.core.checkpoints import COMPLETE, is_complete, last_complete, seal


def make(parent: Path, step: int, sealed: bool = True) -> Path:
    folder = parent / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(200)))
    (folder / "inner/state").write_text(str(step))
    if sealed:
        seal(folder)
    return folder


def test_highest_whole_checkpoint_is_taken_by_number(tmp_path: Path) -> None:
    make(tmp_path, 9)
    best = make(tmp_path, 100)
    make(tmp_path, 200, sealed=False)
    assert last_complete(tmp_path) == best
    assert not (tmp_path / "checkpoint-200").exists()


def test_any_changed_lost_or_added_byte_spoils_it(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    assert is_complete(folder)
    content = (folder / "weights").read_bytes()
    (folder / "weights").write_bytes(content[:-1] + b"\x00")
    assert not is_complete(folder)
    (folder / "weights").write_bytes(content)
    assert is_complete(folder)
    (folder / "extra").touch()
    assert not is_complete(folder)
    (folder / "extra").unlink()
    (folder / "inner/state").unlink()
    assert not is_complete(folder)
    (folder / COMPLETE).write_text("{half")
    assert not is_complete(folder)
    assert last_complete(tmp_path) is None
