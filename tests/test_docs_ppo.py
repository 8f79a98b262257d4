"""docs/ppo.md's table of forty details: complete, and every file and test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/ppo.md"


def rows() -> dict[int, list[str]]:
    """The cells of each numbered row of the page."""
    found = re.findall(r"^\| (\d+) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(number): [cell.strip() for cell in rest.split(" | ")] for number, rest in found}


def functions_of(file: Path) -> set[str]:
    """Names of the test functions that a file defines, as Python reads it."""
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_there_are_forty_rows_of_four_cells_each_with_a_test() -> None:
    table = rows()
    assert sorted(table) == list(range(1, 41))
    for number, cells in table.items():
        assert len(cells) == 4 and all(cells), number
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", cells[3]), number


def test_every_test_and_file_that_the_table_names_exists() -> None:
    for number, cells in rows().items():
        named = re.findall(r"`([^`]+)`", cells[3])
        assert len(named) == cells[3].count("::"), f"row {number}: {cells[3]}"
        for path, test in (name.split("::") for name in named):
            assert (ROOT / path).is_file(), f"row {number}: {path}"
            assert test.startswith("test_") and test in functions_of(ROOT / path), f"row {number}: {path}::{test}"
        (file,) = re.findall(r"`([^`]+)`", cells[2])
        assert (ROOT / file).is_file(), f"row {number}: {file}"


def test_a_missing_test_would_be_noticed() -> None:
    assert "test_rows_that_never_were" not in functions_of(Path(__file__))
    assert "test_a_missing_test_would_be_noticed" in functions_of(Path(__file__))
