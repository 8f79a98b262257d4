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
