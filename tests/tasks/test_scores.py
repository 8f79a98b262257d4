"""What responses are paid for: rules on their own prompts, a function of the user's own, and what is wrong with one."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml
from ajuste.judging.prompts import read_prompts
from ajuste.learning.text import chat
from ajuste.models.folder import load_tokenizer
from ajuste.models.one_base import OneBase, Settings
from tasks.rl.scores import kinds as scores
from tasks.rl.scores import practice
from tasks.rl.scores.given import by_model
from tests.made import tiny_decoders, tiny_rlhf

SOURCES = ROOT / "sources/rules"


@pytest.fixture(scope="module")
def tokenizer(base: Path):
    return load_tokenizer(base)


def batch(tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses and mask of these texts, each with its end of turn."""
    end = chat.end_of_turn(tokenizer)[0]
    rows = [[*chat.encode(tokenizer, text), end] for text in texts]
    width = max(map(len, rows))
    return (torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows]))  # fmt: skip


# --- rules ------------------------------------------------------------------------------------------------------------


def test_the_projects_own_prompts_have_topics_of_their_own_and_are_not_those_of_the_evaluation() -> None:
    splits = {split: practice.read(SOURCES, split) for split in ("train", "validation", "test")}
    assert {split: len(some) for split, some in splits.items()} == {"train": 336, "validation": 56, "test": 336}
    every = [one.prompt for some in splits.values() for one in some]
    assert len(set(every)) == len(every) and not any(practice.PLACE in prompt for prompt in every)
    assert not {one.prompt for one in read_prompts(ROOT / "sources/prompts")} & set(every)
    first = splits["test"][0]
    assert (first.id, first.kind, first.topic) == ("bullets-coffee", "bullets", "coffee") and "coffee" in first.prompt


def test_a_response_is_paid_the_share_of_its_own_prompts_rules(tokenizer, tmp_path: Path) -> None:
    (tmp_path / practice.FILE).write_text("""
asked:
  - {id: two, prompt: "Say {topic} quietly and briefly.", rules: [{rule: lowercase}, {rule: words, max: 2}]}
  - {id: one, prompt: "Name {topic}.", rules: [{rule: include, words: [a film]}]}
topics: {train: [rain], validation: [sun], test: [wind]}
""")
    asked = practice.read(tmp_path, "train")
    prompts = [chat.prompt_ids(tokenizer, [{"role": "user", "content": one.prompt}]) for one in asked]
    score = scores.by_rules(asked, prompts, tokenizer)
    said = ["the film", "the film is a story", "it is a film", "it is good"]
    found = score([prompts[0], prompts[0], prompts[1], prompts[1]], *batch(tokenizer, said))
    assert found.tolist() == [1.0, 0.5, 1.0, 0.0]


@pytest.mark.parametrize(("text", "said"), [
    ("asked: []\ntopics: {train: [a], validation: [b], test: [c]}", "`asked`: List should have at least 1 item"),
    ("asked: [{id: a, prompt: 'x {topic}', rules: []}]\ntopics: {train: [a], validation: [b], test: [c]}",
     "`asked.0.rules`: List should have at least 1 item"),
    ("asked: [{id: a, prompt: x, rules: [{rule: lowercase}]}]\ntopics: {train: [a], validation: [b], test: [c]}",
     "prompt `a` must have {topic} once"),
    ("asked: [{id: a, prompt: '{topic}', rules: [{rule: lowercase}]}]\ntopics: {train: [a], validation: [b]}",
     "topics has the lists train, validation and test"),
    ("asked: [{id: a, prompt: '{topic}', rules: [{rule: lowercase}]}]\ntopics: {train: [a, b], validation: [B], test: "
     "[c]}", "topic `b` stands twice: a split has its topics to itself"),
    ("asked: [{id: a, prompt: '{topic}', rules: [{rule: lowercase}]}, {id: a, prompt: 'x {topic}', rules: [{rule: "
     "lowercase}]}]\ntopics: {train: [a], validation: [b], test: [c]}", "id `a` stands twice"),
])  # fmt: skip
def test_a_file_of_prompts_that_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / practice.FILE).write_text(text)
    with pytest.raises(UsageError) as caught:
        practice.read(tmp_path, "train")
    assert said in str(caught.value) and practice.FILE in str(caught.value) and "\n" not in str(caught.value)


# --- a function of one's own ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "repository").mkdir()
    (tmp_path / "outside.py").write_text("def f(prompts, responses):\n    return [0.0] * len(responses)\n")
    (tmp_path / "repository/mine.py").write_text("""
import math
import torch
NUMBER = 3
def seen(prompts, responses):
    return [len(prompt) * 100 + len(response) for prompt, response in zip(prompts, responses)]
def tensor(prompts, responses):
    return torch.arange(len(responses))
def short(prompts, responses):
    return [1.0]
def square(prompts, responses):
    return [[1.0] * len(responses)] * len(responses)
def nan(prompts, responses):
    return [1.0, math.nan, 2.0][: len(responses)]
def none(prompts, responses):
    return None
def fails(prompts, responses):
    raise KeyError("a\\nb")
""")
    (tmp_path / "repository/broken.py").write_text("import does_not_exist\n")
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path


