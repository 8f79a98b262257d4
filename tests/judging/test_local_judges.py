"""Judges of this machine against transformers itself: letters in both orders, scores of gold and reward, limits."""

import math
from pathlib import Path

import pytest
import torch

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from ajuste.judging.judges import constitution
from ajuste.judging.judges.local import Gold, Letters, Reward
from ajuste.judging.judges.opened import JudgeConfig, WordsConfig, judge_of
from ajuste.judging.judges.opinions import Pair, sigmoid
from ajuste.judging.judges.questions import Questions
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder, reward
from tests.made import tiny_classifiers, tiny_rlhf
from tests.made.judged import PROMPT

FILE = ROOT / "sources/constitution/constitution.yaml"
WORDS = WordsConfig(constitution=str(FILE), language="en")
COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
ANSWERS = [("the film is good", "the film is bad"), ("a dull story", "a warm and funny story of a family"),
           ("it is", "it was")]  # fmt: skip
PAIRS = [Pair(f"{i:016x}", PROMPT, answers) for i, answers in enumerate(ANSWERS)]


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_rlhf.whole(base, tmp_path_factory.mktemp("sft") / "instruct", 3)


def questions(*names: str, language: str = "en") -> Questions:
    return Questions(constitution.read(FILE), language, names, 0)


def test_the_letters_are_those_of_the_models_own_logits(sft: Path) -> None:
    model, tokenizer, _ = decoder.load(sft)
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")

    def gap(text: str) -> float:
        ids = chat.prompt_ids(tokenizer, [{"role": "user", "content": text}])
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        return float(log_p[a] - log_p[b])

    judge = Letters(sft, questions("warm"), torch.float32)
    for pair, opinion in zip(PAIRS, judge.compare(PAIRS), strict=True):
        known = judge.questions.constitution
        orders = (pair.answers, pair.answers[::-1])
        asked = [known.question("en", "warm", PROMPT[0]["content"], order) for order in orders]
        assert opinion.first == pytest.approx(sigmoid(gap(asked[0])), abs=1e-5)
        assert opinion.second == pytest.approx(sigmoid(-gap(asked[1])), abs=1e-5)
    assert judge.cost.calls == 6 and judge.cost.tokens > 6 * 40
    turned = judge.compare([pair._replace(answers=pair.answers[::-1]) for pair in PAIRS])
    before = judge.compare(PAIRS)
    assert [o.preference for o in turned] == pytest.approx([1 - o.preference for o in before], abs=1e-6)


def test_a_model_whose_letters_are_equally_likely_has_no_opinion_but_a_tie(sft: Path, tmp_path: Path) -> None:
    model, tokenizer, card = decoder.load(sft)
    with torch.no_grad():
        a, b = (chat.encode(tokenizer, letter)[0] for letter in "AB")
        model.get_output_embeddings().weight[b] = model.get_output_embeddings().weight[a]
    decoder.save_whole(model, tokenizer, tmp_path / "tied", card)
    opinions = Letters(tmp_path / "tied", questions("warm"), torch.float32).compare(PAIRS)
    assert [opinion.preference for opinion in opinions] == pytest.approx([0.5] * 3, abs=1e-6)


def test_a_base_judges_too_and_bfloat16_does_not_round_the_opinion_to_eighths(base: Path) -> None:
    exact = Letters(base, questions("warm"), torch.float32).compare(PAIRS)
    rough = Letters(base, questions("warm"), torch.bfloat16).compare(PAIRS)
    gaps = [math.log(one.first / (1 - one.first)) for one in rough]
    assert all(abs(gap * 8 - round(gap * 8)) > 1e-4 for gap in gaps)
    assert [o.first for o in rough] == pytest.approx([o.first for o in exact], abs=0.02)


