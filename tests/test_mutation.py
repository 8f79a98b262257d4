"""benchmarks/mutation.py without mutmut: what it hands it, and what it makes of the answer."""

import ast
import tomllib
from pathlib import Path

import pytest

from ajuste.core.imports import ROOT
from benchmarks import mutation

DECORATED = '''
import torch
from contextlib import contextmanager


@torch.no_grad()
def twice(x):
    return x * 2


class Linear:
    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, g):
        return (
            g
        )

    @property
    def size(self):
        return 3

    @staticmethod
    def plain(x):
        return x

    @model_validator(mode="after")
    def check(self):
        return self
'''


def test_decorators_are_applied_below_their_functions() -> None:
    written = mutation.undecorated(DECORATED)
    tree = ast.parse(written)
    functions = {node.name: [ast.unparse(d) for d in node.decorator_list] for node in ast.walk(tree)
                 if isinstance(node, ast.FunctionDef)}  # fmt: skip
    assert functions == {"twice": [], "backward": ["staticmethod"], "size": [], "plain": ["staticmethod"],
                         "check": ["model_validator(mode='after')"]}  # fmt: skip
    said = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    assert sorted(said) == [
        "backward = staticmethod(once_differentiable(torch.amp.custom_bwd(device_type='cpu')(backward)))",
        "size = property(size)", "twice = torch.no_grad()(twice)",
    ]  # fmt: skip


@pytest.mark.parametrize("file", mutation.FILES)
def test_the_table_names_what_is_there_and_copies_mean_the_same(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    compile(mutation.undecorated(source), file, "exec")
    for test in mutation.FILES[file]:
        path, *name = test.split("::")
        text = Path(ROOT / path).read_text(encoding="utf-8")
        assert not name or f"def {name[0].split('[')[0]}(" in text, test


def test_a_survivor_is_told_by_its_lines_and_gets_the_first_reason_that_fits() -> None:
    diff = "--- a.py\n+++ a.py\n@@ -1,2 +1,2 @@\n def f(x):\n-    return x + 1\n+    return x - 1"
    assert mutation.changed(diff) == {"was": "return x + 1", "becomes": "return x - 1"}
    assert mutation.function("ajuste.a.x_f__mutmut_12") == "f"
    assert mutation.function("ajuste.a.xǁBetaǁupdate__mutmut_1") == "Beta.update"
    survivor = {"function": "f", **mutation.changed(diff)}
    reasons = [{"file": "b", "becomes": ".", "reason": "b"}, {"function": "^g", "becomes": ".", "reason": "g"},
               {"was": "x \\* 1", "becomes": ".", "reason": "times"}, {"becomes": "x - 1", "reason": "minus"},
               {"becomes": ".", "reason": "any"}]  # fmt: skip
    assert mutation.reason("ajuste/a.py", survivor, reasons) == "minus"
    assert mutation.reason("ajuste/a.py", survivor, reasons[:3]) is None


def test_the_reasons_are_sentences() -> None:
    entries = tomllib.loads(mutation.REASONS.read_text(encoding="utf-8"))["survivor"]
    assert entries and all(set(entry) <= {"file", "function", "was", "becomes", "reason"} for entry in entries)
    assert all(len(entry["reason"].split()) > 3 for entry in entries)


def test_the_working_folder_is_todays_code_and_a_measurement_goes_on_only_from_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kl, ppo = "ajuste/learning/rl/kl.py", "ajuste/learning/rl/ppo.py"
    folder = tmp_path / "work"
    assert not mutation.unchanged(folder, [kl])
    mutation.prepare(folder, [kl, ppo])
    mutation.configure(folder, [kl, ppo])
    assert (folder / kl).read_text(encoding="utf-8") == mutation.undecorated((ROOT / kl).read_text(encoding="utf-8"))
    assert (folder / "tests").resolve() == ROOT / "tests" and (folder / "tasks/rl/loop.py").is_file()
    told = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    assert told["only_mutate"] == [kl, ppo]
    expected = dict.fromkeys(mutation.FILES[kl] + mutation.FILES[ppo])
    assert told["pytest_add_cli_args_test_selection"] == list(expected)
    assert mutation.unchanged(folder, [kl, ppo]) and not mutation.unchanged(folder, [kl, "tasks/rl/none.py"])
    (folder / ppo).write_text("other code", encoding="utf-8")
    assert not mutation.unchanged(folder, [kl, ppo]) and mutation.unchanged(folder, [kl])


def test_what_is_left_out_is_there_and_the_page_names_what_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all((ROOT / file).is_file() and file not in mutation.FILES for file in mutation.NOTHING)
    monkeypatch.setattr(mutation, "version", lambda name: "3.8")
    survivor = {"function": "f", "was": "a | b", "becomes": "a & b", "state": "survived"}
    found = {"ajuste/learning/seeds.py": {"mutants": 4, "killed": 3, "survivors": [survivor]}}
    text = mutation.page(found, [{"becomes": "&", "reason": "both are the same here"}])
    assert "**3 of 4 planted faults found in 1 files: 75.0%.**" in text
    assert "| ajuste/learning/seeds.py | 4 | 3 | 1 | 75.0% |" in text
    assert "- both are the same here\n  - `f`: `a \\| b` becomes `a & b`" in text
    missing = text.split("though they have tests: ")[1].split(".\n")[0]
    assert "`tasks/rl/loop.py`" in missing and "seeds" not in missing and "algorithm" not in missing
