"""Stage `ppo` on tiny folders: what it writes, what it refuses, and what `ajuste explain ppo` shows of it."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import peft
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ajuste.cli.main import app
from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.learning.layers import ragged
from ajuste.models import decoder
from ajuste.models.folder import sha256_of
from ajuste.models.one_base import OneBase, Settings
from ajuste.rows.encoded.conversations import read_conversations
from tasks.ppo import ppo
from tasks.rl import explain, recorder
from tasks.rl.policy import halves, ptx_loss, read_prompts, said
from tests.made import tiny_classifiers, tiny_decoders, tiny_rlhf
from tests.made.tiny_ppo import config, files

torch.set_num_threads(1)
COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CHANGES = {"updates": 2, "micro_rows": 4, "radar_prompts": 3, "radar_every": 1, "keep": "gold", "record": [2]}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """What the stage reads."""
    folder = tmp_path_factory.mktemp("artifacts")
    base = tiny_decoders.tiny_base(folder / "base/decoder")
    instruct = tiny_rlhf.whole(base, folder / "merged/instruct", seed=3)
    tiny_rlhf.reward_adapter(instruct, folder / "adapters/reward")
    tiny_rlhf.prompts(instruct, folder / "encoded/preferences", ("train", "validation"))
    tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(folder / "base/encoder"), folder / "merged/gold")
    return folder


@pytest.fixture(scope="module")
def done(artifacts, tmp_path_factory):
    """(card, the out folder) of a run."""
    out, checkpoints = (tmp_path_factory.mktemp(name) for name in ("out", "checkpoints"))
    return ppo(config(**CHANGES), COMPUTE, artifacts, out, checkpoints), out


def test_the_folder_is_an_adapter_that_any_tool_loads(artifacts, done):
    card, out = done
    base = artifacts / "merged/instruct"
    written = json.loads((out / "ajuste.json").read_text())
    assert written == rounded({key: card[key] for key in written})
    assert written["method"] == written["strategy"] == "ppo" and written["mergeable"] and written["kind"] == "decoder"
    assert written["base"]["sha256"] == sha256_of(base / "model.safetensors")
    assert written["parameters"]["trainable"] == sum(
        x.numel() for x in load_file(out / "adapter_model.safetensors").values()
    )
    ours, _, _ = decoder.load(out, base)
    plain = peft.PeftModel.from_pretrained(decoder.load_base(base)[0], out)
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, plain(ids).logits)
        assert not torch.equal(ours(ids).logits, decoder.load_base(base)[0](ids).logits)
    assert set(load_file(out / "value.safetensors")) == {"value_head.weight", "value_head.bias"}
    names = {"history.jsonl", "radar.json", "samples.jsonl", "alarms.json", "flight/update-0002.json"}
    assert names <= files(out).keys()


def test_radar_and_card_say_what_the_kept_update_gained(done):
    card, out = done
    radar = json.loads((out / "radar.json").read_text())
    assert [row["update"] for row in radar] == [0, 1, 2] and "rows" not in radar[0]
    (kept,) = [row for row in radar if row["kept"]]
    assert kept["update"] == card["validation"]["update"] > 0
    assert kept["gold"]["value"] == max(row["gold"]["value"] for row in radar[1:])
    first = radar[0]
    assert first["kl"] == first["sqrt_kl"] == 0 and first["gold_gain"] == {"value": 0, "low": 0, "high": 0}
    for name in ("proxy", "gold"):
        gain = kept[f"{name}_gain"]
        assert gain["value"] == pytest.approx(kept[name]["value"] - first[name]["value"], abs=1e-5)
        assert gain["low"] <= gain["value"] <= gain["high"]
        judged = card["validation"]
        assert judged[f"{name}_gain_low"] <= judged[f"{name}_gain"] <= judged[f"{name}_gain_high"]
        assert rounded(judged[name]) != kept[name]["value"], "other prompts judge than those that chose"
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 9 and all(sample["prefill"] in " ".join(tiny_rlhf.SNIPPETS) for sample in samples)
    assert "kept" in said(card) and "KL" in said(card)


def test_prompts_that_choose_an_update_do_not_judge_it(artifacts):
    prompts = read_prompts(artifacts / "encoded/preferences", "train", 1000)
    first, second = halves(prompts)
    assert first["row_id"] + second["row_id"] == prompts["row_id"] and len(first["row_id"]) == len(second["row_id"])
    assert len(second["prefill"]) == len(second["prompt_ids"]) == len(second["row_id"])
    odd = {name: rows[:3] for name, rows in prompts.items()}
    assert [len(part["row_id"]) for part in halves(odd)] == [2, 1]
    alone = {name: rows[:1] for name, rows in prompts.items()}
    assert halves(alone) == (alone, alone), "of one prompt nothing else is there to judge"


def test_twice_the_same_bytes_and_no_path_inside(artifacts, done, tmp_path):
    _, out = done
    (tmp_path / "c").mkdir()
    ppo(config(**CHANGES), COMPUTE, artifacts, tmp_path / "out", tmp_path / "c")
    found = files(tmp_path / "out")
    assert found == files(out)
    assert not any(str(artifacts).encode() in content for content in found.values())


def test_ptx_reads_instructions_and_changes_the_result(artifacts, done, tmp_path):
    both = tmp_path / "artifacts"
    shutil.copytree(artifacts, both)
    tiny_decoders.encoded(both / "merged/instruct", both / "encoded/instructions", ("train",))
    (tmp_path / "c").mkdir()
    card = ppo(config(**CHANGES, ptx=1.0), COMPUTE, both, tmp_path / "out", tmp_path / "c")
    assert all(row["ptx_loss"] > 1 for row in card["history"])
    assert card["history"][0]["score"] == done[0]["history"][0]["score"]
    rows = read_conversations(both / "encoded/instructions", "train")
    first = np.random.default_rng([0, 0]).permutation(len(rows))[:2]
    model = ragged.attach(decoder.load_base(both / "merged/instruct")[0])
    expected = ragged.response_loss(model, ragged.collate([rows[int(i)] for i in first]))
    one = OneBase(decoder.load_base(both / "merged/instruct")[0], Settings())
    loss = ptx_loss(one, both / "encoded/instructions", 0)
    total, items = loss(range(2))
    assert total.item() / items == pytest.approx(expected.item(), rel=1e-5)
    changed, plain = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", done[1]))
    assert any(not torch.equal(changed[name], plain[name]) for name in plain)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(artifacts: Path, folder: Path) -> str:
    """The one line that says why; nothing was written."""
    (folder / "c").mkdir()
    with pytest.raises(UsageError) as caught:
        ppo(config(**CHANGES), COMPUTE, artifacts, folder / "out", folder / "c")
    assert "\n" not in str(caught.value) and not (folder / "out").exists()
    return str(caught.value)


def linked(artifacts: Path, folder: Path, leave: str) -> Path:
    """The artifacts without one of them."""
    for path in ("merged/instruct", "merged/gold", "adapters/reward", "encoded/preferences"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path != leave:
            (folder / path).symlink_to(artifacts / path)
    return folder


def test_a_base_that_is_an_adapter_is_refused(artifacts, tmp_path):
    other = linked(artifacts, tmp_path / "a", "merged/instruct")
    tiny_decoders.tiny_adapter(artifacts / "base/decoder", other / "merged/instruct", "bottleneck")
    assert "holds an adapter, and PPO needs a whole model: set `instruct.method`" in refused(other, tmp_path)


def test_a_reward_model_of_another_base_is_refused(artifacts, tmp_path):
    other = linked(artifacts, tmp_path / "a", "merged/instruct")
    tiny_rlhf.whole(artifacts / "base/decoder", other / "merged/instruct", seed=9)
    assert re.search("was trained on another base .*: run stage `reward` again", refused(other, tmp_path))


@pytest.mark.parametrize("missing", ["merged/gold", "adapters/reward", "encoded/preferences"])
def test_a_missing_input_is_named(artifacts, tmp_path, missing):
    assert re.search(f"{missing}.* is missing", refused(linked(artifacts, tmp_path / "a", missing), tmp_path))


def test_no_prompt_left_names_the_file_and_the_cure(artifacts):
    encoded = artifacts / "encoded/preferences"
    with pytest.raises(DataError, match=r"prompts_train.parquet: none of its 6 prompts is left.*max_new_tokens"):
        read_prompts(encoded, "train", room=3)
    ids = read_prompts(encoded, "train", 1000)["row_id"]
    assert ids == sorted(ids) and read_prompts(encoded, "train", 1000, 2)["row_id"] == ids[:2]
    assert pyarrow.parquet.read_table(encoded / "prompts_train.parquet")["row_id"].to_pylist() != ids


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_shows_every_token_and_its_numbers_add_up(done):
    _, out = done
    found = explain.read(out, 2)
    flight = recorder.read(out, 2)
    assert len(found.episodes) == 8
    for number, episode in enumerate(found.episodes):
        ids = flight.episodes.responses[number][flight.episodes.mask[number]]
        assert len(episode.tokens) == len(ids)
        assert sum(token.reward for token in episode.tokens) == pytest.approx(episode.paid, abs=1e-4)
        assert sum(token.kl for token in episode.tokens) == pytest.approx(episode.kl, abs=1e-4)
        for t, token in enumerate(episode.tokens):
            assert token.kl == pytest.approx(token.log_prob - token.reference, abs=1e-5)
            assert token.advantage == float(flight.episodes.advantages[number, t])
            assert token.gap == pytest.approx(float((flight.episodes.log_probs - flight.episodes.drawn)[number, t]))
            assert abs(token.gap) < 1e-5 and explain.numbers(token)[-1] in ("+0.000", "-0.000")
            assert token.ratio > 0 and len(explain.numbers(token)) == len(explain.COLUMNS)


def test_explain_in_the_terminal_and_as_a_page(done, tmp_path, monkeypatch):
    _, out = done
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    result = CliRunner().invoke(app, ["explain", "ppo", "--update", "2", "--rows", "1", "--folder", str(out)])
    assert result.exit_code == 0, result.output
    assert "update 2: score" in result.output and "gap to the sampler" in result.output.replace("\n", " ")
    assert "advantage" in result.output and "reports/ppo-2.html" in result.output
    page = Path("reports/ppo-2.html").read_text()
    assert page.count("<h2>episode") == 8 and "http" not in page and "<script" not in page
    first = explain.read(out, 2).episodes[0]
    for token in first.tokens:
        assert f"{token.advantage:+.3f}" in result.output and f"{token.advantage:+.3f}" in page


def test_hostile_tokens_stay_text(done, tmp_path):
    token = explain.Token("<script>\x1b[2J\n", -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.5, True)
    episode = explain.Episode(0, "<b>", "x", 1.0, 0.0, 1.0, True, [token])
    row = json.loads((done[1] / "history.jsonl").read_text().splitlines()[0])
    page = explain.to_html(explain.Explained(1, row, {}, [episode]))
    assert "<script" not in page and "<b>" not in page and "\x1b" not in page
    assert explain.visible(token.text) == "<script>\\x1b[2J\\n" and explain.visible(None) == "(after)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--update", "1"], "update 1 was not recorded: there are 2"),
        (["--update", "2", "--folder", "nowhere"], "run stage `ppo` first"),
        (["--update", "2", "-o", "blocked/page.html"], "cannot write blocked/page.html"),
    ],
)
def test_explain_says_in_one_line_what_is_wrong(done, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("blocked").write_text("")
    folder = [] if "--folder" in arguments else ["--folder", str(done[1])]
    result = CliRunner().invoke(app, ["explain", "ppo", *arguments, *folder])
    assert isinstance(result.exception, UsageError) and said in str(result.exception)


def test_the_step_after_the_end_is_shown_where_it_is_paid():
    """`after_end`: the score stands on a row of its own, with a value and a return and no probability."""
    row = torch.zeros(1, 3)
    episodes = types.SimpleNamespace(
        mask=torch.tensor([[True, True]]), value_mask=torch.tensor([[True, True, True]]), log_probs=row[:, :2],
        new_log_probs=row[:, :2] + 0.5, reference=row[:, :2], kl=row[:, :2], rewards=torch.tensor([[0.0, 0.0, 2.0]]),
        values=row, returns=row + 1, advantages=torch.tensor([[1.0, -1.0]]), drawn=None,
    )  # fmt: skip
    flight = recorder.Flight(episodes, {}, {"clip": 0.2})
    first, second, after = explain._tokens(flight, 0, ["a", "b"])
    assert first.clipped and not second.clipped  # ratio e^0.5: beyond 1.2 where A > 0, on the free side where A < 0
    assert first.gap is None and explain.numbers(first)[-1] == ""  # recorded before the sampler's were kept
    assert after.text is None and after.reward == 2.0 and after.returned == 1.0 and after.ratio is None


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def start_run(artifacts: Path, folder: Path, method: str) -> subprocess.Popen:
    """The stage in a process of its own, when it begins to train."""
    paths = [str(path) for path in (artifacts, folder / "out", folder / "c")]
    command = [sys.executable, "-m", "tests.tasks.ppo_run", *paths, method]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "training\n"
    return process


def kill_at_random_moments(artifacts: Path, tmp_path: Path, method: str, times: int) -> None:
    """No byte of the out and of the last checkpoint is another one than of a run that nobody disturbed."""
    (tmp_path / "calm").mkdir()
    began = time.monotonic()
    process = start_run(artifacts, tmp_path / "calm", method)
    assert process.wait(timeout=300) == 0
    seconds = time.monotonic() - began

    chance, kills, folder = random.Random(11), 0, tmp_path / "killed"
    folder.mkdir()
    while kills < times:
        process = start_run(artifacts, folder, method)
        try:
            process.wait(timeout=chance.uniform(0, seconds / 8))
            shutil.rmtree(folder / "c")  # it ended before the kill: from the start again
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert start_run(artifacts, folder, method).wait(timeout=300) == 0
    assert files(folder / "out") == files(tmp_path / "calm/out")
    states = [files(place / "c/checkpoint-30") for place in (folder, tmp_path / "calm")]
    assert states[0] == states[1]


@pytest.mark.slow
def test_kill_9_at_ten_random_moments_changes_no_byte(artifacts, tmp_path):
    kill_at_random_moments(artifacts, tmp_path, "ppo", 10)
