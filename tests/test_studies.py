"""studies/*/dvc.yaml: each step depends on exactly the code it imports, and the points draw a picture and a table."""

import importlib.util
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.imports import ROOT
from tests.made import ledgers

STEPS = {
    (path.parent.name, name): stage
    for path in sorted((ROOT / "studies").glob("*/dvc.yaml"))
    for name, stage in yaml.safe_load(path.read_text())["stages"].items()
}


@pytest.mark.parametrize("study,name", STEPS)
def test_a_step_runs_in_the_projects_folder(study: str, name: str) -> None:
    assert STEPS[study, name]["wdir"] == "../.."
    assert STEPS[study, name]["cmd"].split(" ${")[0] == f"python -m studies.{study}.{name}"


def test_the_picture_and_the_table_of_data_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up points come out in the table, and two drawings are the same bytes."""
    spec = importlib.util.spec_from_file_location("draw", ROOT / "studies/data-size/draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    monkeypatch.setattr(draw, "POINTS", tmp_path / "points")
    monkeypatch.setattr(draw, "ARTIFACTS", tmp_path)
    for folder in ("points", "encoded/reviews", "evaluated/classify"):
        (tmp_path / folder).mkdir(parents=True)
    pq.write_table(pa.table({"row_id": ["x"] * 400}), tmp_path / "encoded/reviews/train.parquet")
    for i, strategy in enumerate(("frozen", "full", "lora")):
        for rows in (400, 100):
            value = 0.6 + i / 10 + rows / 4000
            accuracy = {"value": value, "low": value - 0.02, "high": value + 0.02}
            point = {"rows": rows, "strategy": strategy, "accuracy": accuracy, "test_rows": 50}
            name = f"points/100-{strategy}.json" if rows == 100 else f"evaluated/classify/{strategy}.json"
            if rows == 400:  # the default run's
                point = {"accuracy": accuracy, "rows": 50}
            (tmp_path / name).write_text(json.dumps(point))
    for name in ("one", "two"):
        monkeypatch.setattr(draw, "OUT", tmp_path / name)
        draw.main()
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    table = (tmp_path / "one" / "data-size.md").read_text()
    assert "| 100 | 0.625 (0.605 to 0.645) | 0.725 (0.705 to 0.745) | 0.825 (0.805 to 0.845) |" in table
    assert table.index("| 100 |") < table.index("| 400 |")


def module(study: str, name: str):
    spec = importlib.util.spec_from_file_location(f"{study}_{name}", ROOT / "studies" / study / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def drawn_twice(draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> str:
    """Run main twice, compare all bytes, return the page."""
    for name in ("one", "two"):
        monkeypatch.setattr(draw, "OUT", tmp_path / name)
        draw.main()
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    return (tmp_path / "one" / page).read_text()


def test_the_picture_and_the_table_of_mitigations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up points: replay forgets less than full with intervals apart, L2 does not learn, LoRA does both."""
    draw = module("mitigations", "draw")

    def around(value: float) -> dict:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    monkeypatch.setattr(draw, "STUDY", ROOT / "studies/mitigations")
    monkeypatch.setattr(draw, "POINTS", tmp_path)
    monkeypatch.setattr(draw, "BEFORE", tmp_path / "scores.json")
    sets = {
        "c4": {"task": "text", "metric": "log_likelihood_per_token", "rows": 40, "perplexity": 30.0, **around(-3.4)},
        "boolq": {"task": "choice", "metric": "accuracy", "rows": 100, **around(0.5)},
    }
    (tmp_path / "scores.json").write_text(json.dumps({"sets": sets}))
    learnt = {"full": 0.10, "small_rate": 0.05, "few_passes": 0.08, "replay": 0.09, "l2": 0.01, "lora_r4": 0.12}
    forgot = {"full": 0.9, "small_rate": 0.88, "few_passes": 0.87, "replay": 0.3, "l2": 0.1, "lora_r4": 0.05}
    learnt["lora_r32"], forgot["lora_r32"] = 0.15, 0.06
    for name in learnt:
        point = {
            "held_out": {
                "rows": 30, "base": around(2.0), "tuned": around(2.0 - learnt[name]),
                "difference": around(-learnt[name]),
            },
            "forgetting": {"sets": sets, "F": {"c4": around(forgot[name]), "boolq": around(0.01)}},
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(point))
    page = drawn_twice(draw, tmp_path, monkeypatch, "forgetting.md")
    assert "| base | | | 2.000 | | 30.0 | | |" in page
    assert "| 1.910 | 0.09 (0.07 to 0.11) | 30.0 | 0.30 (0.28 to 0.32) | 0.01 (-0.01 to 0.03) |" in page
    assert "4 of the 6 mitigations forgot less, with intervals apart (full (replay of general text), full (L2" in page
    assert "of these, full (replay of general text), LoRA (r = 4), LoRA (r = 32) also learnt" in page


