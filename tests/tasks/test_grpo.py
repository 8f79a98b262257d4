"""`grpo` and `rloo` on tiny folders: what they write, what they read by `score`, and what `ajuste explain` shows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ajuste.cli.main import app
from ajuste.core.errors import UsageError
from ajuste.core.figures import rounded
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from ajuste.models import decoder
from ajuste.models.one_base import OneBase
from tasks.grpo import grpo
from tasks.rl import policy, recorder
from tasks.rl.policy import said
from tasks.rloo import rloo
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.made.tiny_group import config
from tests.made.tiny_ppo import files
from tests.tasks.test_ppo import kill_at_random_moments

torch.set_num_threads(1)
COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CHANGES = {"updates": 2, "micro_rows": 4, "minibatches": 1, "radar_prompts": 3, "radar_every": 1, "record": [2]}
STAGES = {"grpo": grpo, "rloo": rloo}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages read."""
    folder = tmp_path_factory.mktemp("artifacts")
    base = tiny_decoders.tiny_base(folder / "base/decoder")
    instruct = tiny_rlhf.whole(base, folder / "merged/instruct", seed=3)
    tiny_rlhf.reward_adapter(instruct, folder / "adapters/reward")
    tiny_rlhf.prompts(instruct, folder / "encoded/preferences", ("train", "validation"))
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(folder / "base/encoder"), folder / "merged/gold")
    return folder


def run(method: str, artifacts: Path, folder: Path, **changes: object) -> tuple[dict, Path]:
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    section = config(method, **{**CHANGES, **changes})
    return STAGES[method](section, COMPUTE, artifacts, folder / "out", checkpoints), folder / "out"


@pytest.fixture(scope="module")
def done(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    return run("grpo", artifacts, tmp_path_factory.mktemp("grpo"), keep="gold")


def test_a_reward_model_in_a_folder_of_its_own_pays_what_the_adapter_pays(
    artifacts: Path, done: tuple[dict, Path], tmp_path: Path
) -> None:
    tiny_rlhf.reward_merged(artifacts / "merged/instruct", artifacts / "adapters/reward", tmp_path / "theirs")
    card, _ = run("grpo", artifacts, tmp_path, keep="gold", score=f"model:{tmp_path / 'theirs'}")
    for own, same in zip(card["history"], done[0]["history"], strict=True):
        assert own["score"] == pytest.approx(same["score"], abs=1e-3)


def test_the_folder_is_an_adapter_and_has_no_value_function(artifacts: Path, done: tuple[dict, Path]) -> None:
    card, out = done
    written = json.loads((out / "ajuste.json").read_text())
    assert written == rounded({key: card[key] for key in written}) and written["method"] == "grpo"
    names = {"history.jsonl", "radar.json", "samples.jsonl", "alarms.json", "flight/update-0002.json"}
    assert names <= files(out).keys() and "value.safetensors" not in files(out)
    recorded = load_file(out / "flight/update-0002.safetensors")
    assert not {"values", "returns", "value_mask"} & recorded.keys() and {"flat", "betas"} <= recorded.keys()
    assert decoder.load(out, artifacts / "merged/instruct")[0] is not None
    assert {"gold_gain", "gold_gain_low", "proxy_gain"} <= written["validation"].keys()
    assert "2 updates, kept" in said(card) and "gold" in said(card)


@pytest.mark.slow
def test_twice_the_same_bytes_and_a_killed_run_goes_on_to_them(
    artifacts: Path, done: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real, learnt = policy.loop.learn, []

    def dies(*args: object) -> object:
        learnt.append(1)
        if len(learnt) == 2:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(policy.loop, "learn", dies)
        run("grpo", artifacts, tmp_path, keep="gold")
    grpo(config("grpo", **CHANGES, keep="gold"), COMPUTE, artifacts, tmp_path / "out", tmp_path / "checkpoints")
    assert files(tmp_path / "out") == files(done[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_kill_9_at_random_moments_changes_no_byte(artifacts: Path, tmp_path: Path, method: str) -> None:
    kill_at_random_moments(artifacts, tmp_path, method, 4)


@pytest.mark.parametrize("method", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_rules_need_no_reward_model_no_gold_and_no_preferences(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Only the base is there; prompts and rules are the project's own."""
    monkeypatch.chdir(ROOT)
    built: list[OneBase] = []
    real = OneBase.build.__func__
    monkeypatch.setattr(OneBase, "build", classmethod(lambda *args: built.append(real(*args)) or built[-1]))
    (tmp_path / "artifacts/merged").mkdir(parents=True)
    shutil.copytree(artifacts / "merged/instruct", tmp_path / "artifacts/merged/instruct")
    card, out = run(method, tmp_path / "artifacts", tmp_path, score="rules", record=[1])
    (one,) = built
    assert one.reward_head is None and one.value_head is None
    assert not any(part in name for name, _ in one.named_parameters() for part in (".reward.", ".value."))
    assert set(card["validation"]) == {"update", "kl", "proxy", "proxy_gain", "proxy_gain_low", "proxy_gain_high"}
    assert card["validation"]["update"] == 2 and "gold" not in said(card)
    radar = json.loads((out / "radar.json").read_text())
    assert all("gold" not in row and 0 <= row["proxy"]["value"] <= 1 for row in radar)
    asked = recorder.read(out, 1).episodes
    assert set(asked.scores.tolist()) <= {0.0, 1.0} and asked.prompts[0] == asked.prompts[3] != asked.prompts[4]


def test_a_score_of_ones_own_needs_no_reward_model(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def words(prompts, responses):\n    return [len(text.split()) for text in responses]\n")
    for part in ("merged/instruct", "merged/gold", "encoded/preferences"):
        Path("artifacts", part).parent.mkdir(parents=True, exist_ok=True)
        Path("artifacts", part).symlink_to(artifacts / part)
    card, out = run("rloo", Path("artifacts"), tmp_path, score="mine.py:words", record=[1])
    episodes = recorder.read(out, 1).episodes
    assert episodes.scores.tolist() == [float(int(x)) for x in episodes.scores] and episodes.scores.max() > 1
    assert {"gold", "proxy"} <= card["validation"].keys() and card["method"] == "rloo"


def test_what_is_missing_is_named(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    tiny_decoders.tiny_adapter(artifacts / "base/decoder", tmp_path / "merged/instruct", "bottleneck")
    with pytest.raises(UsageError, match="holds an adapter, and GRPO needs a whole model: set `instruct.method`"):
        run("grpo", tmp_path, tmp_path)
    shutil.rmtree(tmp_path / "merged/instruct")
    shutil.rmtree(tmp_path / "checkpoints")
    tiny_rlhf.whole(artifacts / "base/decoder", tmp_path / "merged/instruct", seed=9)
    with pytest.raises(UsageError, match="^grpo: .*adapters/reward.* is missing"):
        run("grpo", tmp_path, tmp_path)


@pytest.mark.parametrize("method", STAGES)
def test_explain_in_the_terminal_and_as_a_page(
    done: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    result = CliRunner().invoke(app, ["explain", method, "--update", "2", "--rows", "1", "--folder", str(done[1])])
    assert result.exit_code == 0, result.output
    assert "groups without variance" in result.output and "advantage" in result.output
    assert "value" not in result.output and "episode" in result.output
    assert f"<title>{method.upper()}, update 2</title>" in Path(f"reports/{method}-2.html").read_text()
    result = CliRunner().invoke(app, ["explain", method, "--update", "2"])
    assert f"run stage `{method}` first (`ajuste study grpo` does)" in str(result.exception)
