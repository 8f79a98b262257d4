"""What drift and sweeps have models say of texts, on tiny models: equal to the models asked by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModel

from ajuste.judging.intervals import macro_f1_interval
from ajuste.judging.text_reader import TextReader
from ajuste.models import classifier
from tests.made.tiny_classifiers import LABELS, TEXTS, tiny_adapter, tiny_base, tiny_full, tiny_merged, tiny_tokenizer


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("compute: {dtype: float32, device: cpu, threads: 1, seed: 0}\n")
    return tiny_base(tmp_path / "base")


def test_features_are_the_mean_of_the_base_and_no_training_moves_them(base: Path, tmp_path: Path) -> None:
    full = tiny_full(base, tmp_path / "full")
    found = TextReader(base, full).embed(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(base).eval(), tiny_tokenizer()
    with torch.no_grad():
        each = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in TEXTS]
    np.testing.assert_allclose(found, torch.stack(each).numpy(), atol=1e-5)
    np.testing.assert_array_equal(TextReader(base, None).embed(TEXTS), found)


def test_labels_are_those_of_the_served_classifier(base: Path, tmp_path: Path) -> None:
    full = tiny_full(base, tmp_path / "full")
    reader = TextReader(base, full)
    chosen = classifier.predict(*classifier.load(full), TEXTS).argmax(dim=-1).tolist()
    assert reader.labels == LABELS and reader.predict(TEXTS) == [LABELS[i] for i in chosen]
    assert TextReader(base, None).predict(TEXTS) is None


def test_the_interval_of_macro_f1_is_that_of_the_rows(base: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter(base, tmp_path / "adapter")
    merged = tiny_merged(base, adapter, tmp_path / "merged")
    ids = tiny_tokenizer()(TEXTS * 40)["input_ids"]
    model, *_ = classifier.load(merged)
    said = classifier.logits_of(model, ids).argmax(dim=-1).numpy()
    labels = np.where(np.arange(len(ids)) % 4 == 0, 1 - said, said)  # a quarter is wrong
    rows = tmp_path / "validation.parquet"
    pq.write_table(pa.table({"input_ids": ids, "label": labels}), rows)
    low, high = macro_f1_interval(adapter, base, rows)
    value = f1_score(labels, said, average="macro")
    assert value - 0.15 < low < value < high < value + 0.15
    assert macro_f1_interval(merged, base, rows) == (low, high)  # the same model in other clothes