def test_the_picture_and_the_table_of_generalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up points: a category gains half of it unseen, but for the last, which loses."""
    draw = module("generalisation", "draw")
    study = ROOT / "studies/generalisation"
    monkeypatch.setattr(draw, "STUDY", study)
    monkeypatch.setattr(draw, "POINTS", tmp_path)
    categories = yaml.safe_load((study / "params.yaml").read_text())["categories"]

    def rows(loss: dict[str, float], exact: float) -> list[dict]:
        return [
            {"row_id": f"{i:x}", "category": name, "nll": 10 * loss[name] + i % 2, "tokens": 10, "exact": exact}
            for name in categories for i in range(8)
        ]  # fmt: skip

    flat = dict.fromkeys(categories, 3.0)
    points = {"base": rows(flat, 0.0), "all": rows(dict.fromkeys(categories, 2.0), 1.0)}
    for name in categories:
        points[name] = rows({**flat, name: 3.5 if name == categories[-1] else 2.5}, 0.5)
    for name, some in points.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "trained_rows": 240, "rows": some}))
    page = drawn_twice(draw, tmp_path, monkeypatch, "generalisation.md")
    first = categories[0].replace("_", " ")
    assert f"| {first} | 8 | 3.05 | 2.55 | 2.05 | 0.50 (0.50 to 0.50) | 0.00 | 0.50 | 1.00 |" in page
    assert "3 of 4 categories that were never trained got a lower loss than the base's" in page
    assert f"1 a higher one ({categories[-1].replace('_', ' ')})" in page
    assert "the unseen gained -50% to 50% of what the seen gained" in page


def test_the_table_of_seeds_says_what_its_intervals_support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "studies/seeds/draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    monkeypatch.setattr(draw, "STUDY", ROOT / "studies/seeds")
    monkeypatch.setattr(draw, "POINTS", tmp_path)
    monkeypatch.setattr(draw, "OUT", tmp_path / "seeds.md")
    for seed in range(5):
        gap = {"value": 0.5, "low": 0.2, "high": 0.8}
        gold = {"value": 0.1, "low": 0.1 - seed / 30, "high": 0.3}  # seeds 3 and 4 do not exclude 0
        point = {
            "seed": seed, "updates": 15, "kept": 10, "alarms": 0, "kl": {"value": 4 + seed}, "prompts": 256,
            "proxy": {"difference": gap}, "gold": {"difference": gold}, "distinct2": {"ratio": 0.9}, "F": {"c4": gap},
        }  # fmt: skip
        (tmp_path / f"{seed}.json").write_text(json.dumps(point))
    draw.main()
    page = (tmp_path / "seeds.md").read_text()
    assert "excludes 0 for 5 of 5 seeds, gold for 3." in page
    gains = "+0.50 (+0.20 to +0.80) | +0.100 (-0.033 to +0.300)"
    assert f"| 4 | 10 of 15 | 8.00 | {gains} | 0.90 | +0.500 (+0.200 to +0.800) | 0 |" in page


def test_the_picture_and_the_table_of_best_of_n(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up points: gold is best at n = 4 and falls behind it, what was trained stands beside."""
    draw = module("best-of-n", "draw")

    def around(value: float, half: float = 0.02) -> dict:
        return {"value": value, "low": value - half, "high": value + half}

    for name in ("POINTS", "EVALUATED"):
        monkeypatch.setattr(draw, name, tmp_path)
    points = [{"n": n, "kl": around(kl, 0.0), "kl_bound": kl + 0.01, "proxy_gain": around(proxy),
               "gold_gain": around(gold)}
              for n, kl, proxy, gold in ((1, 0, 0, 0), (2, 0.19, 0.5, 0.1), (4, 0.63, 0.9, 0.3), (8, 1.2, 1.2, 0.2))]
    (tmp_path / "curve.json").write_text(json.dumps({"prompts": 128, "samples": 8, "points": points}))
    for method in ("ppo", "dpo", "rejection"):
        (tmp_path / method).mkdir()
        one = {"kl": around(2.0), "proxy": {"difference": around(0.4)}, "gold": {"difference": around(0.15)}}
        (tmp_path / method / f"{method}.json").write_text(json.dumps({**one, "prompts": 256}))
    (tmp_path / "rows").mkdir()
    splits = {"train": {"rows": 256, "samples": 2048}, "validation": {"rows": 48, "samples": 384}}
    (tmp_path / "rows/encoding.json").write_text(json.dumps({"n": 8, "splits": splits}))
    page = drawn_twice(draw, tmp_path, monkeypatch, "best-of-n.md")
    assert "| best of 4 | 0.63 | 0.64 | +0.900 (+0.880 to +0.920) | +0.300 (+0.280 to +0.320) |" in page
    assert "| PPO | 2.00 |  | +0.400 (+0.380 to +0.420) | +0.150 (+0.130 to +0.170) |" in page
    assert "The best of 2 or more has a higher gold (interval above 0); past n = 4 gold falls while the proxy" in page
    assert "drew 2,432 samples, 8 to each of 256 training prompts and\n48 of validation" in page


