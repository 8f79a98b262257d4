"""`ajuste export` of reward models: plain transformers and plain PEFT give the same rewards."""

import json

import pytest
import torch

from ajuste.cli.models import export
from ajuste.learning.text import chat
from ajuste.models import reward
from tests.cli.registered import install, run
from tests.made import tiny_rlhf
from tests.serving.conftest import FakeRegistry, speakers  # noqa: F401

torch.set_num_threads(1)
TURNS = [{"role": "user", "content": "Write a one-sentence movie review."},
         {"role": "assistant", "content": "A warm, funny film."}]


@pytest.fixture
def folders(speakers, tmp_path_factory, monkeypatch, tmp_path):  # noqa: F811
    """A reward model on the merged assistant: `adapter`, `merged`, `base`."""
    root = tmp_path_factory.mktemp("reward")
    base = speakers["merged"]
    adapter = tiny_rlhf.reward_adapter(base, root / "adapter")
    merged = tiny_rlhf.reward_merged(base, adapter, root / "merged")
    registry = FakeRegistry({"ratings-reward": [merged], "ratings-reward-adapter": [adapter]},
                            {"ratings-reward": {"challenger": 1}})
    resolve = registry.resolve

    def with_base(reference):
        version = resolve(reference)
        version.tags["base_version"] = "assistant/4"
        return version

    registry.resolve = with_base
    install(monkeypatch, registry, tmp_path)
    return {"base": base, "adapter": adapter, "merged": merged}


@pytest.mark.parametrize("reference", ["ratings-reward@challenger", "ratings-reward-adapter/1"])
def test_the_printed_lines_give_our_own_reward(reference, folders, tmp_path, capsys):
    run(export.command, reference, tmp_path / "out")
    said = capsys.readouterr().out
    assert said.startswith(f"{reference.partition('@')[0].partition('/')[0]} version 1 (lora")
    lines = said.split("\n\n", 1)[1].replace('"BASE"', f'"{folders["base"]}"')
    values: dict = {}
    exec(lines, values)
    model, tokenizer, card = reward.load(folders["merged"])
    row = [token for ids, _ in chat.segments(tokenizer, TURNS) for token in ids]
    assert values["tokenizer"](values["text"], add_special_tokens=False)["input_ids"] == row
    assert values["reward"] == pytest.approx(reward.score(model, [row]).item(), abs=1e-4) and card["bias"] != 0
    assert ("`ajuste export assistant/4 BASE` writes it" in said) == ("adapter" in reference)
    exported = json.loads((tmp_path / "out/exported.json").read_text())
    assert exported["strategy"] == "lora" and exported["base"]["id"].startswith("tiny")
