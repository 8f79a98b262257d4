"""Study rlaif: its steps one after the other on tiny models, and what its page says."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from studies.rlaif import card, critique, draw, pairs, point, samples
from studies.rlaif.shared import Study, run
from tests.made import judged, tiny_classifiers, tiny_rlhf
from tests.made.folders import contents

PARAMS = ROOT / "studies/rlaif/params.yaml"


@pytest.fixture
def project(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with what the default run leaves behind, and the study's params for two judges."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    from ajuste.cli.project.preset import apply

    for name in ("params.yaml", "presets/tiny.yaml", "sources/constitution/constitution.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, name)
    apply("tiny", Path("params.yaml"))
    artifacts = tmp_path / "artifacts"
    judged.validated(judged.ratings_set(tmp_path / "data/ratings", 160), artifacts / "validated/preferences")
    shutil.copytree(base, artifacts / "base/decoder")
    sft = tiny_rlhf.whole(base, artifacts / "merged/instruct", 3)
    judged.prompts(artifacts / "validated/preferences", sft, artifacts / "encoded/preferences")
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(tmp_path / "encoder"), artifacts / "merged/gold")
    prompts = [{"id": f"p{i}", "language": "en", "prompt": f"Name {i} films."} for i in range(3)]
    Path("sources/constitution/prompts.yaml").write_text(yaml.safe_dump(prompts))
    values = yaml.safe_load(PARAMS.read_text())
    values["judges"] = {name: values["judges"][name] for name in ("sft", "gold")}
    values["card"] |= {"min_share_of_ceiling": 0.0, "min_swap_consistency": 0.98, "bootstrap": 100, "pairs": 24}
    values["critique"] |= {"new_tokens": 4}
    Path("studies/rlaif").mkdir(parents=True)
    Path("studies/rlaif/params.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def below(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder and its folders."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_training(config, compute, encoded: Path, base: Path, out: Path, checkpoints: Path) -> dict:
    """What train_reward_model leaves behind and gives back, without a model: a pair is right if its id is even."""
    ids = pq.read_table(encoded / "test.parquet")["row_id"].to_pylist()
    right = [float(int(row_id, 16) % 2 == 0) for row_id in ids]
    out.mkdir()
    pq.write_table(pa.table({"row_id": ids, "right": right, "margin": [1.0] * len(ids)}), out / "pairs.parquet")
    accuracy = {"value": sum(right) / len(ids), "low": 0.0, "high": 1.0}
    test = {"accuracy": accuracy, "pairs": len(ids), "by_margin": []}
    return {"test": test, "tokens": 9, "validation": {"accuracy": 0.5, "loss": 0.7}}


@pytest.mark.parametrize("training", ["none", pytest.param("real", marks=pytest.mark.slow)])
def test_the_study_from_samples_to_its_page(training: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if training == "none":
        monkeypatch.setattr(point, "train_reward_model", no_training)
    samples.main()
    for judge in ("sft", "gold"):
        card.main(judge)
        pairs.main(judge)
    critique.main()
    for name in ("human", "gold-50", "gold-100", "sft-50"):
        point.main(name)
    draw.main()

    found = json.loads((project / "metrics/rlaif.json").read_text())
    assert found["judges"]["gold"]["refused"] == [] and "may not label" in found["pairs"]["sft"]["refused"]
    rows = found["pairs"]["gold"]["kept"]
    points = found["points"]
    assert [(points[name]["human"], points[name]["ai"]) for name in ("human", "gold-50", "gold-100")] == [
        (rows, 0), (rows - (rows + 1) // 2, (rows + 1) // 2), (0, rows),
    ]  # fmt: skip
    assert all(points[name]["trained_rows"] == rows for name in ("human", "gold-50", "gold-100"))
    assert points["sft-50"]["refused"] == found["pairs"]["sft"]["refused"] and "accuracy" not in points["sft-50"]
    page = (project / "docs/measured/rlaif.md").read_text()
    assert "- `sft`: its verdict survives a change of order on" in page and f"| 50% by `gold` | {rows // 2} |" in page

    before = below(project / "artifacts/studies/rlaif")
    samples.main()
    pairs.main("gold")
    point.main("gold-100")
    assert below(project / "artifacts/studies/rlaif") == before, "equal inputs, equal bytes"


def test_a_point_is_named_by_judge_and_share() -> None:
    assert point.parsed("human", ["gold"]) == (None, 0.0) and point.parsed("a-b-50", ["a-b"]) == ("a-b", 0.5)
    for wrong in ("gold", "gold-0", "gold-101", "gold-x", "nobody-50", "human-50"):
        with pytest.raises(UsageError, match=f"no point `{wrong}`: a point is human, or JUDGE-PERCENT"):
            point.parsed(wrong, ["gold"])


def test_the_params_are_typed_and_name_the_judges_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = Study()
    steps = yaml.safe_load((ROOT / "studies/rlaif/dvc.yaml").read_text())["stages"]
    for name in study.params["judges"]:
        assert study.judge(name).kind
    assert steps["card"]["matrix"]["judge"] == steps["pairs"]["matrix"]["judge"] == list(study.params["judges"])
    for name in steps["point"]["matrix"]["point"]:
        point.parsed(name, list(study.params["judges"]))
    assert study.words().language == "en"
    with pytest.raises(UsageError, match="no judge `nobody`: judges are sft"):
        study.judge("nobody")


def test_a_step_that_fails_ends_with_one_line(capsys: pytest.CaptureFixture) -> None:
    def broken() -> None:
        raise ConnectionError("the judge at http://host did not answer")

    with pytest.raises(SystemExit) as ended:
        run("card_x", broken)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the judge at http://host did not answer\n"


# --- the page ---------------------------------------------------------------------------------------------------------


def around(value: float) -> dict:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def made_card(name: str, agreement: float, swap: float, refused: list[str]) -> dict:
    return {
        "judge": name, "pairs": 60, "agreement": around(agreement), "one_against_rest": around(0.9),
        "share_of_ceiling": around(agreement / 0.9), "swap_consistency": around(swap), "refused": refused,
        "alpha": {"judge": around(0.5), "one_against_rest": 0.8, "people": 0.7}, "position_bias": around(0.1),
        "length_bias": {"difference": around(-0.05)}, "cost": {"tokens_a_pair": 120.4},
        "rule": {"min_share_of_ceiling": 0.8, "min_swap_consistency": 0.7},
    }  # fmt: skip


def put(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_the_page_says_who_is_refused_and_what_paired_intervals_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    put(folder / "cards/sft/card.json", made_card("sft", 0.52, 0.3, ["it agrees", "its verdict survives"]))
    put(folder / "cards/gold/card.json", made_card("gold", 0.8, 1.0, []))
    put(folder / "pairs/sft/pairs.json", {"judge": "sft", "refused": "no"})
    put(folder / "pairs/gold/pairs.json", {"judge": "gold", "kept": 90, "asked": 100, "inconsistent": 8, "ties": 2})
    put(folder / "revised/critique.json", {"kept": 3, "prompts": 5, "unchanged": 1, "left_out": {"empty": 2}})
    right = {"human": [1] * 60, "gold-50": [1] * 40 + [0] * 20, "gold-100": [1] * 58 + [0] * 2}
    for name, rows in right.items():
        put(folder / f"points/{name}.json", {
            "name": name, "judge": "gold", "share": {"human": 0, "gold-50": 0.5}.get(name, 1), "human": 30, "ai": 30,
            "pairs": 60, "accuracy": around(sum(rows) / 60),
            "rows": [{"row_id": f"{i:x}", "right": value, "margin": 1.0} for i, value in enumerate(rows)],
        })  # fmt: skip
    put(folder / "points/sft-50.json", {"name": "sft-50", "judge": "sft", "share": 0.5, "refused": "no"})
    monkeypatch.setattr(draw, "POINTS", folder)
    written = []
    for name in ("one", "two"):
        monkeypatch.setattr(draw, "METRICS", tmp_path / name)
        monkeypatch.setattr(draw, "OUT", tmp_path / name)
        draw.main()
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]
    page = (tmp_path / "one/rlaif.md").read_text()
    assert "| `sft` | 0.520 (0.500 to 0.540) |" in page and "-0.050 (-0.070 to -0.030) | 120 | refused |" in page
    assert "| one person | 0.900 (0.880 to 0.920) | 1 | 0.800 |" in page
    assert "- `sft`: it agrees; its verdict survives." in page
    assert "| 50% by `gold` | 30 | 30 | 0.667 (0.647 to 0.687) | -0.333 (" in page and "sft-50" not in page
    assert "1 of 2 trainings with AI labels are worse" in page and "(`gold-50`), 0 better, by paired" in page
    assert "3 of 5 answers were revised, 1 of them without a change; left\nout: 2 empty." in page
    assert page.index("people alone") < page.index("50% by") < page.index("100% by")
    found = json.loads((tmp_path / "one/rlaif.json").read_text())
    assert found["points"]["gold-50"]["gain"]["value"] == pytest.approx(-1 / 3, abs=1e-5)
    assert all("rows" not in one for one in found["points"].values())
