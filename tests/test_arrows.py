"""Imports go one way, and each tool has one owner. The rooms are described in the README."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.imports import ROOMS, ROOT, modules, ours, packages

ALLOWED = {
    "flows": {"flows", "tracking", "tasks"},
    "tracking": {"tracking", "tasks", "learning"},
    "tasks": {"tasks", "learning"},
    "learning": {"learning"},
    "serving": {"serving", "tracking", "learning"},
    "cli": set(ROOMS),
}
PROJECT = Path("ajuste/tracking/project")
EVERY = [path for room in ROOMS for path in modules(room)]
TRAINING = ["base", "features", "classify", "merge", "evaluate"]
# What a training machine has. psutil comes with accelerate; numpy and safetensors with transformers.
TRAINING_MACHINE = (
    "torch transformers peft accelerate pydantic yaml pyarrow sklearn numpy psutil "
    "safetensors huggingface_hub tokenizers"
)


def test_the_rooms_are_not_empty() -> None:
    assert all(modules(room) for room in ROOMS)


@pytest.mark.parametrize("path", EVERY, ids=str)
def test_arrows(path: Path) -> None:
    wrong = {room for room in packages(path) & set(ROOMS) if room not in ALLOWED[path.parts[0]]}
    assert not wrong, f"{path} imports {sorted(wrong)}; {path.parts[0]} may import {sorted(ALLOWED[path.parts[0]])}"
    assert "tests" not in packages(path)


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("prefect", lambda path: path.parts[0] == "flows"),
        ("mlflow", lambda path: path.parts[0] == "tracking"),
        ("great_expectations", lambda path: path == Path("tasks/validate/reviews.py") or path.match("tasks/_*.py")),
        ("dvc", lambda path: path.parent == PROJECT),
        ("fastapi", lambda path: path.parts[0] == "serving"),
        ("typer", lambda path: path.parts[0] == "cli"),
    ],
)
def test_one_owner(package: str, owners) -> None:
    assert [str(path) for path in EVERY if package in packages(path) and not owners(path)] == []


def test_learning_imports_tensors_and_nothing_else() -> None:
    # jinja2 comes with torch; its errors are what a chat template raises
    allowed = {"torch", "transformers", "peft", "safetensors", "numpy", "accelerate", "jinja2", "learning"}
    allowed |= set(sys.stdlib_module_names)
    assert {
        str(path): sorted(packages(path) - allowed) for path in modules("learning") if packages(path) - allowed
    } == {}


def _commands(path: Path) -> set[str]:
    """The programs that a subprocess is started with: words that stand first in a list or tuple, or after "-m"."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.List | ast.Tuple):
            words = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
            found.update(word for before, word in zip(["-m", *words], words, strict=False) if before == "-m")
    return found


def test_one_room_calls_dvc_and_git() -> None:
    assert "dvc" in _commands(PROJECT / "dvc.py") and "git" in _commands(PROJECT / "git.py")
    for path in EVERY:
        assert "dvc" not in _commands(path) or path == PROJECT / "dvc.py", f"{path} starts dvc"
        # home() asks git where the main checkout stands
        home = path == Path("ajuste/core/home.py")
        assert "git" not in _commands(path) or path.parent == PROJECT or home, f"{path} starts git"


def test_no_pickles_and_no_code_from_models() -> None:
    for path in EVERY:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, options = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            assert called not in ("pickle.load", "pickle.loads", "joblib.load"), f"{path}: {called}"
            if called == "torch.load":
                assert ast.unparse(options.get("weights_only", ast.Constant(None))) == "True", f"{path}: torch.load"
            if "trust_remote_code" in options:
                assert ast.unparse(options["trust_remote_code"]) == "False", f"{path}: {called}"


IMPORT_WITH_ONLY = """
import importlib, sys

known = set(sys.stdlib_module_names) | {"learning", "tasks"} | set(sys.argv[1].split())
absent = {"prefect", "mlflow", "dvc", "great_expectations"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        package, importer = name.split(".")[0], sys._getframe(1)
        while importer and "importlib" in importer.f_globals.get("__name__", ""):
            importer = importer.f_back
        by = importer.f_globals.get("__name__", "") if importer else ""
        ours = by.split(".")[0] in ("learning", "tasks", "__main__")
        if package in absent or (ours and package not in known):
            if ours:
                print(f"{by} imports {name}, which a training machine does not have", file=sys.stderr)
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def _import_with_only(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITH_ONLY, TRAINING_MACHINE, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_training_imports_on_a_machine_that_has_only_what_training_needs() -> None:
    names = [".".join(path.with_suffix("").parts) for path in modules("learning") if path.stem != "__init__"]
    done = _import_with_only(*names, *(f"tasks.{verb}" for verb in TRAINING))
    assert done.returncode == 0, done.stderr[-1500:]


def test_the_blocker_blocks() -> None:
    assert _import_with_only("ajuste.core.stage").returncode == 0
    for name in ("ajuste.tracking.runs.runs", "flows.pipeline"):
        assert _import_with_only(name).returncode != 0


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, ajuste.cli.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "peft", "mlflow", "prefect", "great_expectations", "datasets", "pandas", "dvc"}
    assert heavy & set(done.stdout.split()) == set()


def test_no_import_cycles_between_files() -> None:
    state: dict[Path, str] = {}

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert state.get(path) != "open", " -> ".join(map(str, [*above[above.index(path) :], path]))
        if state.get(path) is None:
            state[path] = "open"
            for other in sorted(ours(path)):
                visit(other, (*above, path))
            state[path] = "done"

    for path in EVERY:
        visit(path, ())
