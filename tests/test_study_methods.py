"""Study methods: its budget, who is told from whom on made-up points, its page, and all of it on preset tiny."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from scipy import stats

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from studies.methods import budget, compare, draw, page, shared
from studies.methods.shared import MethodsConfig
from tests.made.folders import contents
from tests.made.killed import kill_when, loaded
from tests.made.projects import ajuste, run, tiny_project

PARAMS = yaml.safe_load((ROOT / "studies/methods/params.yaml").read_text())
STAGES = yaml.safe_load((ROOT / "studies/methods/dvc.yaml").read_text())["stages"]
STUDY = MethodsConfig(**{**PARAMS, "bootstrap": 200})


# --- the budget -------------------------------------------------------------------------------------------------------


def test_all_samplers_draw_the_same_and_dpo_passes_as_many_responses():
    assert budget.updates(320, 32) == 10
    assert budget.comparisons(320, 4, available=768) == (640, 1)
    rows, epochs = budget.comparisons(384, 4, available=768)
    assert (rows, epochs) == (768, 1) and 2 * rows * epochs == 384 * 4
    learnt, held_back = budget.prompts(320, 4, 8)
    assert (learnt, held_back) == (72, 8) and 4 * (learnt + held_back) == 320


def test_too_few_comparisons_are_seen_again_whole_epochs_and_no_more():
    rows, epochs = budget.comparisons(320, 4, available=100)
    assert (rows, epochs) == (100, 6) and rows * epochs <= 640 < rows * (epochs + 1)


def test_a_budget_that_does_not_come_out_is_refused():
    for samples in (330, 16):
        with pytest.raises(UsageError, match=f"samples {samples} are no whole updates of ppo.batch_rows 32"):
            budget.updates(samples, 32)
    for samples, held_back in ((321, 8), (32, 8)):
        with pytest.raises(UsageError, match=f"samples {samples} at n 4 are no whole prompts above held_back 8"):
            budget.prompts(samples, 4, held_back)
    with pytest.raises(UsageError, match="1 samples seen 1 times and 10 comparisons make no pair"):
        budget.comparisons(1, 1, 10)


def test_the_default_budget_comes_out_at_the_default_sizes():
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    group = yaml.safe_load((ROOT / "studies/grpo/params.yaml").read_text())["grpo"]["group"]
    assert budget.updates(STUDY.samples, default["ppo"]["batch_rows"]) > 1
    assert sum(budget.prompts(STUDY.samples, STUDY.n, STUDY.held_back)) == STUDY.samples // group
    passes, available = default["ppo"]["epochs"], default["encode"]["preferences"]["rows"]["train"]
    rows, epochs = budget.comparisons(STUDY.samples, passes, available)
    assert 2 * rows * epochs == STUDY.samples * passes


def test_rejection_takes_the_prompts_in_the_loop_s_own_order():
    from studies.methods.training import in_order
    from tasks.evaluate.policy import Prompts
    from tasks.rl.loop import _Loop

    ids = [[i] for i in range(11)]
    prompts = Prompts([f"{i}" for i in range(11)], ids, [0] * 11, [""] * 11)
    loop = SimpleNamespace(prompts=ids, seed=3)
    assert in_order(prompts, 5, 3).ids == [ids[_Loop._prompt(loop, place)] for place in range(5)]
    assert in_order(prompts, 5, 4).ids != in_order(prompts, 5, 3).ids


# --- params and stages ------------------------------------------------------------------------------------------------


def test_params_and_stages_name_the_same_points():
    assert STAGES["point"]["matrix"] == {"method": STUDY.methods, "seed": STUDY.seeds}
    points = {f"artifacts/studies/methods/{method}-{seed}.json" for method in STUDY.methods for seed in STUDY.seeds}
    assert {dep for dep in STAGES["draw"]["deps"] if dep.startswith("artifacts/")} == points
    named = {key for stage in STAGES.values() for item in stage["params"] if isinstance(item, dict)
             for key in item.get("studies/methods/params.yaml", [])}  # fmt: skip
    assert named == MethodsConfig.model_fields.keys() == PARAMS.keys()
    assert set(STUDY.methods) == draw.LOOK.keys() == page.NAMES.keys()


def test_no_out_holds_a_clock():
    """The page has seconds, so DVC must not take it for an out."""
    outs = [next(iter(out)) for out in STAGES["draw"]["outs"]]
    assert outs == ["metrics/methods.json", "docs/measured/methods.svg"]


def test_the_first_method_is_the_one_that_all_are_held_against():
    with pytest.raises(ValueError, match="the first method is what all are held against"):
        MethodsConfig(**{**PARAMS, "methods": ["ppo", "sft"]})


# --- who is told from whom --------------------------------------------------------------------------------------------


def made(gains: dict[str, list[float]], prompts: int = 96, noise: float = 0.05) -> compare.Points:
    """Points whose gold is a prompt's own level + the method's gain with each seed + noise of its own."""
    level = np.random.default_rng(0).uniform(0.2, 0.6, prompts)
    ids = [f"{i:016x}" for i in range(prompts)]

    def point(number: int, method: str, seed: int, gain: float) -> dict:
        chance = np.random.default_rng([number, seed])
        gold = level + gain + noise * chance.standard_normal(prompts)
        kl = 0.0 if method == "sft" else 1.0 + number
        rows = [{"id": row_id, "proxy": 2 * value, "gold": value, "kl": kl, "tokens": 20 + seed}
                for row_id, value in zip(ids, gold.tolist(), strict=True)]  # fmt: skip
        estimate = {"value": 0.1, "low": 0.02 - seed * 0.03, "high": 0.2}  # above 0 with seed 0 alone
        lost = {"displacement": estimate, "F": {"c4": estimate, "boolq": estimate}, "held_out": estimate,
                "rougeL": estimate, "rules": {"sft": 0.5, method: 0.25}}  # fmt: skip
        opinions = [{"id": row_id, "first": 0.7, "second": 0.6 if i % 2 else 0.4} for i, row_id in enumerate(ids[:64])]
        return {
            "method": method, "seed": seed, "alarms": 0, "rows": rows, "distinct2": 0.8 - 0.1 * (method != "sft"),
            "spent": {"samples": 320, "passes": 1280, "pairs": 0, "an_answer": 1},
            "opinions": [] if method == "sft" else opinions,
            "lost": None if method in shared.UNTRAINED else lost,
        }  # fmt: skip

    return {method: [point(number, method, seed, gain) for seed, gain in enumerate(some)]
            for number, (method, some) in enumerate(gains.items())}  # fmt: skip


APART = {"sft": [0.0] * 3, "best-of-n": [0.05] * 3, "rejection": [0.06] * 3, "dpo": [0.08] * 3,
         "ppo": [0.3, 0.28, 0.32], "grpo": [0.15] * 3, "rloo": [0.14] * 3}  # fmt: skip


def test_a_method_that_is_ahead_of_all_wins() -> None:
    found = compare.compared(STUDY, made(APART))
    assert found["told"]["first"] == "ppo" and all(one["told"] for one in found["told"]["others"])
    said = page.verdict(found)
    assert said.startswith("**PPO wins on this data:** gold +0.29") and "the nearest is GRPO (behind by 0.1" in said
    assert "ahead of every other method with each of 3 seeds" in said and "on 96 prompts are above 0" in said
    assert "The price of PPO, by intervals above 0: held-out loss (1 of 3 seeds), displacement (1 of 3 seeds)" in said


def test_where_intervals_overlap_nobody_wins_and_the_prompts_to_tell_are_said() -> None:
    found = compare.compared(STUDY, made({**APART, "grpo": [0.3, 0.281, 0.3201]}))
    others = {one["method"]: one for one in found["told"]["others"]}
    first = found["told"]["first"]
    (near,) = {"ppo", "grpo"} - {first}
    assert first in ("ppo", "grpo") and [name for name, one in others.items() if not one["told"]] == [near]
    said = page.verdict(found)
    ahead, behind = page.NAMES[first], page.NAMES[near]
    assert said.startswith(f"**No method wins on this data: intervals overlap.** {ahead} is first, gold +0.")
    assert f"It is not told from {behind} (behind by 0.0" in said
    assert f"{others[near]['prompts']:,} prompts tell that" in said
    assert "It is told from RLOO, DPO, rejection sampling, best of n and SFT." in said
    assert f"Of {ahead} and {behind}, which all gain over SFT, PPO goes least far, 5.0 nats." in said


def test_a_seed_that_says_otherwise_is_enough_to_tell_nobody_apart() -> None:
    """The bound over prompts is far above 0, and with one training of three the other is better."""
    found = compare.told(made({"sft": [0.0] * 3, "ppo": [0.3, 0.3, 0.1], "dpo": [0.1, 0.1, 0.15]}), 0.05)
    (dpo,) = [one for one in found["others"] if one["method"] == "dpo"]
    assert dpo["lower"] > 0.05 and (dpo["ahead"], dpo["seeds"], dpo["told"]) == (2, 3, False)
    assert "with 2 of 3 seeds" in page._beside(dpo)


def test_the_sft_model_may_be_the_best() -> None:
    gains = {name: [-0.2] * 3 for name in APART} | {"sft": [0.0] * 3}
    said = page.verdict(compare.compared(STUDY, made(gains)))
    assert "**No method wins on this data: the SFT model itself has the highest gold**, and is told from" in said


def test_the_prompts_to_tell_are_the_power_formula_s() -> None:
    """N = ((t + z) sd / d)^2 of the seeds' mean differences, with scipy's t and z, at level 0.025 / 2."""
    points = made({"sft": [0.0] * 3, "ppo": [0.01, 0.012, 0.014], "dpo": [0.0, 0.0, 0.001]}, prompts=40, noise=0.2)
    found = compare.told(points, 0.05)
    for one in found["others"]:
        gold = {name: compare.values(points[name], "gold").mean(0) for name in (found["first"], one["method"])}
        d = gold[found["first"]] - gold[one["method"]]
        factor = stats.t.ppf(1 - 0.025 / 2, 39) + stats.norm.ppf(0.8)
        assert one["prompts"] == math.ceil((factor * d.std(ddof=1) / d.mean()) ** 2)
        assert one["prompts_wanted"] == max(2, math.ceil((factor * d.std(ddof=1) / 0.05) ** 2))
        assert one["seen"] == pytest.approx(factor * d.std(ddof=1) / math.sqrt(40))
        assert one["lower"] <= d.mean() - stats.t.ppf(1 - 0.025 / 2, 39) * d.std(ddof=1) / math.sqrt(40) + 1e-12


def test_what_does_not_differ_no_number_of_prompts_tells() -> None:
    points = made({"sft": [0.0] * 3, "ppo": [0.0] * 3}, noise=0.0)
    (ppo,) = compare.told(points, 0.05)["others"]
    assert (ppo["difference"], ppo["prompts"], ppo["told"]) == (0.0, None, False)
    assert "no number of prompts tell that" in page._beside(ppo)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_means_and_intervals_are_over_prompts_of_the_seeds_means() -> None:
    found = compare.over_prompts(np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), 200)
    assert found == {"value": 1.0, "low": 1.0, "high": 1.0, "seeds": [1.0, 1.0]}  # what the seeds share does not vary
    found = compare.over_prompts(np.array([[0.0, 1.0], [2.0, 3.0]]), 500)
    assert found["value"] == 1.5 and found["seeds"] == [0.5, 2.5] and (found["low"], found["high"]) == (1.0, 2.0)
    assert compare.wins(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [0.0, 0.5, 1.0]


def test_an_answer_wins_by_words_only_in_both_orders() -> None:
    opinions = [(0.9, 0.8), (0.1, 0.3), (0.9, 0.1), (0.2, 0.9), (0.5, 0.5)]  # wins, loses, order decides twice, tie
    found = compare.heard([[{"first": first, "second": second} for first, second in opinions]], 200)
    assert found["value"] == (1 + 0 + 0.5 + 0.5 + 0.5) / 5 and found["consistent"] == 2 / 5 and found["answers"] == 5
    turned = [(1 - second, 1 - first) for first, second in opinions]  # of the other answer
    other = compare.heard([[{"first": first, "second": second} for first, second in turned]], 200)
    assert other["value"] == pytest.approx(1 - found["value"]) and other["consistent"] == found["consistent"]


def test_points_of_other_prompts_do_not_compare(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"methods": ["sft", "ppo"], "seeds": [0]})
    points = made({"sft": [0.0], "ppo": [0.1]}, prompts=4)

    def path_of(method: str, seed: int) -> Path:
        return tmp_path / f"{method}-{seed}.json"

    path_of("sft", 0).write_text(json.dumps(points["sft"][0]))
    with pytest.raises(UsageError, match="ppo-0.json is missing or no JSON: run `ajuste study methods`"):
        compare.read(study, path_of)
    path_of("ppo", 0).write_text(json.dumps(points["ppo"][0]))
    assert compare.read(study, path_of) == points
    points["ppo"][0]["rows"][1]["id"] = "another"
    path_of("ppo", 0).write_text(json.dumps(points["ppo"][0]))
    with pytest.raises(DataError, match="different prompts"):
        compare.read(study, path_of)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_the_picture_and_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "read", lambda: STUDY)
    monkeypatch.setattr(shared, "POINTS", tmp_path / "points")
    monkeypatch.setattr(shared, "home", lambda: tmp_path)
    for method, some in made(APART).items():
        for point in some:
            path = shared.path_of(method, point["seed"])
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(point))
    cost = {"seconds": 101.5, "peak_memory_mb": 3204.0, "device": "cpu", "threads": 2}
    for seed in (0, 1):  # DVC brought the third from its cache
        shared.keep_cost("ppo", seed, cost | {"seconds": 100.0 + 10 * seed})
    shared.keep_cost("dpo", 0, cost)
    shared.path_of("dpo", 0).write_text(shared.path_of("dpo", 0).read_text() + "\n")  # other figures than those timed
    for name in ("one", "two"):
        monkeypatch.setattr(draw, "METRICS", tmp_path / name)
        monkeypatch.setattr(draw, "OUT", tmp_path / name)
        draw.main()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {"methods.json", "methods.md", "methods.svg"}
    text = (tmp_path / "one/methods.md").read_text()
    assert "**PPO wins on this data:**" in text and "![Gain over KL](methods.svg)" in text
    assert "| PPO | 105 | 100 to 110 | 3.2 GB |" in text and "| DPO | - | - | - |" in text
    assert "Measured on cpu, 2 threads." in text
    assert "| PPO | 320 | 0 | 1,280 | 1 |" in text and "0.88, seeds 0.88 to 0.88 |" in text
    assert "| SFT | 0.4" in text and text.count(", seeds 0.750 to 0.750 | 50% |") == 6
    lost = "+0.100, seeds +0.100 to +0.100 (1 above 0)"
    assert f"| PPO | {lost} | {lost} | {lost} | {lost} | 0.50 -> 0.25 | {lost} |" in text
    assert "| best of n | +0.100" not in text, "its weights are the SFT model's"
    assert "Alarms that ended a training early or, of DPO, rang: none." in text
    found = json.loads((tmp_path / "one/methods.json").read_text())
    assert found["methods"]["ppo"]["gold"]["gain"]["value"] == pytest.approx(0.3, abs=0.02)
    assert found["methods"]["ppo"]["win"]["value"] > 0.95 and "win" not in found["methods"]["sft"]
    assert "seconds" not in json.dumps(found)


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preset tiny, run; the study with one seed and a small budget."""
    folder = tiny_project(tmp_path_factory.mktemp("methods") / "ajuste")
    values = {**PARAMS, "seeds": [0], "samples": 16, "held_back": 2, "prompts": 12, "judged": 4, "pairs": 8, "rows": 4,
              "references": 2, "text_rows": 3, "choice_rows": 3, "bootstrap": 200}  # fmt: skip
    (folder / "studies/methods/params.yaml").write_text(yaml.safe_dump(values))
    stages = folder / "studies/methods/dvc.yaml"
    text = stages.read_text()
    assert text.count("seed: [0, 1, 2]") == 1
    lines = text.replace("seed: [0, 1, 2]", "seed: [0]").splitlines()
    stages.write_text("\n".join(line for line in lines if not line.endswith(("-1.json", "-2.json"))) + "\n")
    ajuste(folder, "run", "assistant")
    return folder