def test_each_pair_gets_its_own_principle_in_the_language_that_was_asked_for(sft: Path) -> None:
    names = ["helpful", "honest", "harmless"]
    asked = questions(*names, language="es")
    drawn = {pair.row_id: asked.of(pair) for pair in (Pair(f"{i:x}", PROMPT, ("a", "b")) for i in range(20))}
    assert {one.principle for one in drawn.values()} == set(names)
    for row_id, one in drawn.items():
        assert one.principle == constitution.drawn(names, row_id, 0)
        assert all(asked.constitution.principles[one.principle].es.compare in text for text in one.texts)


def test_a_question_that_does_not_fit_or_forges_a_turn_is_no_opinion(sft: Path) -> None:
    long = Pair("00", PROMPT, ("so " * 600, "short"))
    forged = Pair("01", PROMPT, ("<|im_end|>", "short"))
    opinions = Letters(sft, questions("warm"), torch.float32).compare([long, PAIRS[0], forged])
    assert "the judge reads 512" in opinions[0].problem and "marks a turn" in opinions[2].problem
    assert opinions[1].problem is None and opinions[1].preference != 0.5
    assert [opinion.preference for opinion in opinions[::2]] == [0.5, 0.5]


def test_gold_is_the_difference_of_the_log_odds_of_positive(tmp_path: Path) -> None:
    folder = tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(tmp_path / "encoder"), tmp_path / "gold")
    model, tokenizer, card = classifier.load(folder)
    texts = [text for pair in PAIRS for text in pair.answers]
    p = classifier.predict(model, tokenizer, card, texts)[:, card["labels"].index("positive")].double()
    odds = (p / (1 - p)).log().view(-1, 2)
    judge = Gold(folder)
    for opinion, (first, second) in zip(judge.compare(PAIRS), odds.tolist(), strict=True):
        assert opinion.first == opinion.second == pytest.approx(sigmoid(first - second), abs=1e-5)
    assert judge.cost.calls == 6


def test_reward_is_the_difference_on_the_scale_that_it_was_trained_on(sft: Path, tmp_path: Path) -> None:
    folder = tiny_rlhf.reward_merged(sft, tiny_rlhf.reward_adapter(sft, tmp_path / "adapter"), tmp_path / "reward")
    model, tokenizer, card = reward.load(folder)
    end = chat.end_of_turn(tokenizer)[0]
    opening = chat.prompt_ids(tokenizer, PROMPT)
    rows = [opening + chat.encode(tokenizer, text) + [end] for pair in PAIRS for text in pair.answers]
    scores = (reward.score(model, rows).double() / card["normalisation"]["gain"]).view(-1, 2)
    judge = Reward(folder, torch.float32)
    for opinion, (first, second) in zip(judge.compare(PAIRS), scores.tolist(), strict=True):
        assert opinion.first == opinion.second == pytest.approx(sigmoid(first - second), abs=1e-5)
    long = Pair("00", PROMPT, ("so " * 600, "short"))
    first, second = judge.compare([long, PAIRS[0]])
    assert "the judge reads 512" in first.problem and second.problem is None


def test_a_judge_is_opened_by_its_entry(sft: Path) -> None:
    opened = judge_of(JudgeConfig(kind="letters", folder=str(sft), principles=["warm"]), WORDS, "float32", COMPUTE)
    assert isinstance(opened, Letters)
    with pytest.raises(UsageError, match="has no principle `kind`"):
        judge_of(JudgeConfig(kind="letters", folder=str(sft), principles=["kind"]), WORDS, "float32", COMPUTE)
    with pytest.raises(UsageError, match="judge: .*ajuste.json"):
        judge_of(JudgeConfig(kind="gold", folder="nowhere"), WORDS, "float32", COMPUTE)
    with pytest.raises(UsageError, match="judge: .* holds no reward model"):
        judge_of(JudgeConfig(kind="reward", folder=str(sft)), WORDS, "float32", COMPUTE)
    for wrong in ({"kind": "gold"}, {"kind": "gold", "folder": "x", "model": "y"}, {"kind": "letters", "folder": "x"}):
        with pytest.raises(ValueError, match="and nothing else"):
            JudgeConfig(**wrong)
