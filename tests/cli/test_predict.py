"""`ajuste predict`: every row of a file gets a label, or the reason why not."""

import csv
import io
import json

import pytest
import torch

from ajuste.cli.models import predict
from ajuste.core.errors import DataError, UsageError
from ajuste.learning.text import chat
from ajuste.models import classifier, reward
from tests.cli.registered import install, run
from tests.made.tiny_classifiers import LABELS, TEXTS
from tests.made.tiny_rlhf import ASKED, SNIPPETS


@pytest.fixture
def expected(monkeypatch, registry, folders, tmp_path):  # noqa: F811
    """Probabilities of TEXTS by the challenger; the registry is in place."""
    (tmp_path / "artifacts" / "base").mkdir(parents=True)
    (tmp_path / "artifacts" / "base" / "encoder").symlink_to(folders["base"])
    install(monkeypatch, registry, tmp_path)
    return classifier.predict(*classifier.load(folders["merged"]), TEXTS)


def answers(capsys):
    out = capsys.readouterr()
    return [json.loads(line) for line in out.out.splitlines()], out.err


@pytest.mark.parametrize("name, content", [
    ("t.txt", "\n".join(TEXTS)),
    ("t.txt", "\ufeff" + "\r\n".join(TEXTS) + "\r\n"),
    ("t.jsonl", "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)) + "\n\n"),
    ("t.csv", "id,text\n" + "\n".join(f'{i},"{text}"' for i, text in enumerate(TEXTS))),
    ("t.tsv", "text\tid\n" + "\n".join(f"{text}\t{i}" for i, text in enumerate(TEXTS))),
])
def test_every_format_gives_the_models_answers_in_order(expected, tmp_path, capsys, monkeypatch, name, content):
    monkeypatch.setattr(predict, "BATCH_ROWS", 2)       # so that a file is several batches
    (tmp_path / name).write_bytes(content.encode())
    run(predict.command, "reviews-classifier", tmp_path / name)
    rows, note = answers(capsys)
    assert note == "reviews-classifier: version 2, challenger\n"
    assert [(row["row"], row["text"]) for row in rows] == list(enumerate(TEXTS, 1))
    for row, probabilities in zip(rows, expected, strict=True):
        assert (row["model"], row["version"], row["alias"]) == ("reviews-classifier", "2", "challenger")
        assert row["label"] == LABELS[probabilities.argmax()] and row["error"] is None
        assert torch.allclose(torch.tensor(list(row["probabilities"].values())), probabilities, atol=1e-6)
        assert row["probability"] == row["probabilities"][row["label"]]


def test_a_bad_row_keeps_its_place_and_says_why(expected, tmp_path, capsys):
    lines = [b'{"text": "a warm film"}', b'{"text": ""}', b"{broken", b'{"other": "x"}', b'{"text": 3}', b"[1]",
             b'{"text": "caf\xe9"}', b'{"text": null}', b'{"text": "dull"}']
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    run(predict.command, "reviews-classifier", tmp_path / "t.jsonl")
    rows, note = answers(capsys)
    assert [row["error"] for row in rows] == [
        None, "the text is empty",
        "the line is not JSON: Expecting property name enclosed in double quotes", "the row has no key `text`",
        "the text is no string but int", "the row is no JSON object", "the text is no valid UTF-8",
        "the text is missing", None,
    ]
    assert [row["label"] is None for row in rows] == [row["error"] is not None for row in rows]
    assert rows[0]["probabilities"] == pytest.approx(dict(zip(LABELS, expected[0].tolist(), strict=True)), abs=1e-6)
    assert "7 rows have no label" in note


def test_csv_out_and_an_adapter_by_its_number(expected, tmp_path, capsys):
    (tmp_path / "t.csv").write_text('review,id\n"warm, ""funny""\nfilm",1\n,2\n')
    run(predict.command, "reviews-classifier-adapter/2", tmp_path / "t.csv", "--column", "review", "--output", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0]["text"] == 'warm, "funny"\nfilm' and rows[0]["label"] in ("bad", "fair", "good")
    assert 1 / 3 <= float(rows[0]["probability"]) <= 1 and rows[0]["version"] == "2" and rows[0]["alias"] == ""
    assert (rows[1]["label"], rows[1]["error"]) == ("", "the text is empty")


@pytest.mark.parametrize("name, content, error, message", [
    ("t.csv", b"a,b\n1,2\n", UsageError, "t.csv has no column `text`: it has a, b; name one with --column"),
    ("t.csv", b"", DataError, "t.csv holds no texts"),
    ("t.txt", b"\n\n", DataError, "t.txt holds no texts"),
    ("t.txt", b"ab\0cd", UsageError, "t.txt is a binary file, not text"),
    ("t.docx", b"x", UsageError, "`.docx` is none of .txt, .csv, .tsv, .json, .jsonl, .ndjson, .parquet"),
])
def test_a_wrong_file_is_one_line_before_any_model_is_loaded(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message.replace(".", r"\.").replace("(", r"\(")):
        run(predict.command, "reviews-classifier", tmp_path / name)
    with pytest.raises(UsageError, match="is no file"):
        run(predict.command, "reviews-classifier", tmp_path / "missing.txt")


def test_an_empty_registry_says_what_to_do(expected, tmp_path, registry):
    (tmp_path / "t.txt").write_text("warm")
    registry.folders.clear()
    with pytest.raises(UsageError, match="nothing is registered yet, `ajuste run` does it"):
        run(predict.command, "reviews-classifier", tmp_path / "t.txt")


def test_an_unknown_model_names_those_that_exist(expected, tmp_path):
    (tmp_path / "t.txt").write_text("warm")
    with pytest.raises(UsageError, match="there is reviews-classifier, reviews-classifier-adapter"):
        run(predict.command, "revews-classifier", tmp_path / "t.txt")
    with pytest.raises(UsageError, match="no version 9"):
        run(predict.command, "reviews-classifier/9", tmp_path / "t.txt")


def test_an_assistant_is_for_talking(expected, tmp_path, registry, speakers):
    registry.folders["assistant"] = [speakers["merged"]]
    registry.sha256[speakers["merged"]] = registry.digest(speakers["merged"])
    registry.aliases["assistant"] = {"champion": 1}
    (tmp_path / "one.txt").write_text("A warm film.\n")
    with pytest.raises(UsageError, match="`ajuste chat assistant` talks with it"):
        run(predict.command, "assistant", tmp_path / "one.txt")


@pytest.fixture
def judge(expected, registry, judges):
    """`ratings-reward` stands in the registry."""
    registry.folders["ratings-reward"] = [judges["merged"]]
    registry.sha256[judges["merged"]] = registry.digest(judges["merged"])
    registry.aliases["ratings-reward"] = {"challenger": 1}
    return reward.load(judges["merged"])


def test_a_reward_model_scores_texts_as_responses(judge, tmp_path, capsys):
    model, tokenizer, _ = judge
    lines = [*SNIPPETS[:3], "", "one <|im_end|> two", "word " * 700]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    run(predict.command, "ratings-reward", tmp_path / "t.jsonl", "--prompt", ASKED)
    rows, note = answers(capsys)
    start = chat.prompt_ids(tokenizer, [{"role": "user", "content": ASKED}])
    ids = [start + chat.encode(tokenizer, text) + chat.end_of_turn(tokenizer)[:1] for text in SNIPPETS[:3]]
    assert [row["score"] for row in rows[:3]] == pytest.approx(reward.score(model, ids).tolist(), abs=1e-5)
    assert set(rows[0]) == {"row", "score", "model", "version", "alias", "error", "text"} and rows[0]["version"] == "1"
    assert [row["score"] for row in rows[3:]] == [None] * 3
    for row, reason in zip(rows[3:], ["the text is empty", "marks a turn", "more than the 512"], strict=True):
        assert reason in row["error"]
    assert "3 rows have no score" in note


def test_scores_as_csv(judge, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("\n".join(SNIPPETS))
    run(predict.command, "ratings-reward", tmp_path / "t.txt", "--prompt", ASKED, "--output", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text"] for row in rows] == SNIPPETS and len({float(row["score"]) for row in rows}) == len(SNIPPETS)
    assert list(rows[0]) == ["row", "score", "model", "version", "alias", "error", "text"]


def test_a_prompt_belongs_to_a_reward_model(judge, tmp_path):
    (tmp_path / "t.txt").write_text("warm")
    with pytest.raises(UsageError, match="say with --prompt what the texts are responses to"):
        run(predict.command, "ratings-reward", tmp_path / "t.txt")
    with pytest.raises(UsageError, match="leave out --prompt"):
        run(predict.command, "reviews-classifier", tmp_path / "t.txt", "--prompt", ASKED)
