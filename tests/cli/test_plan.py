"""`ajuste plan` as it is typed: the lecture's exercises, stages, GPUs, time, and what it cannot know."""

import json
import shutil
from pathlib import Path

import pytest

from ajuste.cli.main import app
from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.imports import ROOT
from tests.cli.commands import printed


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is broken."""
    from ajuste.cli.models import plan_pages

    monkeypatch.setattr(plan_pages.console, "_width", 400)


def test_the_exercises_of_the_lecture() -> None:
    shown = printed(app, "plan", "--model", "gpt3-175b", "--r", "8")
    assert "196,608 of 150,994,944, 0.1302%" in shown
    assert "174,604,259,328 parameters by its own sizes" in shown and "P = 175,000,000,000, the published" in shown
    assert "2.80 TB" in shown and "1.2 TB" in shown and "1.40 TB" in shown
    lora = printed(app, "plan", "--model", "gpt3-175b", "--r", "4", "--targets", "q_proj,v_proj")
    assert "a = 18,874,368" in lora and "350.30 GB" in lora
    shown = printed(app, "plan", "--model", "gpt3-175b", "--r", "8", "--targets", "attention", "--method", "qlora",
                    "--gpu", "h200")  # fmt: skip
    assert "a = 75,497,472" in shown and "91.49 GB" in shown and "cheapest that fits: qlora" in shown


def test_zero_of_any_count() -> None:
    shown = printed(app, "plan", "--parameters", "7.5e9", "--gpus", "64")
    assert all(f"{value} GB" in shown for value in ("120.00", "31.41", "16.64", "1.88"))


def test_time_and_cost_and_what_to_change() -> None:
    typed = ["plan", "--model", "gpt-2", "--train", "3.6e6", "--rate", "1000", "--price", "2"]
    assert "3,600,000 tokens at 1,000 a second (given): 1.00 hours, 2.00 at 2 an hour" in printed(app, *typed)
    shown = printed(app, "plan", "--model", "gpt3-175b", "--gpu", "h100")
    assert "nothing fits: take more GPUs" in shown and "qlora fits" in shown
    for typed, said in ((["--model", "gpt-9"], "gpt-9"), (["--model", "gpt-2", "--gpu", "abacus"], "abacus"),
                        (["--model", "gpt-2", "--targets", "nowhere"], "nowhere"),
                        (["--model", "gpt-2", "--train", "5"], "how fast"),
                        (["--model", "gpt-2", "--method", "prefix"], "prefix")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            printed(app, "plan", *typed)


def test_stages(tmp_path: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    (tmp_path / "artifacts/base").mkdir(parents=True)
    (tmp_path / "artifacts/base/decoder").symlink_to(tiny_decoder)
    (home() / ".state").mkdir(exist_ok=True)
    state = {"peak_memory_mb": 2000.0, "seconds": 12.0, "tokens_per_second": 34.0, "device": "cpu"}
    (home() / ".state/instruct.json").write_text(json.dumps(state))
    shown = printed(app, "plan")
    assert "instruct" in shown and "ppo" in shown and "are free on the" in shown
    shown = printed(app, "plan", "instruct")
    assert "activations" in shown and "L (T n + H" in shown and "% off; 12 s, 34 tokens a second" in shown
    assert "would fit: `instruct" in printed(app, "plan", "instruct", "--model", "gpt-2-xl", "--gpu", "rtx4090")
    with pytest.raises(UsageError, match="trains no network"):
        printed(app, "plan", "summary")
    with pytest.raises(UsageError, match="not made yet"):
        printed(app, "plan", "reward")
    (home() / ".state/instruct.json").unlink()