@pytest.mark.slow
def test_the_study_on_preset_tiny_ends_with_the_same_bytes_after_a_kill(project: Path) -> None:
    done = ajuste(project, "study", "methods")
    assert "on this data" in done.stdout
    text = (project / "docs/measured/methods.md").read_text()
    assert "| RLOO | 16 | 0 | 64 | 1 |" in text and "| DPO | 0 | 32 | 64 | 1 |" in text
    assert "| rejection sampling | 16 | 0 | 8 | 1 |" in text and "| best of n | 0 | 0 | 0 | 4 |" in text
    points = project / "artifacts/studies/methods"
    assert {path.name for path in points.iterdir()} - {".gitignore"} == {f"{m}-0.json" for m in STUDY.methods}
    before = contents(points)
    ppo = json.loads((points / "ppo-0.json").read_text())
    assert len(ppo["rows"]) == 12 and len(ppo["opinions"]) == 4 and ppo["lost"]["F"].keys() == {"c4", "boolq", "piqa"}
    assert all(row["kl"] > 0 for row in ppo["rows"]) and ppo["lost"]["displacement"]["value"] != 0
    lock = project / "studies/methods/dvc.lock"
    expected = yaml.safe_load(lock.read_text())
    lock.unlink()
    shutil.rmtree(points)
    kill_when(project, ("study", "methods"), lambda: loaded(project, "studies.methods.point"))
    ajuste(project, "study", "methods")
    assert yaml.safe_load(lock.read_text()) == expected  # metrics and picture are in it
    assert contents(points) == before


@pytest.mark.slow
def test_a_point_that_there_is_not_is_one_line(project: Path) -> None:
    done = run(project, sys.executable, "-m", "studies.methods.point", "ppo", "7", check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: no point `ppo 7`")
