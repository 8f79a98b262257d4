"""Which files of this project a file imports, read from the source without running it.

What a stage imports is what its result depends on: the deps of dvc.yaml are written from this, the tests of the arrows
walk it, and a logged model carries the files that it needs.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("ajuste", "flows", "infra", "studies", "tasks")


@cache
def imports(path: Path) -> frozenset[str]:
    """The dotted names that a file imports, at its top or inside a function; `from a import b` gives a and a.b.

    What stands under `if TYPE_CHECKING:` is imported by nobody who runs the file, and does not count.
    """
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse((ROOT / path).read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
        todo.extend(ast.iter_child_nodes(node))
    return frozenset(names)


def modules(room: str) -> list[Path]:
    """The Python files of a room, relative to the project."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py"))


def packages(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def ours(path: Path) -> set[Path]:
    """The files of this project that a file imports directly, but for the empty __init__.py; relative to the root."""
    found = set()
    for name in imports(path):
        if name.split(".")[0] in ROOMS:
            candidate = Path(*name.split(".")).with_suffix(".py")
            if (ROOT / candidate).is_file():
                found.add(candidate)
    return found


def closure(path: Path) -> set[Path]:
    """The file itself and all files of this project that it imports, directly or not."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(ours(current))
    return seen
