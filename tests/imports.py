"""Which modules import which, read from the source without running it: for the tests of arrows and of dvc.yaml."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("cli", "flows", "learning", "serving", "tasks", "tracking")


def modules(room: str) -> list[Path]:
    """The Python files of a room, relative to the project."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py"))


@cache
def imports(path: Path) -> frozenset[str]:
    """The dotted names that a file imports, at its top or inside a function; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return frozenset(names)


def packages(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def ours(path: Path) -> set[Path]:
    """The files of this project that a file imports directly, but for the empty __init__.py."""
    found = set()
    for name in imports(path):
        if name.split(".")[0] in ROOMS:
            candidate = Path(*name.split(".")).with_suffix(".py")
            if (ROOT / candidate).is_file():
                found.add(candidate)
    return found


def closure(path: Path) -> set[Path]:
    """The file itself and all files of this project that it imports, directly or not."""
    seen, todo = set(), [path]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(ours(current))
    return seen