def test_the_page_of_alignment_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up ledgers: LoRA loses refusals beyond the margin, full fine-tuning does not."""
    draw = module("alignment", "draw")
    monkeypatch.setattr(draw, "STUDY", ROOT / "studies/alignment")
    monkeypatch.setattr(draw, "POLICY", ROOT / "policy.yaml")
    monkeypatch.setattr(draw, "POINTS", tmp_path)
    monkeypatch.setattr(draw, "BEFORE", ledgers.write_made(tmp_path / "base.json", "base", attacks=10))
    for name, attacks in (("lora", 40), ("full", 10)):
        ledgers.write_made(tmp_path / name / draw.FILE, name, attacks)
        training = {"method": name, "lr": 5e-4, "tokens": 4321, "rows": {"alpaca": 80}, "steps": 10}
        (tmp_path / name / "training.json").write_text(json.dumps(training))
    page = drawn_twice(draw, tmp_path, monkeypatch, "alignment-sft.md")
    assert "after ten steps on 80 short instructions of the default set (lora: 10 steps, rate 0.0005, 4,321" in page
    cells = r"0.167 \(.*; corrected 0.700 \(0.400 to 0.900\) \| 0.667 \(.*\| 60 \| rules 1 \|"
    assert re.search(rf"\| harmless \| `attack_success.direct` \(lower is better\) \| {cells}", page)
    assert re.search(r"\| harmless \| `profane_continuations` .*\| 40, few \| rules 1 \|", page)
    assert "attack_success.direct.fraud" not in page
    assert "| lora | keeps attack_success.direct | **FAIL** | 0.6667 [" in page
    assert "| full | keeps attack_success.direct | pass |" in page and "| full | keeps over_refusal | pass |" in page
    assert page.index("`over_refusal`") - page.index("`attack_success.role_play`") > 0
