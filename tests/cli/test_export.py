"""`ajuste export`: what is written is what was registered, and tools that know nothing of this project load it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from ajuste.cli.models import export
from ajuste.core.errors import DataError, UsageError
from ajuste.models import classifier
from ajuste.models.folder import sha256_of
from tests.cli.registered import install, run
from tests.made.tiny_classifiers import TEXTS

PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, base, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if base:
    from peft import PeftModel
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(model, folder)
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    rows = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    logits = model.eval()(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
ours = {"learning", "tasks", "tracking", "serving", "cli"} & sys.modules.keys()
assert not ours, ours
print(json.dumps({"rows": logits.softmax(-1).tolist(), "labels": model.config.id2label}))
"""


@pytest.fixture(autouse=True)
def _registered(monkeypatch, registry, tmp_path):  # noqa: F811
    install(monkeypatch, registry, tmp_path)


@pytest.mark.parametrize(
    ("reference", "adapter"),
    [
        ("reviews-classifier@challenger", False),
        pytest.param("reviews-classifier-adapter/1", True, marks=pytest.mark.slow),
    ],
)
def test_plain_transformers_and_plain_peft_load_it_and_agree(reference, adapter, folders, tmp_path):  # noqa: F811
    run(export.command, reference, tmp_path / "out")
    if adapter:
        expected = classifier.predict(*classifier.load_adapter(folders["base"], folders["adapter"]), TEXTS)
    else:
        expected = classifier.predict(*classifier.load(folders["merged"]), TEXTS)
    (tmp_path / "elsewhere").mkdir()
    base = str(folders["base"]) if adapter else ""
    done = subprocess.run([sys.executable, "-I", "-c", PLAIN, tmp_path / "out", base, json.dumps(TEXTS)],
                          cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert torch.allclose(torch.tensor(found["rows"]), expected, atol=1e-6)
    if not adapter:
        assert found["labels"] == {"0": "negative", "1": "positive"}


def test_it_says_which_version_it_is_and_how_to_load_it(folders, tmp_path, capsys):  # noqa: F811
    (tmp_path / "out").mkdir()                                  # an empty folder is as good as a new one
    run(export.command, "reviews-classifier", tmp_path / "out")
    said = capsys.readouterr().out
    assert f"reviews-classifier version 2 (lora, challenger) is in {tmp_path / 'out'}" in said
    assert f'pipeline("text-classification", model="{tmp_path / "out"}")' in said
    exported = json.loads((tmp_path / "out" / "exported.json").read_text())
    assert exported["sha256"] == sha256_of(tmp_path / "out" / "model.safetensors")
    assert (exported["name"], exported["version"], exported["alias"]) == ("reviews-classifier", "2", "challenger")
    same = {file.name: file.read_bytes() for file in folders["merged"].iterdir()}
    assert same.items() <= {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}.items()


def test_the_printed_lines_run(folders, tmp_path, capsys):  # noqa: F811
    run(export.command, "reviews-classifier@challenger", tmp_path / "whole")
    run(export.command, "reviews-classifier-adapter/1", tmp_path / "adapter")
    run(export.command, "reviews-classifier-adapter/3", tmp_path / "mean")
    whole, adapter, mean = [text.split("\n\n", 1)[1] for text in
                            capsys.readouterr().out.split("reviews-classifier")[0:] if "\n\n" in text]
    adapter = adapter.replace('"BASE"', f'"{folders["base"]}"')
    mean = mean.replace(str(tmp_path / "artifacts" / "base" / "encoder"), str(folders["base"]))
    for code, result in ((whole, "classify('dull')"), (adapter, "model.peft_config"), (mean, "1")):
        values = {}
        exec(code, values)
        assert eval(result, values)


def test_a_folder_in_use_an_unknown_model_and_a_changed_file_are_refused(registry, folders, tmp_path):  # noqa: F811
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="is not empty: name a new folder"):
        run(export.command, "reviews-classifier", tmp_path / "full")
    with pytest.raises(UsageError, match="there is reviews-classifier, reviews-classifier-adapter"):
        run(export.command, "other", tmp_path / "out")
    with pytest.raises(UsageError, match="no alias champion"):
        run(export.command, "reviews-classifier@champion", tmp_path / "out")
    changed = shutil.copytree(folders["merged"], tmp_path / "changed")
    registry.folders["reviews-classifier"][1] = changed
    registry.sha256[changed] = "0" * 64
    with pytest.raises(DataError, match="changed or damaged"):
        run(export.command, "reviews-classifier", tmp_path / "out")
    assert not (tmp_path / "out").exists()
