"""tasks/evaluate/instruct.py on tiny models: losses and answers against brute force, the comparison, and refusals."""

import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute
from ajuste.judging.assistant import means, reference_scores, rules_kept, rules_report
from ajuste.judging.prompts import Prompt, ReviewPrompt, read_prompts, read_review_prompt
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import classifier, decoder
from ajuste.models.folder import CARD
from tasks.evaluate.instruct import InstructConfig, Reviews, evaluate_instruct
from tests.made import tiny_classifiers
from tests.made.tiny_decoders import ANSWERED, ASKED, card, encoded, tiny_adapter, tiny_base, tiny_full

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = InstructConfig(
    dtype="float32", bootstrap=200, rows=None, references=4, reviews=3, max_new_tokens=6, batch_rows=3, batch_tokens=64
)
REVIEWS = [("a warm film", 1), ("dull", 0), ("the plot is good", 1), ("very slow", 0), ("not a row of encode", 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, full (a tuned model), encoded, prompts, and what the comparison with a classifier reads."""
    folder = tmp_path_factory.mktemp("files")
    base = tiny_base(folder / "base")
    tiny_full(base, folder / "full")
    encoded(base, folder / "encoded")
    write_prompts(folder)
    encoder = tiny_classifiers.tiny_base(folder / "encoder")
    tiny_classifiers.tiny_full(encoder, folder / "classifier")
    write_reviews(folder)
    return folder


def write_prompts(folder: Path) -> None:
    """The prompts that every answer is asked by, in `folder`/prompts."""
    (folder / "prompts").mkdir()
    (folder / "prompts/open.yaml").write_text('- {id: hello, prompt: "Say hello."}\n')
    (folder / "prompts/verifiable.yaml").write_text(
        '- {id: short, prompt: "One word.", rules: [{rule: words, max: 1}]}\n'
        '- {id: any, prompt: "Anything.", rules: [{rule: words, max: 1000}, {rule: exclude, words: [zebra]}]}\n'
    )
    (folder / "prompts/reviews.yaml").write_text('template: "Is it {labels}? {text}"\n')


def write_reviews(folder: Path) -> None:
    """What the comparison with a classifier reads, in `folder`/validated and `folder`/reviews."""
    for name, rows in (("validated", REVIEWS), ("reviews", REVIEWS[:4])):
        (folder / name).mkdir()
        ids = [f"{9 - i:016x}" for i in range(len(rows))]
        columns = {"row_id": ids, "text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pq.write_table(pa.table(columns), folder / name / "test.parquet")
    (folder / "reviews/labels.json").write_text(json.dumps(tiny_classifiers.LABELS))


def run(files: Path, out: Path, model: str = "full", **changes) -> dict:
    reviews = Reviews(files / changes.pop("judge", "classifier"), files / "validated", files / "reviews")
    config = InstructConfig(**{**CONFIG.model_dump(), **changes})
    return evaluate_instruct(
        config, COMPUTE, files / model, files / "base", files / "encoded", files / "prompts", reviews, out
    )


@torch.no_grad()
def nll(folder: Path, question: str, answer: str) -> tuple[float, int]:
    """-log p of the answer's tokens and its end of turn, in a plain forward of the row alone."""
    model, tokenizer = decoder.load_base(folder)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (prompt, _), (response, _) = chat.segments(tokenizer, turns)
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    log_p = torch.log_softmax(logits.double(), dim=-1).gather(1, torch.tensor(response)[:, None])
    return -float(log_p.sum()), len(response)


@torch.no_grad()
def answer(folder: Path, question: str, limit: int) -> str:
    model, tokenizer = decoder.load_base(folder)
    ids = chat.prompt_ids(tokenizer, [{"role": "user", "content": question}])
    start = len(ids)
    while len(ids) < start + limit and (len(ids) == start or ids[-1] not in chat.end_of_turn(tokenizer)):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return chat.response_text(tokenizer, ids[start:]).strip()


def test_losses_and_their_difference_equal_brute_force(files: Path, tmp_path: Path) -> None:
    report = run(files, tmp_path / "out")["held_out"]
    by_model = {}
    for name, folder in (("base", "base"), ("instruct", "full")):
        pairs = [nll(files / folder, *pair) for pair in zip(ASKED, ANSWERED, strict=True)]
        by_model[name] = np.array(pairs)
        loss = sum(x for x, _ in pairs) / sum(n for _, n in pairs)
        assert report[name]["loss"]["value"] == pytest.approx(loss, rel=1e-5)
        assert report[name]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert (report[name]["rows"], report[name]["tokens"]) == (6, sum(n for _, n in pairs))
    gaps, tokens = by_model["instruct"][:, 0] - by_model["base"][:, 0], by_model["base"][:, 1]
    drawn = [gaps @ count / (tokens @ count) for count in metrics.resamples(6, 200, 0)]
    wanted = [gaps.sum() / tokens.sum(), *np.percentile(drawn, [2.5, 97.5])]
    assert [report["difference"][key] for key in ("value", "low", "high")] == pytest.approx(wanted, abs=1e-5)
    table = pq.read_table(tmp_path / "out/rows.parquet").sort_by("row_id")
    assert table["instruct"].to_pylist() == pytest.approx(by_model["instruct"][:, 0].tolist(), rel=1e-4)


def test_answers_are_the_greedy_ones_of_each_model(files: Path, tmp_path: Path) -> None:
    report = run(files, tmp_path / "out")
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers] == ["hello", "short", "any"]
    for row in answers:
        assert row["base"] == answer(files / "base", row["prompt"], 6)
        assert row["instruct"] == answer(files / "full", row["prompt"], 6)
    assert any(row["base"] != row["instruct"] for row in answers)
    lines = [json.loads(line) for line in (tmp_path / "out/references.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in lines] == ANSWERED[:4]
    assert [row["instruct"] for row in lines] == [answer(files / "full", asked, 6) for asked in ASKED[:4]]
    for name in ("base", "instruct"):
        rules = report["rules"][name]
        assert rules["prompts"] == 2 and rules["kinds"]["words"]["asked"] == 2
        assert rules["kinds"]["exclude"] == {"kept": bool(answers[2][name]), "asked": 1}


def test_the_comparison_with_the_classifier(files: Path, tmp_path: Path) -> None:
    report = run(files, tmp_path / "out")["reviews"]
    texts, labels = zip(*REVIEWS[3:0:-1], strict=True)  # the lowest ids of the encoded rows
    prompt = read_review_prompt(files / "prompts")
    model, tokenizer, about = classifier.load(files / "classifier")
    said = classifier.predict(model, tokenizer, about, list(texts)).argmax(dim=1).tolist()
    judged = [
        int(np.argmax([-nll_of(files / "full", prompt.ask(about["labels"], text), label) for label in about["labels"]]))
        for text in texts
    ]
    right = {"classifier": np.equal(said, labels).mean(), "instruct": np.equal(judged, labels).mean()}
    assert report["rows"] == 3
    for name, value in right.items():
        assert report[name]["accuracy"]["value"] == pytest.approx(value)
    assert report["difference"]["value"] == pytest.approx(right["instruct"] - right["classifier"])


@torch.no_grad()
def nll_of(folder: Path, question: str, label: str) -> float:
    model, tokenizer = decoder.load_base(folder)
    start = chat.prompt_ids(tokenizer, [{"role": "user", "content": question}])
    tail = tokenizer(label.capitalize(), add_special_tokens=False)["input_ids"]
    logits = torch.log_softmax(model(input_ids=torch.tensor([start + tail]), use_cache=False).logits[0], dim=-1)
    return -float(logits[len(start) - 1 : -1].gather(1, torch.tensor(tail)[:, None]).sum())


def test_the_base_against_itself_differs_by_nothing(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "base", tmp_path / "same")
    (tmp_path / "same" / CARD).write_text(json.dumps(card(files / "base", "full")))
    for name in ("one", "two"):
        report = run(files, tmp_path / name, str(tmp_path / "same"))
        assert report["held_out"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert report["rules"]["base"] == report["rules"]["instruct"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck"])
def test_an_adapter_that_stays_one_is_evaluated_on_its_base(files: Path, tmp_path: Path, method: str) -> None:
    tiny_adapter(files / "base", tmp_path / "adapter", method)
    report = run(files, tmp_path / "out", str(tmp_path / "adapter"), rows=2, references=1)
    assert report["held_out"]["instruct"]["rows"] == 2
    assert report["held_out"]["difference"]["value"] != 0


def test_seconds_are_timed_by_phases_and_not_written(files: Path, tmp_path: Path) -> None:
    seen = []

    @contextmanager
    def phase(name: str):
        seen.append(name)
        yield

    reviews = Reviews(files / "classifier", files / "validated", files / "reviews")
    paths = (files / "full", files / "base", files / "encoded", files / "prompts")
    evaluate_instruct(CONFIG, COMPUTE, *paths, reviews, tmp_path / "out", phase)
    assert seen == ["base", "instruct", "reviews_instruct", "reviews_classifier"]


def test_what_is_missing_or_does_not_fit_is_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ajuste.json is missing"):
        run(files, tmp_path / "out", "nowhere")
    with pytest.raises(UsageError, match="ajuste.json is missing"):
        run(files, tmp_path / "out", judge="encoder")
    other = tmp_path / "other"
    tiny_classifiers.tiny_full(files / "encoder", other, labels=["bad", "good"])
    with pytest.raises(UsageError, match="was trained for labels"):
        run(files, tmp_path / "out", judge=str(other))
    assert not (tmp_path / "out").exists()


# --- numbers by hand ------------------------------------------------------------------------------------------------


def test_exact_match_and_rouge_by_hand() -> None:
    references = ["the cat sat on the mat", "Paris."]
    found = means(reference_scores(["the cat was on a mat", "  paris"], references), 200, 0)
    # 4 words in common of 6 and 6; the longest common sequence is "the cat on mat"
    assert found["rouge1"]["value"] == pytest.approx((4 / 6 + 1) / 2)
    assert found["rougeL"]["value"] == pytest.approx((4 / 6 + 1) / 2)
    assert found["exact_match"]["value"] == 0.5
    turned = means(reference_scores(["mat the on cat"], ["cat on the mat"]), 200, 0)
    assert turned["rouge1"]["value"] == 1.0
    assert turned["rougeL"]["value"] == pytest.approx(0.25)  # backwards: one word of four in order


def test_a_prompt_passes_with_all_its_rules() -> None:
    asked = [
        Prompt.model_validate(entry)
        for entry in (
            {"id": "a", "prompt": "x", "rules": [{"rule": "lowercase"}, {"rule": "words", "max": 2}]},
            {"id": "b", "prompt": "x", "rules": [{"rule": "lowercase"}]},
            {"id": "c", "prompt": "x"},
        )
    ]
    found = rules_report(asked, rules_kept(asked, ["three small words", "fine", "NOT JUDGED"]))
    low, high = metrics.wilson_interval(1, 2)
    assert found["passed"] == {"value": 0.5, "low": low, "high": high}
    assert found["kinds"] == {"lowercase": {"kept": 2, "asked": 2}, "words": {"kept": 0, "asked": 1}}


# --- prompts --------------------------------------------------------------------------------------------------------


def test_a_review_prompt_leaves_braces_of_the_text_alone() -> None:
    prompt = ReviewPrompt(template="{labels}? {text} End.")
    assert prompt.ask(["bad", "good"], "a {labels} {text} b") == "bad or good? a {labels} {text} b End."


@pytest.mark.parametrize(
    "name,text,what",
    [
        ("open.yaml", "- {id: a}\n", "`0.prompt`: Field required"),
        ("open.yaml", "- {id: short, prompt: x}\n", "`short` stands twice"),
        ("verifiable.yaml", "- {id: a, prompt: x, rules: [{rule: rhymes}]}\n", "verifiable.yaml"),
        ("reviews.yaml", "template: '{text}'\n", "must have {labels} once"),
    ],
)
def test_a_broken_prompt_file_is_named(files: Path, tmp_path: Path, name: str, text: str, what: str) -> None:
    shutil.copytree(files / "prompts", tmp_path / "prompts")
    (tmp_path / "prompts" / name).write_text(text)
    with pytest.raises(UsageError, match=what):
        read_prompts(tmp_path / "prompts")
        read_review_prompt(tmp_path / "prompts")