def test_it_reads_texts_and_gives_a_number_a_response(project: Path, tokenizer) -> None:
    prompts, said = [[5, 9, 30], [5, 9]], ["the film is good", "it is"]
    responses, mask = batch(tokenizer, said)
    found = scores.own("mine.py:seen", tokenizer)(prompts, responses, mask)
    texts = [len(tokenizer.decode(prompt)) * 100 + len(text) for prompt, text in zip(prompts, said, strict=True)]
    assert found.dtype == torch.float32 and found.tolist() == texts
    assert scores.own("mine.py:tensor", tokenizer)(prompts, responses, mask).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("text", "said"), [
    ("../outside.py:f", "../outside.py is outside of the repository repository/: copy it to sources/scores/"),
    ("missing.py:f", "there is no file missing.py"),
    ("mine.py:other", "mine.py has no function `other`"),
    ("mine.py:NUMBER", "mine.py has no function `NUMBER`"),
    ("broken.py:f", "broken.py cannot be read: ModuleNotFoundError: No module named 'does_not_exist'"),
])  # fmt: skip
def test_what_cannot_be_called_is_refused_before_anything_runs(project: Path, tokenizer, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        scores.own(text, tokenizer)
    assert str(caught.value) == f"score {text}: {said}"


@pytest.mark.parametrize(("name", "said"), [
    ("short", "gave shape [1] for 3 responses: return one number for each"),
    ("square", "gave shape [3, 3] for 3 responses: return one number for each"),
    ("nan", "gave nan for response 1: return finite numbers"),
    ("fails", "failed: KeyError: 'a\\nb'"),
])  # fmt: skip
def test_what_is_no_score_is_one_line(project: Path, tokenizer, name: str, said: str) -> None:
    score = scores.own(f"mine.py:{name}", tokenizer)
    with pytest.raises(DataError) as caught:
        score([[5], [6], [7]], *batch(tokenizer, ["a", "a film", "the"]))
    assert str(caught.value) == f"score mine.py:{name} {said}"


def test_none_is_no_score(project: Path, tokenizer) -> None:
    with pytest.raises(DataError, match=r"^score mine.py:none failed: \w+: .*NoneType"):
        scores.own("mine.py:none", tokenizer)([[5]], *batch(tokenizer, ["a"]))


def test_the_example_and_the_words_of_the_key(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    monkeypatch.chdir(ROOT)
    assert scores.load("sources/scores/brief.py:brief")([""] * 3, ["One two.", "one two", ""]) == pytest.approx(
        [1.9, 0.9, 1.0])  # fmt: skip
    for right in ("reward", "rules", "sources/scores/brief.py:brief", "model:../theirs"):
        assert re.match(scores.PATTERN, right)
    for wrong in ("rewards", "brief.py", "brief:brief", "brief.py:", "a.py:b:c", "a.py:1x", "model:"):
        assert not re.match(scores.PATTERN, wrong), wrong
    assert read_yaml(ROOT / "params.yaml")["ppo"]["score"] == scores.REWARD


# --- a reward model of one's own --------------------------------------------------------------------------------------

CPU = (torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """instruct, the SFT model; adapter and merged, a reward model on it."""
    folder = tmp_path_factory.mktemp("rewards")
    instruct = tiny_rlhf.whole(tiny_decoders.tiny_base(folder / "base"), folder / "instruct", seed=3)
    tiny_rlhf.reward_merged(instruct, tiny_rlhf.reward_adapter(instruct, folder / "adapter"), folder / "merged")
    return folder


def test_a_whole_reward_model_scores_as_its_adapter_on_the_one_base_does(rewards: Path) -> None:
    theirs = load_tokenizer(rewards / "instruct")
    one = OneBase.build(rewards / "instruct", rewards / "adapter", Settings(r=4, alpha=8), torch.float32)
    prompts = [chat.prompt_ids(theirs, [{"role": "user", "content": text}]) for text in ("a film", "why is it dull")]
    answered = batch(theirs, ["it is good", "the story of a family"])
    found = by_model(f"model:{rewards / 'merged'}", theirs, *CPU)(prompts, *answered)
    assert found.tolist() == pytest.approx(one.scores(prompts, *answered).tolist(), abs=1e-4)
    assert abs(found[0] - found[1]) > 0.01


def test_a_folder_of_transformers_without_a_card_scores_as_transformers_does(rewards: Path, tmp_path: Path) -> None:
    shutil.copytree(rewards / "merged", tmp_path / "plain")
    (tmp_path / "plain/ajuste.json").unlink()
    theirs = load_tokenizer(rewards / "instruct")
    rows, mask = batch(theirs, ["it is good", "the story"])
    found = by_model(f"model:{tmp_path / 'plain'}", theirs, *CPU)([[5, 6], [7]], rows, mask)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    for i, prompt in enumerate(([5, 6], [7])):
        ids = torch.tensor([prompt + rows[i][mask[i]].tolist()])
        assert found[i].item() == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-4)


def test_what_is_no_reward_model_of_the_policys_tokens_is_refused(rewards: Path, tmp_path: Path) -> None:
    theirs = load_tokenizer(rewards / "instruct")
    for folder, said in (
        ("adapter", "has no whole model in config.json and model.safetensors: name a merged version"),
        ("instruct", "is no reward model: its weights hold no `score.weight` of one row"),
        ("missing", "has no whole model"),
    ):
        with pytest.raises(UsageError, match=said):
            scores.checked(f"model:{rewards / folder}")
    shutil.copytree(rewards / "merged", tmp_path / "other")
    other = load_tokenizer(tmp_path / "other")
    other.add_tokens(["unheard"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="its tokenizer is another than the policy's, so it would read other texts"):
        by_model(f"model:{tmp_path / 'other'}", theirs, *CPU)
    other = load_tokenizer(rewards / "merged")
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="its chat template is another than the policy's"):
        by_model(f"model:{tmp_path / 'other'}", theirs, *CPU)
