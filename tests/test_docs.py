"""What README and docs say exists: files, commands, Make targets, presets; and the measured table is the run's."""

import json
import re
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "mlruns/README.md", *(ROOT / "docs").glob("*.md")])


def code(text: str) -> list[str]:
    """Lines of fenced blocks and inline code."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()] + inline


def commands() -> set[str]:
    from ajuste.cli.main import app

    return set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "../metrics", "metrics/")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    known = commands()
    for line in code(page.read_text(encoding="utf-8")):
        match = re.match(r"ajuste ([a-z-]+)", line)
        if match:
            assert match[1] in known, f"{page.name}: `{line}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_exist(page):
    for word in code(page.read_text(encoding="utf-8")):
        if re.fullmatch(
            r"(tasks|learning|tracking|serving|flows|cli|infra|tests|studies|benchmarks|presets)/[\w./-]*", word
        ):
            assert (ROOT / word).exists(), f"{page.name} names {word}"


def test_make_targets_and_presets_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {match[1] for line in code(text) if (match := re.match(r"(?:PYTHON=\S+ )?make ([a-z-]+)", line))}
    assert used and used <= targets
    table = text[text.index("Presets bundle") : text.index("## Can I")]
    named = {
        name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }
    assert named == {path.stem for path in (ROOT / "presets").glob("*.yaml")}


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


def test_the_table_of_rlhf_is_the_committed_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "metrics/ppo.json").read_text())
    margins = json.loads((ROOT / "metrics/reward.json").read_text())["by_margin"]
    rows = {f"difference at least {row['margin']}": [row["pairs"], row["accuracy"]["value"]] for row in margins}
    rows = {name: rows[name] for name in rows if f"| {name} |" in text}
    for name, key in (("reward (proxy)", "proxy"), ("gold, mean P(positive)", "gold")):
        rows[name] = [found[key][model]["value"] for model in ("sft", "ppo")]
    assert len(rows) == 5
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
                [line.count("|"), re.findall(r"`(?:tasks|learning|tracking|serving|tests)/[^`]+`", line)]
                for line in text.splitlines()
                if line.startswith("|")
            ]
        )
    assert shapes[0] == shapes[1]
