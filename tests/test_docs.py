"""What README and docs say exists: links, anchors, files, modules, stages; and the measured tables are the run's.

What they show as commands is tests/test_readme.py's.
"""

import json
import re
from pathlib import Path

import pytest

from ajuste.core.imports import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "mlruns/README.md", *(ROOT / "docs").rglob("*.md")])
MADE = {  # what runs, `make` or a person make, and git ignores
    "artifacts": "what stages write", "data": "by `ajuste data pull`", "reports": "pages for people",
    "mlruns": "MLflow's store", ".state": "of the last runs", ".checkpoints": "of unfinished stages",
    ".venv": "by make", ".stack": "what `make stack` runs on", ".prefect": "Prefect's store",
    ".pytest_cache": "by tests", ".assets": "what was downloaded once",
    ".ui": "of `ajuste ui`",
    "infra/.env": "by infra/prepare.py", "infra/secret.env": "the like", "infra/runs.env": "the like",
    ".dvc/config.local": "a person's remote",
}  # fmt: skip
ROOT_FOLDERS = [re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name not in {*MADE, ".git"}]
FOLDERS = [f"ajuste.{path.name}" for path in (ROOT / "ajuste").iterdir() if path.is_dir()] + ["tasks", "flows"]


def code(text: str) -> list[str]:
    """Lines of fenced blocks and inline code."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()] + inline


def anchors(page: Path) -> set[str]:
    """What a link may name behind #: the headings as GitHub writes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto:")):
            to = page.parent / target if target else page
            assert to.exists(), f"{name_of(page)} links to {target}"
            assert not anchor or anchor in anchors(to), f"{name_of(page)} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_code_exist(page: Path) -> None:
    """Every path that begins with a folder of the project; `path.py::test` and `path.py:line` name a file, too."""
    for line in code(page.read_text(encoding="utf-8")):
        for word in re.findall(rf"(?<![\w/.<*-])(?:{'|'.join(ROOT_FOLDERS)})/[^\s`,;:()|]*", line):
            placeholder = re.search(r"[<*A-Z{]", re.sub("README.md|Dockerfile", "", word))
            assert placeholder or word in MADE or (ROOT / word).exists(), f"{name_of(page)} names {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_folders_named_in_code_exist_or_are_made(page: Path) -> None:
    for word in code(page.read_text(encoding="utf-8")):
        if re.fullmatch(r"[\w.-]+/", word) and word.rstrip("/") not in MADE:
            assert (ROOT / word).is_dir() or (page.parent / word).is_dir(), f"{name_of(page)} names {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_named_in_code_exist(page: Path) -> None:
    """ajuste.models.classifier.load: a module, or a name inside one."""
    for line in code(page.read_text(encoding="utf-8")):
        for word in re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})\.\w+(?:\.\w+)*", line):
            *above, last = word.split(".")
            inside = ROOT.joinpath(*above).with_suffix(".py")
            text = inside.read_text(encoding="utf-8") if inside.is_file() else ""
            there = ROOT.joinpath(*above, last)
            assert (
                there.is_dir() or there.with_suffix(".py").is_file()
                or re.search(rf"^(def |class )?{last}\b", text, re.MULTILINE)
            ), f"{name_of(page)} names {word}"  # fmt: skip


def test_stages_named_in_the_docs_exist():
    stages = set(re.findall(r"^  (\w+):$", (ROOT / "dvc.yaml").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in code(page.read_text(encoding="utf-8")):
            if match := re.match(r"dvc repro (\w+)", line):
                assert match[1] in stages, f"{page.name}: `{line}`"


def test_measured_table_is_the_committed_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (?:\*\*)?(Feature extraction|Full fine-tuning|LoRA)(?:\*\*)? \| ([\d.]+)", text, re.MULTILINE
    )
    metrics = ROOT / "metrics/classify.json"
    if not rows:
        pytest.skip("README's table is not filled yet")
    found = json.loads(metrics.read_text())["strategies"]
    names = {"Feature extraction": "frozen", "Full fine-tuning": "full", "LoRA": "lora"}
    assert len(rows) == 3
    for name, value in rows:
        assert float(value) == pytest.approx(found[names[name]]["accuracy"]["value"], abs=5e-4), name


def test_the_assistants_table_is_the_committed_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "metrics/instruct.json").read_text())
    forgotten = json.loads((ROOT / "metrics/forgetting.json").read_text())
    held = [found["held_out"][model]["loss"]["value"] for model in ("base", "instruct")]
    rows = {
        "held-out loss, nats a response token": [*held, found["held_out"]["difference"]["value"]],
        "BoolQ, accuracy": [*(forgotten[model]["boolq"]["value"] for model in ("base", "instruct"))],
        "PIQA, accuracy": [*(forgotten[model]["piqa"]["value"] for model in ("base", "instruct"))],
    }
    for name, values in rows.items():
        shown = re.search(rf"^\| {name} \| ([\d.]+) \| ([\d.]+) \| (?:F = )?([+-][\d.]+)", text, re.MULTILINE)
        for number, value in zip(shown.groups(), values, strict=False):
            assert float(number) == pytest.approx(value, abs=6e-3 if "." in number and len(number) < 5 else 6e-4), name


def by_margin(rows: list[dict], words: str) -> dict[str, list]:
    """{the table's row: its pairs and accuracy}."""
    return {f"{words} at least {row['margin']}": [row["pairs"], row["accuracy"]["value"]] for row in rows}


def test_the_tables_of_rlhf_are_the_committed_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ppo, dpo, reward = (json.loads((ROOT / f"metrics/{name}.json").read_text()) for name in ("ppo", "dpo", "reward"))
    rows = by_margin(reward["by_margin"], "difference") | by_margin(dpo["pairs"]["by_margin"], "preferred by")
    rows = {name: rows[name] for name in rows if f"| {name} |" in text}
    for method, found, names in (
        ("ppo", ppo, ("reward (proxy)", "gold, mean P(positive)")),
        ("dpo", dpo, ("reward (proxy) after DPO", "gold after DPO")),
    ):
        for name, key in zip(names, ("proxy", "gold"), strict=True):
            rows[name] = [found[key][model]["value"] for model in ("sft", method)]
    assert len(rows) == 10
    for name, values in rows.items():
        shown = re.search(rf"^\| {re.escape(name)} \| ([-\d.]+) \| ([-\d.]+)", text, re.MULTILINE)
        for number, value in zip(shown.groups(), values, strict=True):
            digits = len(number.partition(".")[2])
            assert float(number) == pytest.approx(value, abs=0.6 * 10**-digits), name


def test_both_languages_of_the_lecture_have_the_same_rows():
    shapes = []
    for name in ("lecture.md", "lectura.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        shapes.append(
            [
                [line.count("|"), re.findall(r"`(?:ajuste|flows|infra|tasks|tests)/[^`]+`", line)]
                for line in text.splitlines()
                if line.startswith("|")
            ]
        )
    assert shapes[0] == shapes[1]
