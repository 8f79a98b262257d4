"""What README and docs show works as typed: each command is parsed, each Make target, module and preset is there.

Nothing here needs a hub, a server or a training, but for the last test, which is slow: preset tiny in a fresh clone.
"""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from ajuste.cli.main import app
from ajuste.cli.project.preset import apply
from ajuste.core.imports import ROOT
from ajuste.tracking.project.check import check_params
from tests.made.projects import environment
from tests.test_docs import PAGES, code

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
NO_COMMANDS = {  # code that begins like one
    "ajuste COMMAND --help": "stands for any command",
    "ajuste serve, without micro-batches": "a row of a table",
}


def shown(program: str) -> list[tuple[str, str]]:
    """(page, what is typed) of every line that starts the program, without comment, pipe or redirection."""
    found = []
    for page in PAGES:
        for line in code(page.read_text(encoding="utf-8")):
            line = re.sub(r"\s+#.*| > .*| \| .*|\[(--[^]]*)\]", r"\1", line).strip()
            line = re.sub(r"^([A-Z_]+=\S+ )+", "", line)
            if re.match(rf"{program}( |$)", line) and line not in NO_COMMANDS:
                found.append((page.relative_to(ROOT).as_posix(), line))
    return sorted(set(found))


@cache
def command_line():
    """The command line of `ajuste` whose commands do nothing but read their arguments."""
    whole = typer.main.get_command(app)
    todo = [whole]
    for command in todo:
        if hasattr(command, "commands"):
            todo += command.commands.values()
        else:
            command.callback = lambda **_: None
    return whole


def parse(line: str) -> None:
    """Read a line as `ajuste` would. Raises what the parser raises, for an unknown command, option or a missing one."""
    command_line().main(shlex.split(line)[1:], prog_name="ajuste", standalone_mode=False)


def test_commands_are_those_that_the_command_line_knows() -> None:
    groups = {name for name, command in command_line().commands.items() if hasattr(command, "commands")}
    wrong = []
    for page, line in shown("ajuste"):
        words = shlex.split(line)
        # a command by its name alone, in a sentence, need not have its arguments
        alone = len(words) <= (3 if len(words) > 1 and words[1] in groups else 2)
        try:
            parse(f"{line} --help" if alone else line)
        except Exception as error:
            wrong.append(f"{page}: `{line}`: {error}")
    assert wrong == []


def test_what_is_no_command_is_found() -> None:
    for line in ("ajuste rum", "ajuste run --til x", "ajuste sweep", "ajuste data ad mine"):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parse(line)
    assert len(shown("ajuste")) > 80 and len(shown("make")) > 5


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, line in shown("make"):
        wanted = [word for word in line.split()[1:] if re.fullmatch(r"[a-z-]+", word)]
        assert wanted and set(wanted) <= targets, f"{page}: `{line}`"


def test_modules_exist() -> None:
    for page, line in shown("python"):
        if match := re.match(r"python -m ([\w.-]+)", line):
            assert find_spec(match[1]), f"{page}: `{line}`"
        elif match := re.match(r"python (\S+\.py)", line):
            assert (ROOT / match[1]).is_file(), f"{page}: `{line}`"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_the_config_of_every_stage(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "dvc.yaml", "presets"):
        (shutil.copytree if name == "presets" else shutil.copy)(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert apply(preset, Path("params.yaml")), f"presets/{preset}.yaml changes nothing"
    check_params()


def test_the_tables_of_the_readme_are_complete() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("Presets bundle") : text.index("## Can I")]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == PRESETS
    table = text[text.index("## Commands") : text.index("## Your own data")]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == set(command_line().commands)


@pytest.mark.slow
def test_preset_tiny_from_a_fresh_clone_as_the_readme_says(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if "ajuste preset tiny" in block]
    clone = tmp_path / "ajuste"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for line in block.strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "ajuste"
        command = [sys.executable, "-m", "ajuste.cli.main", *words[1:]]
        done = subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{line}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    assert (clone / "artifacts/merged/ppo/proof.json").is_file()
