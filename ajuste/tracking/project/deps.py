"""The code that each stage of a dvc.yaml depends on, written from the imports: `make deps`.

    cmd: python -m tasks.merge.classify        deps: the data, as written by hand, then every file that
                                               tasks/merge/classify.py imports, directly or not

DVC hashes the files that `deps` names and no imports, and takes no variable that is a list, so the paths stand there
one by one; nobody keeps them by hand. All else of the file stays as it is, comments too.
"""

import re
import sys
from pathlib import Path

from ajuste.core.imports import ROOT, closure

STAGE = re.compile(r"^  ([\w-]+):\s*$")
MODULE = re.compile(r"^    cmd: python -m ([\w.-]+)")
CODE = re.compile(r"^      - \S+\.py$")


def with_deps(text: str) -> str:
    """The text of a dvc.yaml with the code deps of every stage made anew."""
    written: list[str] = []
    module = None  # of the stage that the line belongs to
    inside = False  # of its list of deps
    for line in text.split("\n"):
        if STAGE.match(line):
            module = None
        elif found := MODULE.match(line):
            module = found[1]
        if inside and not line.startswith("      "):
            written += [f"      - {path}" for path in code_of(module)]
            inside = False
        if inside and CODE.match(line):
            continue
        inside = inside or (line == "    deps:" and module is not None)
        written.append(line)
    return "\n".join(written)


def code_of(module: str) -> list[str]:
    """The files that a module needs, itself included, sorted."""
    return sorted(path.as_posix() for path in closure(Path(*module.split(".")).with_suffix(".py")))


def files() -> list[Path]:
    """Every dvc.yaml of the project: of the default run and of the studies."""
    return [ROOT / "dvc.yaml", *sorted((ROOT / "studies").glob("*/dvc.yaml"))]


def main() -> None:
    for path in files():
        before = path.read_text(encoding="utf-8")
        after = with_deps(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: deps made anew", file=sys.stderr)


if __name__ == "__main__":
    main()
