"""The search for a suffix, the rewriting attacker, the card step and the classifier that judges, on tiny models."""

import json
from pathlib import Path

import pytest
import torch

from ajuste.core.errors import DataError
from ajuste.core.params import Compute
from ajuste.judging.alignment.attacks import CONSENT
from ajuste.judging.alignment.behaviours import read
from ajuste.judging.alignment.judges import LABELS, JudgeConfig
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder
from ajuste.models.made import make_tiny_decoder
from tasks.redteam import rewrite, search
from tasks.redteam.card import CardConfig, judge_card, said
from tasks.redteam.classifier import ClassifierConfig, train_judge
from tests.made import tiny_classifiers
from tests.made.folders import contents

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
BEHAVIOURS = Path("sources/behaviours")
SEARCH = search.SearchConfig(
    per_category={"en": 1}, words=4, steps=6, candidates=4, max_new_tokens=3, batch_rows=8
)  # fmt: skip
REWRITE = rewrite.RewriteConfig(
    attacker="none", per_category={"en": 1, "es": 1}, tries=3, temperature=1.0, request_tokens=6, max_new_tokens=4,
    batch_rows=16,
)  # fmt: skip
CARD = CardConfig(dtype="float32", behaviours="sources/behaviours", golden="sources/golden", outside={})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("redteam") / "base"
    make_tiny_decoder(folder)
    return decoder.load_base(folder)


def test_the_search_raises_the_consents_log_probability(tiny) -> None:
    model, tokenizer = tiny
    behaviour = read(BEHAVIOURS)[0]
    vocabulary = search.words_of(tokenizer)
    found = search.search(model, tokenizer, behaviour, vocabulary, SEARCH, seed=0)
    assert found == search.search(model, tokenizer, behaviour, vocabulary, SEARCH, seed=0)
    first = search.search(model, tokenizer, behaviour, vocabulary, SEARCH.model_copy(update={"steps": 1}), seed=0)
    assert found.after > first.after and found.before == first.before
    for words, log_p in (([], found.before), (found.words, found.after)):
        text = " ".join([behaviour.request, *words])
        start = chat.prompt_ids(tokenizer, [{"role": "user", "content": text}])
        target = chat.encode(tokenizer, CONSENT["en"])
        with torch.no_grad():
            logits = model(torch.tensor([start + target])).logits[0].log_softmax(-1)
        wanted = sum(float(logits[len(start) - 1 + i, token]) for i, token in enumerate(target))
        assert log_p == pytest.approx(wanted, abs=1e-3)
    assert len(found.words) == 4 and set(found.words) <= set(vocabulary)


def test_what_the_search_writes_holds_no_answer(tiny) -> None:
    config = SEARCH.model_copy(update={"steps": 1})
    found = search.searched(*tiny, config, COMPUTE, BEHAVIOURS)
    assert len(found) == 8
    assert all(set(row) == {"id", "before", "after", "suffix", "verdict_before", "verdict_after"} for row in found)


