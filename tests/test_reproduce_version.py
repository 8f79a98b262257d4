"""A registered classifier of preset tiny is made again bit by bit; four kinds of change are found and named."""

import json
import sys
from pathlib import Path

import pytest

from tests.made.projects import ajuste, run, tiny_project

CHAMPION = "models:/reviews-classifier@champion"
REGISTER = """
from mlflow import MlflowClient
from ajuste.tracking.registry import registry
from ajuste.tracking.runs.store import tracking_uri
registry.register_all(None)
number = registry.find("reviews-classifier@challenger").version
MlflowClient(tracking_uri()).set_registered_model_alias("reviews-classifier", "champion", number)
print(registry.resolve("reviews-classifier@champion").path)
"""
TAGS = """
import json
from ajuste.tracking.registry import registry
print(json.dumps(registry.resolve("reviews-classifier@champion").tags))
"""


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clone on preset tiny whose full fine-tuning is champion, and the folder of its registered files.

    The preset stays uncommitted, as in a deployed run: the version is dirty, its params.yaml is recorded.
    """
    project = tiny_project(tmp_path_factory.mktemp("reproduce") / "ajuste")
    run(project, "git", "reset", "--quiet", "--soft", "HEAD~1")
    run(project, sys.executable, "-P", "-m", "dvc", "repro", "classify_full", timeout=1800)
    return project, Path(python(project, REGISTER))


def python(project: Path, code: str) -> str:
    """The last line that the code prints."""
    return run(project, sys.executable, "-c", code).stdout.strip().splitlines()[-1]


def tag(project: Path) -> dict:
    return json.loads(json.loads(python(project, TAGS))["reproduced"])


@pytest.mark.slow
def test_the_champion_is_made_again_bit_by_bit(champion: tuple[Path, Path]) -> None:
    project, _ = champion
    before = run(project, "git", "status", "--porcelain").stdout
    done = ajuste(project, "reproduce", CHAMPION)
    assert "bit-equal: all 4 outs of reviews-classifier/" in done.stdout, done.stdout
    assert "made with uncommitted changes" in done.stdout
    found = tag(project)
    assert found["verdict"] == "bit-equal" and found["outs"] == 4 and found["hardware"].startswith("cpu: ")
    assert "tolerance" not in found, "the kind of processor was recorded, so equal bytes were asked for"
    assert run(project, "git", "status", "--porcelain").stdout == before, "the working tree is left alone"


@pytest.mark.slow
def test_on_another_kind_of_processor_outs_lie_within_the_tolerance(
    champion: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = champion
    for key, value in {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
                       "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    done = ajuste(project, "reproduce", CHAMPION, check=False)
    found = tag(project)
    assert found["tolerance"] == 1e-3 and "made on cpu: " in done.stdout
    assert found["verdict"] == "within tolerance" and 0 < found["largest"] <= 1e-3 and done.returncode == 0
    strict = ajuste(project, "reproduce", CHAMPION, "--tolerance", "0", check=False)
    assert strict.returncode == 1 and tag(project)["verdict"] == "different"


@pytest.mark.slow
def test_a_changed_row_parameter_line_or_registered_byte_is_named(champion: tuple[Path, Path]) -> None:
    project, registered = champion
    rows = next(path for path in sorted((project / "data/reviews").glob("*.csv")))
    text = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    text[7] = text[7].replace(" ", "  ", 1)
    cases = [
        (rows, "".join(text).encode(), f"data/reviews/{rows.name} line 8 changed", ["reproduce"]),
        _edit(project / "params.yaml", "  seed: 0", "  seed: 1", "parameter compute.seed: 0 -> 1", ["reproduce"]),
        _edit(project / "tasks/classify/full.py", '"""', '"""A word. ', "tasks/classify/full.py line 1 changed",
              ["reproduce"]),
        (registered / "model.safetensors", _flipped(registered / "model.safetensors"),
         "registered file model.safetensors", ["reproduce", CHAMPION]),
    ]
    for path, changed, named, command in cases:
        before = path.read_bytes()
        path.unlink()  # it may be a link into the cache
        path.write_bytes(changed)
        done = ajuste(project, *command, check=False)
        path.write_bytes(before)
        assert done.returncode == 1 and named in done.stdout, done.stdout + done.stderr
        assert "nothing was run" in done.stdout
    assert tag(project)["verdict"] == "not as recorded" and "from byte" in tag(project)["differences"][0]


def _edit(path: Path, old: str, new: str, named: str, command: list[str]) -> tuple[Path, bytes, str, list[str]]:
    text = path.read_text(encoding="utf-8")
    assert old in text
    return path, text.replace(old, new, 1).encode(), named, command


def _flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    return bytes(content)
