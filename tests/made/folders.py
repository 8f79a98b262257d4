"""Folders that a stage wrote: their bytes, and that they name nothing of this machine."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the files."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_names_nothing_local(folder: Path, *places: Path) -> None:
    """No JSON file names one of the places, a version of transformers, or how it was loaded."""
    for file in folder.glob("*.json"):
        text = file.read_text()
        assert not [place for place in places if str(place) in text], file.name
        assert "transformers_version" not in text and "local_files_only" not in text, file.name
