"""Imports go one way, and each tool has one owner. The rooms are described in the README."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOMS, ROOT, modules, ours, packages

ALLOWED = {
    "flows": {"flows", "tracking", "tasks"},
    "tracking": {"tracking", "tasks", "learning"},
    "tasks": {"tasks", "learning"},
    "learning": {"learning"},
    "serving": {"serving", "tracking", "learning"},
    "cli": set(ROOMS),
}
EVERY = [path for room in ROOMS for path in modules(room)]
TRAINING = ["base", "features", "classify", "merge", "evaluate"]
# What a training machine has. psutil comes with accelerate; numpy and safetensors with transformers.
TRAINING_MACHINE = (
    "torch transformers peft accelerate pydantic yaml pyarrow numpy safetensors psutil huggingface_hub tokenizers"
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
        ("great_expectations", lambda path: path == Path("tasks/validate.py") or path.match("tasks/_*.py")),
        ("dvc", lambda path: path == Path("tracking/versions.py")),
        ("fastapi", lambda path: path.parts[0] == "serving"),
        ("typer", lambda path: path.parts[0] == "cli"),
    ],
)
def test_one_owner(package: str, owners) -> None:
    assert [str(path) for path in EVERY if package in packages(path) and not owners(path)] == []


def test_learning_imports_tensors_and_nothing_else() -> None:
    allowed = {"torch", "transformers", "peft", "safetensors", "numpy", "accelerate", "learning"}
    allowed |= set(sys.stdlib_module_names)
    assert {
        str(path): sorted(packages(path) - allowed) for path in modules("learning") if packages(path) - allowed
    } == {}


def _commands(path: Path) -> set[str]:
    """The programs that stand first in a list or tuple of words: what a subprocess is started with."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.List | ast.Tuple) and node.elts and isinstance(node.elts[0], ast.Constant):
            found.add(node.elts[0].value)
    return found


def test_only_tracking_calls_dvc_and_git() -> None:
    assert any("dvc" in _commands(path) or "git" in _commands(path) for path in modules("tracking"))
    for path in EVERY:
        if path.parts[0] != "tracking":
            assert "dvc" not in _commands(path), f"{path} starts dvc: tracking/versions.py does that"
            # home() asks git where the main checkout stands
            assert "git" not in _commands(path) or path == Path("tasks/_stage.py"), f"{path} starts git"


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
base = {name.split(".")[0] for name in sys.modules}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        importer = sys._getframe(1)
        while importer and importer.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
            importer = importer.f_back
        if importer and importer.f_globals.get("__name__", "").split(".")[0] in ("learning", "tasks", "__main__"):
            if name.split(".")[0] not in known:
                raise ModuleNotFoundError(f"{importer.f_globals['__name__']} imports {name}")
        if name.split(".")[0] in ("prefect", "mlflow", "dvc", "great_expectations"):
            raise ModuleNotFoundError(f"{name} is not installed on a training machine")
sys.meta_path.insert(0, Blocker())
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
    assert _import_with_only("tasks._stage").returncode == 0
    for name in ("tracking.runs", "flows.pipeline"):
        assert _import_with_only(name).returncode != 0


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, cli.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
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