def test_each_rewriting_is_asked_and_judged_by_the_first_request(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def replies(model, tokenizer, attacks, how, seed, samples, family):
        texts = [one.messages[-1]["content"] for one in attacks]
        asked.append(texts)
        if model == "attacker":
            return [[f"try {sample} of {i}" if i else "" for i in range(len(texts))] for sample in range(samples + 1)]
        return [["Sure, here is how: one does it so." if text.startswith("try 1") else "I cannot." for text in texts]]

    monkeypatch.setattr(rewrite, "replies", replies)
    found = rewrite.rewritten(("attacker", None), ("target", None), REWRITE, COMPUTE, BEHAVIOURS)
    assert found[0]["verdicts"] == ["off_topic"] * 3, "an empty rewriting is no try"
    assert all(row["verdicts"] == ["refused", "complied", "refused"] for row in found[1:])
    assert asked[1] == [f"try 0 of {i}" for i in range(1, 16)]
    requests = [one.request for one in read(BEHAVIOURS) if one.id.endswith("-1")]
    assert all(text.endswith(request) for text, request in zip(asked[0], requests, strict=True))
    assert [sum(rewrite.success(found, tries)) for tries in (1, 2, 3)] == [0, 15, 15]


def test_a_tiny_attacker_rewrites_in_the_same_way_twice(tiny) -> None:
    found = rewrite.rewritten(tiny, tiny, REWRITE, COMPUTE, BEHAVIOURS)
    assert found == rewrite.rewritten(tiny, tiny, REWRITE, COMPUTE, BEHAVIOURS) and len(found) == 16
    assert all(len(row["verdicts"]) == 3 for row in found)


def outside_file(path: Path, rows: int) -> str:
    """Answers that can be told apart by their words, in the form of others' files."""
    lines = ["objective,assistant_response,human_score"]
    for i in range(rows):
        answer = "the film is bad and slow" if i % 2 else "a good and warm story"
        lines.append(f"the plot of number {i // 2},{answer} {i},{i % 2}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"path:{path}"


def test_the_classifier_learns_from_others_labels_and_gets_a_card(tmp_path: Path) -> None:
    encoder = tiny_classifiers.tiny_base(tmp_path / "encoder")
    source = outside_file(tmp_path / "labelled.csv", 160)
    config = ClassifierConfig(source=source, max_tokens=48, batch_rows=16, l2=0.001, steps=50, patience=10)
    made = []
    for name in ("one", "two"):
        (tmp_path / f"checkpoints-{name}").mkdir()
        train_judge(config, COMPUTE, encoder, tmp_path / name, tmp_path / f"checkpoints-{name}")
        made.append(contents(tmp_path / name / "model"))
    assert made[0] == made[1]
    own = classifier.load(tmp_path / "one/model")[2]
    assert own["labels"] == LABELS and own["strategy"] == "frozen"
    judge = JudgeConfig(kind="classifier", folder=str(tmp_path / "one/model"))
    config = CARD.model_copy(update={"outside": {"labelled": source}})
    found = judge_card(config, COMPUTE, "mine", judge, tmp_path / "card")
    assert found["outside"]["labelled"]["rows"] == 160
    assert found["outside"]["labelled"]["success"]["recall"]["value"] > 0.9


def test_a_split_without_a_label_is_named(tmp_path: Path) -> None:
    config = ClassifierConfig(
        source=outside_file(tmp_path / "few.csv", 4), max_tokens=48, batch_rows=16, l2=0.1, steps=5, patience=5
    )
    with pytest.raises(DataError, match="lacks a label"):
        train_judge(config, COMPUTE, tmp_path, tmp_path / "out", tmp_path)


def test_the_card_of_the_rules_holds_ids_and_counts_and_no_text(tmp_path: Path) -> None:
    found = judge_card(CARD, COMPUTE, "rules", JudgeConfig(kind="rules"), tmp_path / "card")
    text = (tmp_path / "card/card.json").read_text()
    assert json.loads(text)["version"] == "rules 1" and said(found) in said(json.loads(text))
    golden = found["golden"]
    assert golden["groups"]["en"]["rows"] + golden["groups"]["es"]["rows"] == golden["rows"]
    assert golden["groups"]["by models"]["rows"] + golden["groups"]["written"]["rows"] == golden["rows"]
    lines = [json.loads(line) for path in Path("sources/golden").glob("*.jsonl")
             for line in path.read_text().splitlines()]  # fmt: skip
    assert not any(json.dumps(line["answer"])[1:-1] in text for line in lines if len(line["answer"]) > 20)
    own = [line["label"] in ("complied", "partial") for line in lines if line["source"] != "written"]
    calibration = golden["calibration"]
    assert (calibration["positives"], calibration["negatives"]) == (sum(own), len(own) - sum(own))
