"""The workflow files for GitHub and GitLab: their schemas, pinned actions, commands that exist, no token on a line."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.made.projects import ROOT

FILES = {".github/workflows/ajuste.yml": "vendor.github-workflows", ".gitlab-ci.yml": "vendor.gitlab-ci"}


@pytest.mark.parametrize("name", FILES)
def test_the_schema_holds(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", FILES[name], str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_validator_refuses_what_is_wrong(tmp_path) -> None:
    text = (ROOT / ".github/workflows/ajuste.yml").read_text()
    (tmp_path / "wrong.yml").write_text(text.replace("runs-on:", "runs_on:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows",
               str(tmp_path / "wrong.yml")]  # fmt: skip
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 1


@pytest.mark.parametrize("name", FILES)
def test_they_run_the_tests_the_check_and_the_difference(name: str) -> None:
    from typer.main import get_command

    from ajuste.cli.main import app

    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"system", "test", "setup"} <= set(re.findall(r"make ([a-z-]+)", text)) <= targets
    asked = re.findall(r"bin/ajuste ([a-z-]+)", text)
    assert {"data", "reproduce", "diff"} == set(asked) <= set(get_command(app).commands)
    assert "ajuste reproduce --check" in text


def test_actions_are_pinned_and_nobody_may_write_more_than_a_comment() -> None:
    found = yaml.safe_load((ROOT / ".github/workflows/ajuste.yml").read_text())
    used = [step["uses"] for job in found["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in used), "a tag can be moved"
    granted = [found["permissions"], *(job.get("permissions", {}) for job in found["jobs"].values())]
    writes = {scope for scopes in granted for scope, level in scopes.items() if level == "write"}
    assert writes == {"pull-requests"}
    for step in (step for job in found["jobs"].values() for step in job["steps"]):
        assert "${{" not in step.get("run", ""), "what others write (branch names) reaches a shell as environment alone"
        assert "TOKEN" not in step.get("run", "")


def test_gitlabs_token_is_never_printed() -> None:
    lines = [line for line in (ROOT / ".gitlab-ci.yml").read_text().splitlines() if "$AJUSTE_GITLAB_TOKEN" in line]
    assert len(lines) == 2 and not any("echo" in line for line in lines)
