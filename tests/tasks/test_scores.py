"""What responses are paid for: rules on their own prompts, a function of the user's own, and what is wrong with one."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml
from ajuste.judging.prompts import read_prompts
from ajuste.learning.text import chat
from ajuste.models.folder import load_tokenizer
from ajuste.models.one_base import OneBase, Settings
from tasks.rl.scores import given, practice
from tasks.rl.scores import kinds as scores
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


RULE = "rules: [{rule: lowercase}]"
SPLITS = "topics: {train: [a], validation: [b], test: [c]}"


@pytest.mark.parametrize(("text", "said"), [
    (f"asked: []\n{SPLITS}", "`asked`: List should have at least 1 item after validation, not 0"),
    (f"asked: [{{id: a, prompt: 'x {{topic}}', rules: []}}]\n{SPLITS}",
     "`asked.0.rules`: List should have at least 1 item after validation, not 0"),
    (f"asked: [{{id: a, prompt: x, {RULE}}}]\n{SPLITS}", "prompt `a` must have {topic} once"),
    (f"asked: [{{id: a, prompt: '{{topic}} {{topic}}', {RULE}}}]\n{SPLITS}", "prompt `a` must have {topic} once"),
    (f"asked: [{{id: a, prompt: '{{topic}}', {RULE}}}]\ntopics: {{train: [a], validation: [b]}}",
     "topics has the lists train, validation and test, none of them empty"),
    (f"asked: [{{id: a, prompt: '{{topic}}', {RULE}}}]\ntopics: {{train: [a], validation: [], test: [c]}}",
     "topics has the lists train, validation and test, none of them empty"),
    (f"asked: [{{id: a, prompt: '{{topic}}', {RULE}}}]\ntopics: {{train: [a, Z, b], validation: [B], test: [z]}}",
     "topic `b` stands twice: a split has its topics to itself"),
    (f"asked: [{{id: b, prompt: '{{topic}}', {RULE}}}, {{id: a, prompt: 'x {{topic}}', {RULE}}}, {{id: b, prompt: "
     f"'y {{topic}}', {RULE}}}, {{id: a, prompt: 'z {{topic}}', {RULE}}}]\n{SPLITS}", "id `a` stands twice"),
])  # fmt: skip
def test_a_file_of_prompts_that_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / practice.FILE).write_text(text)
    with pytest.raises(UsageError) as caught:
        practice.read(tmp_path, "train")
    assert str(caught.value) == f"{tmp_path / practice.FILE}: {said}"


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
def last(prompts, responses):
    return [1.0, math.inf, math.nan][: len(responses)]
def fails(prompts, responses):
    raise KeyError("a\\nb")
def talks(prompts, responses):
    raise ValueError("one\\n  two " + 300 * "x")
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
    Path("mine.py").rename("my:own.py")
    assert scores.own("my:own.py:tensor", tokenizer)(prompts, responses, mask).tolist() == [0.0, 1.0]


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
    ("last", "gave inf for response 1: return finite numbers"),
    ("talks", "failed: ValueError: one two " + 192 * "x"),
    ("fails", "failed: KeyError: 'a\\nb'"),
])  # fmt: skip
def test_what_is_no_score_is_one_line(project: Path, tokenizer, name: str, said: str) -> None:
    score = scores.own(f"mine.py:{name}", tokenizer)
    with pytest.raises(DataError) as caught:
        score([[5], [6], [7]], *batch(tokenizer, ["a", "a film", "the"]))
    assert str(caught.value) == f"score mine.py:{name} {said}"


def test_a_score_is_looked_for_before_anything_runs(project: Path) -> None:
    for there in (scores.REWARD, scores.RULES, "mine.py:seen"):
        assert scores.checked(there) is None
    with pytest.raises(UsageError, match="^score mine.py:gone: mine.py has no function `gone`$"):
        scores.checked("mine.py:gone")
    function = scores.load("mine.py:seen")
    assert function.__module__ == "score_mine" and function.__code__.co_filename == str(Path("mine.py").resolve())


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

    def refused(folder: Path) -> str:
        text = f"model:{folder}"
        with pytest.raises(UsageError) as caught:
            by_model(text, theirs, *CPU)
        said = str(caught.value)
        assert said.startswith(f"score {text}: ")
        return said.removeprefix(f"score {text}: ")

    for missing in ("config.json", "model.safetensors"):
        folder = tmp_path / missing
        shutil.copytree(rewards / "merged", folder)
        (folder / missing).unlink()
        no_model = f"{folder} has no whole model in config.json and model.safetensors: name a merged version"
        assert refused(folder) == no_model
    no_head = "is no reward model: its weights hold no `score.weight` of one row"
    assert refused(rewards / "instruct") == f"{rewards / 'instruct'} {no_head}"
    folder = tmp_path / "two"
    shutil.copytree(rewards / "merged", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score.weight": weights["score.weight"].repeat(2, 1)}, folder / "model.safetensors")
    assert refused(folder) == f"{folder} {no_head}"
    shutil.copytree(rewards / "merged", tmp_path / "other")
    other = load_tokenizer(tmp_path / "other")
    other.add_tokens(["unheard"])
    other.save_pretrained(tmp_path / "other")
    assert refused(tmp_path / "other") == (
        "its tokenizer is another than the policy's, so it would read other texts: take one that stands on the same "
        "base, or write a function (<path>.py:<name>)"
    )
    other = load_tokenizer(rewards / "merged")
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other.save_pretrained(tmp_path / "other")
    said = "its chat template is another than the policy's: save the policy's beside it"
    assert refused(tmp_path / "other") == said
    for folder in ("adapter", "missing"):
        with pytest.raises(UsageError, match="has no whole model"):
            scores.checked(f"model:{rewards / folder}")


@pytest.mark.parametrize("card", [True, False])
def test_who_scores_has_the_dtype_asked_for_and_no_dropout(
    card: bool, rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(rewards / "merged", tmp_path / "theirs")
    if not card:
        (tmp_path / "theirs/ajuste.json").unlink()
    theirs, seen = load_tokenizer(rewards / "instruct"), []
    monkeypatch.setattr(given.reward, "score", lambda model, rows: seen.append((model, rows)))
    score = by_model(f"model:{tmp_path / 'theirs'}", theirs, torch.bfloat16, torch.device("cpu"))
    score([[5, 6], [7]], torch.tensor([[8, 9], [10, 0]]), torch.tensor([[True, True], [True, False]]))
    ((model, rows),) = seen
    assert rows == [[5, 6, 8, 9], [7, 10]] and not model.training
    assert {parameter.dtype for name, parameter in model.named_parameters() if "layers" in name} == {torch.bfloat16}
    assert model.config.pad_token_id == given.reward.padding_id(theirs)


def test_a_model_that_cannot_be_read_is_named(rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise ValueError("no such layer")

    monkeypatch.setattr(given, "_loaded", fails)
    text = f"model:{rewards / 'merged'}"
    with pytest.raises(UsageError) as caught:
        by_model(text, load_tokenizer(rewards / "instruct"), *CPU)
    assert str(caught.value) == f"score {text}: no such layer"
