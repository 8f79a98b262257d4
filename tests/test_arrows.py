"""Imports go one way, each tool has one owner, and files stay short. docs/decisions.md describes the rooms."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ajuste.core.imports import ROOMS, ROOT, imports, modules, ours, packages

HOW = {"learning", "core"}
BODIES = {"rows", "models", "judging"} | HOW
ALLOWED = {
    "core": {"core"},
    "learning": {"learning"},
    "models": {"models"} | HOW,
    "rows": {"rows"} | HOW,
    "judging": BODIES,
    "tracking": {"tracking"} | BODIES,
    "serving": {"serving", "tracking", "models", "rows"} | HOW,  # of rows the filters of texts alone: see below
    "tasks": {"tasks"} | BODIES,
    "flows": {"flows", "tracking", "judging", "core"},
    "infra": {"infra", "tracking", "core", "cli"},
    "studies": {"studies", "tasks"} | BODIES,
}
ALLOWED["cli"] = {"cli", "flows", "infra"} | set().union(*(ALLOWED[room] for room in ("tasks", "serving", "tracking")))
EVERY = [path for room in ROOMS for path in modules(room)]
CODE = [path for path in EVERY if path.name != "__init__.py"]
PROJECT = Path("ajuste/tracking/project")
TRAINING = {
    "base", "features", "classify", "instruct", "reward", "gold", "ppo", "grpo", "rloo", "rl", "supervised", "merge",
    "evaluate", "forgetting",
}  # fmt: skip
# Of a training machine; psutil comes with accelerate; numpy and safetensors with transformers; scipy with scikit-learn
TRAINING_MACHINE = (
    "torch transformers peft accelerate pydantic yaml pyarrow sklearn scipy numpy psutil "
    "safetensors huggingface_hub tokenizers jinja2 bitsandbytes gguf"
)


def room_of(path: Path) -> str:
    """core of ajuste/core/home.py, tasks of tasks/gold.py."""
    return path.parts[1 if path.parts[0] == "ajuste" else 0]


def rooms(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    found = set()
    for first, *rest in (name.split(".") for name in imports(path)):
        if first == "ajuste":
            found.update(rest[:1])
        elif first in {*ROOMS, "tests", "benchmarks"}:
            found.add(first)
    return found


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def test_the_rooms_are_not_empty() -> None:
    assert all(modules(room) for room in ROOMS)
    assert {room_of(path) for path in CODE} == set(ALLOWED)


@pytest.mark.parametrize("path", CODE, ids=str)
def test_arrows(path: Path) -> None:
    allowed = ALLOWED[room_of(path)]
    assert rooms(path) <= allowed, f"{path} imports {sorted(rooms(path) - allowed)}; allowed are {sorted(allowed)}"


def test_serving_sees_of_rows_the_filters_alone() -> None:
    seen = {one for path in modules("ajuste/serving") for one in ours(path) if room_of(one) == "rows"}
    assert seen and {one.parent for one in seen} == {Path("ajuste/rows/filters")}


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("prefect", ["flows", "infra"]),
        ("mlflow", ["ajuste/tracking"]),
        ("great_expectations", ["ajuste/rows/checks"]),
        ("dvc", ["ajuste/tracking/project"]),
        ("fastapi", ["ajuste/serving"]),
        ("typer", ["ajuste/cli"]),
    ],
)
def test_one_owner(package: str, owners: list[str]) -> None:
    users = [path for path in EVERY if package in packages(path)]
    assert [str(path) for path in users if not any(path.is_relative_to(owner) for owner in owners)] == []
    assert users or package == "dvc"  # which is started as a program


def test_learning_imports_tensors_and_nothing_else() -> None:
    # jinja2 comes with torch; its errors are what a chat template raises
    allowed = {"torch", "transformers", "peft", "safetensors", "numpy", "accelerate", "jinja2", "scipy", "ajuste"}
    allowed |= set(sys.stdlib_module_names)
    assert {
        str(path): sorted(packages(path) - allowed) for path in modules("ajuste/learning") if packages(path) - allowed
    } == {}


def commands(path: Path) -> set[str]:
    """The programs that a subprocess is started with: words that stand first in a list or tuple, or after "-m"."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.List | ast.Tuple):
            words = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
            found.update(word for before, word in zip(["-m", *words], words, strict=False) if before == "-m")
    return found


@pytest.mark.parametrize("program", ["dvc", "git"])
def test_only_one_room_starts_dvc_and_git(program: str) -> None:
    users = {path for path in EVERY if program in commands(path)}
    assert any(path.is_relative_to(PROJECT) for path in users)
    # home() asks git where the main checkout stands, and may not ask a room above it
    outside = {path for path in users if not path.is_relative_to(PROJECT)} - {Path("ajuste/core/home.py")}
    assert sorted(map(str, outside)) == [], f"{program} is started outside of {PROJECT}"


def test_what_remembers_computes_nothing() -> None:
    # what MLflow copies beside a version's weights and runs where the model is loaded
    carried = Path("ajuste/tracking/registry/pyfuncs")
    users = [path for path in modules("ajuste/tracking") if "torch" in packages(path) and path.parent != carried]
    assert [str(path) for path in users] == []


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

known = set(sys.stdlib_module_names) | {"ajuste", "tasks"} | set(sys.argv[1].split())
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
        ours = by.split(".")[0] in ("ajuste", "tasks", "__main__")
        if package in absent or (ours and package not in known):
            if ours:
                print(f"{by} imports {name}, which a training machine does not have", file=sys.stderr)
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def import_with_only(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITH_ONLY, TRAINING_MACHINE, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_training_imports_on_a_machine_that_has_only_what_training_needs() -> None:
    stages = [path for path in modules("tasks") if path.with_suffix("").parts[1] in TRAINING]
    assert {path.with_suffix("").parts[1] for path in stages} == TRAINING
    whole = [path for room in ("core", "learning", "models") for path in modules(f"ajuste/{room}")]
    done = import_with_only(*(dotted(path) for path in whole + stages if path.stem != "__init__"))
    assert done.returncode == 0, done.stderr[-1500:]


def test_the_blocker_blocks() -> None:
    assert import_with_only("ajuste.core.stage").returncode == 0
    for name in ("ajuste.rows.checks.expectations", "ajuste.cli.main", "flows.pipeline"):
        assert import_with_only(name).returncode != 0


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


def test_no_folder_has_more_than_sixteen_modules() -> None:
    crowded = {str(folder): n for folder, n in Counter(path.parent for path in CODE).items() if n > 16}
    assert crowded == {}, "a folder of more than about fifteen files wants rooms"


def test_files_stay_short() -> None:
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {path: n for path, n in lines.items() if n > 400} == {}
    long = {path: n for path, n in lines.items() if n > 300}
    assert len(long) < 8, f"more than 300 lines: {long}"


def test_functions_stay_short() -> None:
    long = {}
    for path in CODE:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                long[f"{path}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}, "a function has at most 60 lines"
