"""hashes.txt: every package of a plain install by its sha256, in the version of constraints.txt; `make` asks for it."""

import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.made.projects import ROOT

FORM = re.compile(r"^([\w.-]+)==([\w.]+)[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", re.MULTILINE)
HASHED = dict(FORM.findall((ROOT / "hashes.txt").read_text()))
WITHOUT = {"torch", "triton", "setuptools"}  # docs/stack.md says why


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def needed(asked: list[str]) -> set[str]:
    """The packages that these requirements install here, with what they need themselves."""
    found, todo = set(), [(Requirement(text), extra) for text in asked for extra in ("", *Requirement(text).extras)]
    while todo:
        want, extra = todo.pop()
        name = canonicalize_name(want.name)
        if (want.marker and not want.marker.evaluate({"extra": ""})) or (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            below = [Requirement(text) for text in metadata.distribution(name).requires or []]
        except metadata.PackageNotFoundError:
            continue
        if name not in WITHOUT:
            mine = [one for one in below if not one.marker or one.marker.evaluate({"extra": extra})]
            for one in mine:
                one.marker = None
            todo += [(one, inner) for one in mine for inner in ("", *one.extras)]
    return {name for name, _ in found}


def test_every_main_package_has_hashes_and_its_one_version() -> None:
    hashed = {canonicalize_name(name): version for name, version in HASHED.items()}
    versions = pins((ROOT / "constraints.txt").read_text())
    assert {name: version for name, version in hashed.items() if versions.get(name) != version} == {}
    main = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = needed(main)
    assert len(wanted) > 150 and wanted - WITHOUT - set(hashed) == set()


def test_make_takes_them_before_any_other_package() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pip install" in line]
    assert "--require-hashes -r hashes.txt" in lines[0] and "--no-deps" in lines[0]
